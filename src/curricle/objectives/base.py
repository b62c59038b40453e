"""Interfaces of the terms of a stage's loss.

An *objective* is a frozen value that declares which activations of student and teacher are read and
how they are compared. Binding it to models gives a `BoundObjective`, which computes a *target* from
the teacher's activations (without gradient) and the loss against it, summed over positions.

Axes: leading (example, position), row (counted positions), width, selected, class.

Scale: every objective returns a sum over positions; the engine divides by the number of positions
of the full batch, so gradient accumulation and several ranks give the mean over the full batch.

Design: user code may define objectives; any object with the methods of `Objective` is accepted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor

from curricle.data.streams import Batch
from curricle.errors import BindError, CurricleError, DataError
from curricle.models.tapped import Activations, Place, TappedModel
from curricle.protocols import conforms
from curricle.values import Plain

Value = TypeVar("Value")

MOST_WEIGHT = 1e6
"""Largest factor of a term in a loss. Only ratios of weights matter; far larger numbers overflow in
the gradient even though the loss is finite."""
Target = Any
"""Target of an objective: usually a tensor, read by that objective only."""


def _batch_first_remedy(shape: tuple[int, ...], data: tuple[int, ...]) -> str:
    """Return a remedy for states with positions on the first axis; empty for other shapes."""
    if len(data) > 1 and shape[:2] == data[1::-1]:
        return "; its first axis are positions, modules of torch accept 'batch_first=True'"
    return ""


def require(value: Value | None, name: str) -> Value:
    """Return a value that an objective cannot do without.

    Raises:
        BindError: If it is None.
    """
    if value is None:
        raise BindError(f"{name!r} must be given, since an objective reads it; got none")
    return value


def check_positions(
    name: str,
    leading: Sequence[int] | None,
    batch: Batch,
    *,
    kind: type[CurricleError] = DataError,
) -> None:
    """Check that a state or logits have the positions of the data, the index of labels and masks.

    Every objective that selects rows by position calls this in each forward pass, as do
    evaluations. Only shapes are compared, so it causes no synchronization with a GPU.

    Args:
        name: Name of the state in error messages.
        leading: Its shape without the width; None if the model does not report it.
        batch: The batch of the forward pass.
        kind: Class of the error: `BindError` while binding.
    """
    if leading is None or tuple(leading) in {batch.positions, (math.prod(batch.positions),)}:
        return
    raise kind(
        f"{name} must have the positions {batch.positions} of the data; got {tuple(leading)}: a "
        f"model that adds positions, as prompt tuning does, or drops some cannot be compared by "
        f"position"
    )


def check_classes(labels: Tensor, num_classes: int, where: str = " in the first batch") -> None:
    """Check that labels are classes of the student; reads values, so it synchronizes with a GPU.

    Args:
        labels: The labels.
        num_classes: Number of classes of the student.
        where: Name of the batch in error messages; empty where the message has it elsewhere.

    Raises:
        DataError: If a label is not a class.
    """
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
@dataclass(frozen=True, slots=True)
class Rows:
    """The counted rows of a state, determined before a batch is split and the model has run."""

    per_example: int | None
    """Positions per example defined by the model, as with images or after pooling; None for a
    state with the positions of the data."""

    @classmethod
    def of(cls, name: str, leading: Sequence[int], batch: Batch) -> "Rows":
        """Return the rows of a state.

        Args:
            name: Name of the state in error messages.
            leading: Its shape without the width.
            batch: The batch of the forward pass.

        Raises:
            BindError: If its positions belong to no example, or padding among them is unknown.
        """
        data, shape = batch.positions, tuple(leading)
        if shape in {data, (math.prod(data),)}:
            return cls(None)
        if shape[:1] != data[:1]:
            raise BindError(
                f"{name} must have the {batch.num_examples} examples on its first axis; got {shape}"
                + _batch_first_remedy(shape, data)
            )
        if batch.is_decoded and len(shape) > 1:
            raise BindError(
                f"{name} must have the positions {data} of the decoder, which masks and labels "
                f"refer to; got {shape}; the states of an encoder cannot be matched yet"
            )
        if batch.valid is not None and len(shape) > 1:
            raise BindError(
                f"{name} must have the positions {data} of the padded data, or a single position "
                f"per example; got {shape}"
            )
        return cls(math.prod(shape[1:]))

    def count(self, batch: Batch) -> int:
        """Return the number of rows in a batch."""
        if self.per_example is None:
            return batch.num_tokens
        return batch.num_examples * self.per_example

    def take(
        self, states: Shaped[Tensor, "*leading width"], batch: Batch
    ) -> Shaped[Tensor, "row width"]:
        """Return the counted rows on a single axis.

        Raises:
            DataError: If the number of positions differs from that of the first batch.
        """
        leading, per_example = tuple(states.shape[:-1]), self.per_example
        if per_example is None:
            check_positions("a state", leading, batch)
        elif leading[:1] != (batch.num_examples,) or math.prod(leading[1:]) != per_example:
            raise DataError(
                f"a state must have the same positions per example in every batch, here "
                f"{batch.num_examples * per_example} in total; got {math.prod(leading)}"
            )
        rows = states.flatten(0, -2)
        if per_example is not None or batch.valid is None:
            return rows
        return rows[batch.valid.flatten()]


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
