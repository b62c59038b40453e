"""Agreement of stored targets with those of the teacher.

`agreement` runs the teacher again for the first steps of some stages and returns the share of rows
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

from curricle.data.batch import Batch
from curricle.data.example_keys import data_counts, example_keys, selected_places
from curricle.objectives.base import BoundObjective, target_description
from curricle.objectives.sparse import SparseTarget
from curricle.teachers.store.codecs import Sampled, TopK, Uniforms
from curricle.teachers.store.manifest import TargetSet
from curricle.teachers.store.shards import uniforms
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.targets.capture import TargetCompression, counts_of, queries_of

ROUNDING = 1e-4
"""Difference that is allowed besides the codec's, as a share of the largest number."""
PACKED = 1 / 256
"""Share by which weights that are packed anew may differ: one step of their 11 bits, in logs."""
LEAST_SHARE = 0.98
"""Least share of rows of some classes; rounding may move a draw over the edge of a class."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of one kind of target with the teacher."""

    target_set: TargetSet
    """The kind of target."""
    rows: int
    """Rows that were compared."""
    share: float
    """Share of rows of which all numbers agree."""

    @property
    def holds(self) -> bool:
        """Return whether the targets are the teacher's."""
        return self.share >= (LEAST_SHARE if self.target_set.is_sparse else 1.0)


def agreement(runs: Sequence[BoundRun], stored: StoredTeacher, *, steps: int) -> list[Agreement]:
    """Return the agreement of stored targets with those of the teacher.

    Args:
        runs: Runs that were captured, bound to the live teacher.
        stored: Its stored targets.
        steps: How many steps of each stage are looked at.
    """
    matches: dict[str, list[Bool[Tensor, " row"]]] = {}
    target_sets: dict[str, TargetSet] = {}
    # With any codecs: the form that is compared is that of the store.
    for query in queries_of(runs, TargetCompression()):
        for _, objective, batch, expected in query.recomputed(steps):
            targets = stored.serving(
                objective, query.stage.declared.teacher, query.run.stream.fingerprint
            )
            target_set = targets.reader.target_set
            read = targets.target(batch, objective.count(batch))
            if isinstance(target_set.codec, (Sampled, TopK)):
                # Packed by the same random numbers, since other draws of the same logits are other
                # classes.
                entries = target_set.codec.encode(expected, _random(target_set, objective, batch))
                again = target_set.codec.decode(entries, target_set.width)
                agree = _equal(read, again)
            else:
                agree = _within(read, expected, target_set.codec.bound(expected))
            target_sets[target_set.name] = target_set
            matches.setdefault(target_set.name, []).append(agree)
    return [
        Agreement(
            target_set=target_sets[name],
            rows=sum(map(len, matches_of_set)),
            share=sum(int(rows.sum()) for rows in matches_of_set)
            / max(sum(map(len, matches_of_set)), 1),
        )
        for name, matches_of_set in matches.items()
    ]


def _random(target_set: TargetSet, objective: BoundObjective, batch: Batch) -> Uniforms:
    """Return the random numbers of the rows that an objective reads, as they were when stored."""
    keys = example_keys(batch, selected=target_set.selected)
    # Rows that selected positions pick from those of all positions.
    description = target_description(objective)
    if target_set.selected or description is None or not description.reads_selected:
        return uniforms(target_set, keys, counts_of(objective, batch))
    counts = data_counts(batch)
    draws = uniforms(target_set, keys, counts)
    starts = counts.cumsum() - counts
    rows = np.concatenate(
        [start + places for start, places in zip(starts, selected_places(batch), strict=True)]
    )
    return lambda number: draws(number)[rows]


def _within(
    stored: Float[Tensor, "row width"],
    expected: Float[Tensor, "row width"],
    bound: Float[Tensor, "row width"],
) -> Bool[Tensor, " row"]:
    """Return for each row whether all of its numbers lie within a bound."""
    # Relative to the largest number of all rows: rounding in a sum follows its large terms.
    finite = expected.where(expected.isfinite(), 0.0).abs()
    allowed = bound + (ROUNDING * finite.amax() if finite.numel() else 0.0)
    # Equal ones may be infinite.
    return ((stored == expected) | ((stored - expected).abs() <= allowed)).all(-1)


def _equal(stored: SparseTarget, expected: SparseTarget) -> Bool[Tensor, " row"]:
    """Return for each row whether all that is known of it is the same."""
    (ids, weights), (same, expected_weights) = _in_order(stored), _in_order(expected)
    agree = (ids == same).all(-1) & _near(weights, expected_weights).all(-1)
    if stored.remaining_mass is not None and expected.remaining_mass is not None:
        agree &= _near(stored.remaining_mass, expected.remaining_mass)
    return agree & _near(stored.constant, expected.constant)


def _in_order(
    target: SparseTarget,
) -> tuple[Int[Tensor, "row draw"], Float[Tensor, "row draw"]]:
    """Return classes in ascending order, with their weights."""
    # The likeliest classes are listed by probability, and rounding may exchange two of them.
    ids, order = target.ids.sort(dim=-1, stable=True)
    return ids, target.weights.gather(-1, order)


def _near(stored: Float[Tensor, "..."], expected: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    return (stored - expected).abs() <= PACKED * expected.abs() + ROUNDING
