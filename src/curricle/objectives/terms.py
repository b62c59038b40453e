"""What does one term of a stage minimize?

An *objective* is a frozen value that says what is read from the student and the teacher and how
the two are compared. Bound to models it becomes a `BoundObjective`, which turns the teacher's
activations into a *target* (without gradient) and adds up the loss against it.

Axes: leading (example, position), row (counted positions), width, selected, class.

Scale: every objective returns a sum over positions; the engine divides by the number of positions
of the whole batch, so gradient accumulation and several ranks give the mean of the whole batch.

Design: user code may bring its own objective; anything with the methods of `Objective` is taken.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, final, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor

from curricle.data.streams import Batch
from curricle.errors import BindError
from curricle.models.tapped import Activations, Place, TappedModel

Found = TypeVar("Found")


def required(found: Found | None, name: str) -> Found:
    """Return what was found.

    Raises:
        BindError: If it is None.
    """
    if found is None:
        raise BindError(f"{name!r} must be given, since an objective reads it; got none")
    return found


def num_positions(batch: Batch, leading: Sequence[int]) -> int:
    """Return the number of positions of a batch that hold data.

    Args:
        batch: The batch.
        leading: Shape without the width of what the objective was bound to: if examples are
            features, for example images, only the model knows how many positions they have.
    """
    if batch.valid is None and batch.is_flat:
        return batch.num_examples * math.prod(leading[1:])
    return batch.num_tokens


def rows_with_data(
    states: Shaped[Tensor, "*leading width"], batch: Batch
) -> Shaped[Tensor, "row width"]:
    """Return the states at the positions that hold data, one below the other."""
    rows = states.flatten(0, -2)
    return rows if batch.valid is None else rows[batch.valid.flatten()]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What an objective reads in one forward pass of each model."""

    student: tuple[Place, ...] = ()
    """Places of the student."""
    teacher: tuple[Place, ...] = ()
    """Places of the teacher."""
    student_logits: bool = False
    """Whether the student's logits are read."""
    teacher_logits: bool = False
    """Whether the teacher's logits are read."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What an objective may look at while it is bound: one batch and what both models show."""

    student: Activations
    """The student's activations at the places the objective reads."""
    teacher: Activations | None
    """The teacher's, if the objective needs one."""
    seed: int
    """Seed of the run, for projections."""


@runtime_checkable
class BoundObjective(Protocol):
    """An objective with its models known."""

    def count(self, batch: Batch) -> int:
        """Return the number of positions that the loss is a mean over."""
        ...

    def target(self, teacher: Activations, batch: Batch) -> Tensor:
        """Return what the student is compared with; called without gradient."""
        ...

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Tensor:
        """Return the loss summed over the counted positions, with gradient to the student."""
        ...

    def calibrated(self, teachers: Iterable[tuple[Activations, Batch]]) -> "BoundObjective":
        """Return the objective with statistics of the teacher's activations, if it wants any."""
        ...

    @property
    def wants_calibration(self) -> bool:
        """Return whether `calibrated` must be called before training."""
        ...

    def describe(self) -> tuple[str, str, str, str]:
        """Return what `plan` prints: taps, objective, projection, widths."""
        ...


@runtime_checkable
class Objective(Protocol):
    """A declared term of a stage."""

    @property
    def weight(self) -> float:
        """Return the factor of the term in the stage's loss."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Return whether the term has a target from a teacher."""
        ...

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the places that the term reads; `BindError` if a model has no such tap."""
        ...

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term bound to what both models show; `BindError` if they do not fit."""
        ...
