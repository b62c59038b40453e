"""Do stored targets say what the teacher says?

`agreement` asks the teacher again about the first steps of some stages and compares. Numbers of
which every one is kept must lie within the codec's stated error; of distributions of which only
some classes are kept, the share of equal classes is told. The teacher's own rounding, which depends
on the batch and the machine, is allowed for.

Axes: row (counted positions), width, draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from curricle.data.digests import example_keys
from curricle.objectives.sparse import SparseTarget
from curricle.teachers.codecs import Sampled, TopK
from curricle.teachers.manifest import Section
from curricle.teachers.shards import uniforms
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding import BoundRun
from curricle.training.capturing import Packing, counts_of, lessons_of

ROUNDING = 1e-4
"""Difference that is allowed besides the codec's, as a share of the largest number."""
LEAST_SHARE = 0.98
"""Least share of equal classes; rounding may move a draw over the edge of a class."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How one kind of target compares with what the teacher says."""

    section: Section
    """The kind of target."""
    rows: int
    """Rows that were compared."""
    share: float
    """Share of numbers within the stated error, or of equal classes."""

    @property
    def holds(self) -> bool:
        """Return whether the targets are the teacher's."""
        return self.share >= (LEAST_SHARE if self.section.is_sparse else 1.0)


def agreement(runs: Sequence[BoundRun], stored: StoredTeacher, *, steps: int) -> list[Agreement]:
    """Return how stored targets compare with what the teacher says.

    Args:
        runs: Runs that were captured, bound to the live teacher.
        stored: Its stored targets.
        steps: How many steps of each stage are looked at.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    sections: dict[str, Section] = {}
    for lesson in lessons_of(runs, Packing()):
        for _, objective, batch, wanted in lesson.compared(steps):
            targets = stored.serving(
                objective, lesson.stage.declared.teacher, lesson.run.stream.fingerprint
            )
            section = targets.reader.section
            keys = example_keys(batch, selected=section.selected)
            random = uniforms(section, keys, counts_of(objective, batch))
            if isinstance(section.codec, (Sampled, TopK)):
                entries = section.codec.encode(wanted, random)
                again = section.codec.decode(entries, section.width)
                share = _equal(targets.target(batch), again)
            else:
                share = _within(targets.target(batch), wanted, section.codec.bound(wanted))
            sections[section.name] = section
            found.setdefault(section.name, []).append((len(wanted), share))
    return [
        Agreement(
            section=sections[name],
            rows=sum(rows for rows, _ in each),
            share=sum(rows * share for rows, share in each) / max(sum(rows for rows, _ in each), 1),
        )
        for name, each in found.items()
    ]


def _within(
    stored: Float[Tensor, "row width"],
    wanted: Float[Tensor, "row width"],
    bound: Float[Tensor, "row width"],
) -> float:
    allowed = bound + ROUNDING * wanted.abs().amax().nan_to_num()
    return ((stored - wanted).abs() <= allowed).float().mean().item() if wanted.numel() else 1.0


def _equal(stored: SparseTarget, wanted: SparseTarget) -> float:
    same: Tensor = stored.ids.sort(-1).values == wanted.ids.sort(-1).values
    return same.float().mean().item() if torch.numel(same) else 1.0
