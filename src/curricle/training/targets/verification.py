"""Do stored targets say what the teacher says?

`agreement` asks the teacher again about the first steps of some stages and tells the share of rows
that agree. Where every number is kept, all of a row must lie within the codec's stated error; where
only some classes are, these must be the same, with their weights, the mass of the others and the
entropy. The teacher's own rounding, which depends on the batch and the machine, is allowed for.

Axes: row (counted positions), width, draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from curricle.data.example_keys import data_counts, example_keys, selected_places
from curricle.data.streams import Batch
from curricle.objectives.base import BoundObjective, target_description
from curricle.objectives.sparse import SparseTarget
from curricle.teachers.store.codecs import Sampled, TopK, Uniforms
from curricle.teachers.store.manifest import TargetSet
from curricle.teachers.store.shards import uniforms
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.targets.capture import TargetCodecs, counts_of, queries_of

ROUNDING = 1e-4
"""Difference that is allowed besides the codec's, as a share of the largest number."""
PACKED = 1 / 256
"""Share by which weights that are packed anew may differ: one step of their 11 bits, in logs."""
LEAST_SHARE = 0.98
"""Least share of rows of some classes; rounding may move a draw over the edge of a class."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How one kind of target compares with what the teacher says."""

    section: TargetSet
    """The kind of target."""
    rows: int
    """Rows that were compared."""
    share: float
    """Share of rows of which all numbers agree."""

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
    found: dict[str, list[Bool[Tensor, " row"]]] = {}
    sections: dict[str, TargetSet] = {}
    for query in queries_of(runs, TargetCodecs()):
        for _, objective, batch, wanted in query.compared(steps):
            targets = stored.serving(
                objective, query.stage.declared.teacher, query.run.stream.fingerprint
            )
            section = targets.reader.target_set
            read = targets.target(batch, objective.count(batch))
            if isinstance(section.codec, (Sampled, TopK)):
                entries = section.codec.encode(wanted, _random(section, objective, batch))
                again = section.codec.decode(entries, section.width)
                agree = _equal(read, again)
            else:
                agree = _within(read, wanted, section.codec.bound(wanted))
            sections[section.name] = section
            found.setdefault(section.name, []).append(agree)
    return [
        Agreement(
            section=sections[name],
            rows=sum(map(len, each)),
            share=sum(int(one.sum()) for one in each) / max(sum(map(len, each)), 1),
        )
        for name, each in found.items()
    ]


def _random(section: TargetSet, objective: BoundObjective, batch: Batch) -> Uniforms:
    """Return the random numbers of the rows that an objective reads, as they were when stored."""
    keys = example_keys(batch, selected=section.selected)
    # Which a reading of selected rows picks from those of all.
    description = target_description(objective)
    if section.selected or description is None or not description.reads_selected:
        return uniforms(section, keys, counts_of(objective, batch))
    counts = data_counts(batch)
    whole = uniforms(section, keys, counts)
    starts = counts.cumsum() - counts
    rows = np.concatenate(
        [start + places for start, places in zip(starts, selected_places(batch), strict=True)]
    )
    return lambda number: whole(number)[rows]


def _within(
    stored: Float[Tensor, "row width"],
    wanted: Float[Tensor, "row width"],
    bound: Float[Tensor, "row width"],
) -> Bool[Tensor, " row"]:
    """Return for each row whether all of its numbers lie within a bound."""
    finite = wanted.where(wanted.isfinite(), 0.0).abs()
    allowed = bound + (ROUNDING * finite.amax() if finite.numel() else 0.0)
    # Equal ones may be infinite.
    return ((stored == wanted) | ((stored - wanted).abs() <= allowed)).all(-1)


def _equal(stored: SparseTarget, wanted: SparseTarget) -> Bool[Tensor, " row"]:
    """Return for each row whether all that is known of it is the same."""
    (ids, weights), (same, told) = _in_order(stored), _in_order(wanted)
    agree = (ids == same).all(-1) & _near(weights, told).all(-1)
    if stored.remaining_mass is not None and wanted.remaining_mass is not None:
        agree &= _near(stored.remaining_mass, wanted.remaining_mass)
    return agree & _near(stored.constant, wanted.constant)


def _in_order(
    target: SparseTarget,
) -> tuple[Int[Tensor, "row draw"], Float[Tensor, "row draw"]]:
    """Return classes in ascending order, with their weights."""
    ids, order = target.ids.sort(dim=-1, stable=True)
    return ids, target.weights.gather(-1, order)


def _near(stored: Float[Tensor, "..."], wanted: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    return (stored - wanted).abs() <= PACKED * wanted.abs() + ROUNDING
