"""Interfaces of the terms of a stage's loss.

An *objective* is a frozen value that declares which activations of student and teacher are read and
how they are compared. Binding it to models gives a `BoundObjective`, which computes a *target* from
the teacher's activations (without gradient) and the loss against it, summed over positions.

Axes: leading (example, position), row (counted positions), width, selected, class.

Scale: every objective returns a sum over positions; the engine divides by the number of positions
of the full batch, so gradient accumulation and several ranks give the mean over the full batch.

Design: user code may define objectives; any object with the methods of `Objective` is accepted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from torch import Tensor

from curricle.data.labels import require_classes
from curricle.data.streams import Batch
from curricle.errors import BindError, DataError
from curricle.models.tapped import Activations, Place, TappedModel
from curricle.protocols import conforms
from curricle.values import Plain

Value = TypeVar("Value")

MOST_WEIGHT = 1e6
"""Largest factor of a term in a loss. Only ratios of weights matter; far larger numbers overflow in
the gradient even though the loss is finite."""
Target = Any
"""Target of an objective: usually a tensor, read by that objective only."""


def require(value: Value | None, name: str) -> Value:
    """Return a value that an objective cannot do without.

    Raises:
        BindError: If it is None.
    """
    if value is None:
        raise BindError(f"{name!r} must be given, since an objective reads it; got none")
    return value


def check_classes(labels: Tensor, num_classes: int, where: str = " in the first batch") -> None:
    """Check that labels are classes of the student; reads values, so it synchronizes with a GPU.

    Args:
        labels: The labels.
        num_classes: Number of classes of the student.
        where: Name of the batch in error messages; empty where the message has it elsewhere.

    Raises:
        DataError: If a label is not a class.
    """
    require_classes(labels)
    if not labels.numel():
        return
    lowest, highest = map(int, labels.aminmax())
    if lowest < 0 or highest >= num_classes:
        label = lowest if lowest < 0 else highest
        raise DataError(
            f"'labels' must lie between 0 and {num_classes - 1}, the student's last class; got "
            f"{label}{where}; mark positions without a class by -100"
        )


def logits_of(activations: Activations) -> Tensor:
    """Return the logits of a forward pass.

    Raises:
        BindError: If there are none; the message describes the model's output.
    """
    if activations.logits is None and activations.obscurity:
        raise BindError(activations.obscurity)
    return require(activations.logits, "logits")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Inputs of an objective from one forward pass of each model."""

    student: tuple[Place, ...] = ()
    """Places of the student."""
    teacher: tuple[Place, ...] = ()
    """Places of the teacher."""
    student_logits: bool = False
    """Whether the student's logits are read."""
    teacher_logits: bool = False
    """Whether the teacher's logits are read."""
    student_head: bool = False
    """Whether the student's head (states and last linear map) is read in place of logits."""
    teacher_head: bool = False
    """Whether the teacher's head is read in place of logits."""


def merge_reads(all_reads: Sequence[Reads], *, full_student: bool) -> Reads:
    """Return the union of the reads of several objectives.

    Args:
        all_reads: The reads of each objective.
        full_student: Whether the student runs to its end in any case.
    """
    student_head = any(reads.student_head for reads in all_reads)
    student_logits = any(reads.student_logits for reads in all_reads)
    return Reads(
        student=tuple(dict.fromkeys(place for reads in all_reads for place in reads.student)),
        teacher=tuple(dict.fromkeys(place for reads in all_reads for place in reads.teacher)),
        # A pass that ends before the last linear map also runs all blocks of the student.
        student_logits=student_logits or (full_student and not student_head),
        teacher_logits=any(reads.teacher_logits for reads in all_reads),
        student_head=student_head,
        teacher_head=any(reads.teacher_head for reads in all_reads),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Inputs of `Objective.bind`: one batch and the activations of both models."""

    batch: Batch
    """The batch."""
    student: Activations
    """The student's activations at the places of the objective."""
    teacher: Activations | None
    """The teacher's activations; None for an objective without teacher."""
    seed: int
    """Seed of the run, for projections."""
    num_steps: int = 1
    """Length of the stage, in steps; the longest if a rule may end it."""


@runtime_checkable
class BoundObjective(Protocol):
    """An objective bound to its models.

    It may also implement `OwnsAdapter`, to train a module beside the student, and `Calibrates`, to
    read the teacher's activations before training.
    """

    def count(self, batch: Batch) -> int:
        """Return the number of positions in the mean of the loss."""
        ...

    def target(self, teacher: Activations, batch: Batch) -> Target:
        """Return the target of the student; called without gradient."""
        ...

    def total(self, student: Activations, target: Target, batch: Batch) -> Tensor:
        """Return the loss summed over the counted positions, with gradient to the student.

        `target` is the result of `target`; None without a teacher.
        """
        ...

    def describe(self) -> tuple[str, str, str, str]:
        """Return the columns of `plan`: taps, objective, projection, widths."""
        ...


@runtime_checkable
class Calibrates(Protocol):
    """A bound objective that may need statistics of the teacher's activations."""

    @property
    def wants_calibration(self) -> bool:
        """Return whether `calibrated` must be called before training."""
        ...

    def calibrated(self, teachers: Iterable[tuple[Activations, Batch]]) -> BoundObjective:
        """Return the objective with the statistics of some batches."""
        ...


@runtime_checkable
class Storable(Protocol):
    """A bound objective with targets that may be precomputed and read by other runs."""

    @property
    def target_facts(self) -> Plain:
        """Return, as plain data, the dependencies of `target` besides the teacher and the data.

        Keys with the prefix `projection_` identify a random projection; targets of another random
        projection are equally valid.
        """
        ...

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        ...

    @property
    def sparse_temperature(self) -> float | None:
        """Return the temperature of a `SparseTarget` for `total`; None if it accepts none."""
        ...


@runtime_checkable
class ReadsLabels(Protocol):
    """A bound objective that may compare with the labels of the data."""

    @property
    def label_classes(self) -> int | None:
        """Return the number of classes of labels; None if labels are not read."""
        ...


def pending_calibration(objective: BoundObjective) -> Calibrates | None:
    """Return the objective if it needs statistics before training; None if it needs none."""
    if conforms(objective, Calibrates) and objective.wants_calibration:
        return objective
    return None


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
        """Return the term bound to sample activations; `BindError` if the models do not fit."""
        ...
