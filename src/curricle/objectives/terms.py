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
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor

from curricle.data.streams import Batch
from curricle.errors import BindError, CurricleError, DataError
from curricle.models.tapped import Activations, Place, TappedModel
from curricle.protocols import conforms
from curricle.specs import Plain

Found = TypeVar("Found")

MOST_WEIGHT = 1e6
"""Largest factor of a term in a loss. Ratios of weights decide what is learned; far larger numbers
overflow in the gradient, which a finite loss does not show."""
Target = Any
"""What the student is compared with: mostly a tensor, and only looked at by its objective."""


def _turned(shape: tuple[int, ...], data: tuple[int, ...]) -> str:
    """Return the way out for states that have positions first; empty for other shapes."""
    if len(data) > 1 and shape[:2] == data[1::-1]:
        return "; positions come first there, modules of torch take 'batch_first=True'"
    return ""


def required(found: Found | None, name: str) -> Found:
    """Return what was found.

    Raises:
        BindError: If it is None.
    """
    if found is None:
        raise BindError(f"{name!r} must be given, since an objective reads it; got none")
    return found


def check_positions(
    name: str,
    found: Sequence[int] | None,
    batch: Batch,
    *,
    kind: type[CurricleError] = DataError,
) -> None:
    """Check that a state or logits have the positions of the data, which labels and masks count.

    Every objective that takes rows by position calls this in each pass, as do evaluations. Only
    shapes are compared, so a step on a GPU does not wait for it.

    Args:
        name: What to call it in errors.
        found: Its shape without the width; None if the model does not tell.
        batch: The batch it belongs to.
        kind: What to raise: `BindError` while binding.
    """
    if found is None or tuple(found) in {batch.positions, (math.prod(batch.positions),)}:
        return
    raise kind(
        f"{name} must have the positions {batch.positions} of the data; got {tuple(found)}: a "
        f"model that adds positions, as prompt tuning does, or leaves some out cannot be compared "
        f"by position"
    )


def check_classes(labels: Tensor, num_classes: int, where: str = " in the first batch") -> None:
    """Check that labels are classes of the student; looks at values, so on a GPU it waits.

    Args:
        labels: The labels.
        num_classes: Number of classes that the student has.
        where: Which batch it is, for people; empty where that is said elsewhere.

    Raises:
        DataError: If one is none.
    """
    if not labels.numel():
        return
    lowest, highest = map(int, labels.aminmax())
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"'labels' must lie between 0 and {num_classes - 1}, the student's last class; got "
            f"{wrong}{where}; positions without a class are marked by -100"
        )


def logits_of(shown: Activations) -> Tensor:
    """Return the logits that a model has shown.

    Raises:
        BindError: If there are none; it says what the model returns instead.
    """
    if shown.logits is None and shown.obscurity:
        raise BindError(shown.obscurity)
    return required(shown.logits, "logits")


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a state that count, known before a batch is split and the model has run."""

    per_example: int | None
    """Positions of an example that only the model knows, as with images or after pooling; None
    for a state that has the positions of the data."""

    @classmethod
    def of(cls, name: str, leading: Sequence[int], batch: Batch) -> "Rows":
        """Return the rows of a state.

        Args:
            name: What to call the state in errors.
            leading: Its shape without the width.
            batch: The batch it was seen with.

        Raises:
            BindError: If its positions belong to no example, or padding cannot be told in them.
        """
        data, found = batch.positions, tuple(leading)
        if found in {data, (math.prod(data),)}:
            return cls(None)
        if found[:1] != data[:1]:
            raise BindError(
                f"{name} must have the {batch.num_examples} examples on its first axis; got {found}"
                + _turned(found, data)
            )
        if batch.is_decoded and len(found) > 1:
            raise BindError(
                f"{name} must have the positions {data} of the decoder, since masks and labels "
                f"count those; got {found}; the states of an encoder cannot be matched yet"
            )
        if batch.valid is not None and len(found) > 1:
            raise BindError(
                f"{name} must have the positions {data} of the padded data, or one an example; "
                f"got {found}"
            )
        return cls(math.prod(found[1:]))

    def count(self, batch: Batch) -> int:
        """Return the number of rows in a batch."""
        if self.per_example is None:
            return batch.num_tokens
        return batch.num_examples * self.per_example

    def take(
        self, states: Shaped[Tensor, "*leading width"], batch: Batch
    ) -> Shaped[Tensor, "row width"]:
        """Return the rows one below the other.

        Raises:
            DataError: If the positions are no longer those that were counted.
        """
        leading, each = tuple(states.shape[:-1]), self.per_example
        if each is None:
            check_positions("a state", leading, batch)
        elif leading[:1] != (batch.num_examples,) or math.prod(leading[1:]) != each:
            raise DataError(
                f"a state must keep its positions from batch to batch: {batch.num_examples * each} "
                f"in this one; got {math.prod(leading)}"
            )
        rows = states.flatten(0, -2)
        return rows if each is not None or batch.valid is None else rows[batch.valid.flatten()]


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
    student_head: bool = False
    """Whether what the student's logits come from is read instead."""
    teacher_head: bool = False
    """Whether what the teacher's logits come from is."""


def merged(each: Sequence[Reads], *, whole: bool) -> Reads:
    """Return what several objectives read together.

    Args:
        each: What each of them reads.
        whole: Whether the student runs to its end in any case.
    """
    student_head = any(reads.student_head for reads in each)
    student_logits = any(reads.student_logits for reads in each)
    return Reads(
        student=tuple(dict.fromkeys(place for reads in each for place in reads.student)),
        teacher=tuple(dict.fromkeys(place for reads in each for place in reads.teacher)),
        # A pass that ends before the last linear map runs the whole student, too.
        student_logits=student_logits or (whole and not student_head),
        teacher_logits=any(reads.teacher_logits for reads in each),
        student_head=student_head,
        teacher_head=any(reads.teacher_head for reads in each),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What an objective may look at while it is bound: one batch and what both models show."""

    batch: Batch
    """The batch."""
    student: Activations
    """The student's activations at the places the objective reads."""
    teacher: Activations | None
    """The teacher's, if the objective needs one."""
    seed: int
    """Seed of the run, for projections."""
    num_steps: int = 1
    """Length of the stage, in steps."""


@runtime_checkable
class BoundObjective(Protocol):
    """An objective with its models known.

    One that trains a module besides is an `OwnsAdapter`; one that looks at the teacher's
    activations before training `Calibrates`.
    """

    def count(self, batch: Batch) -> int:
        """Return the number of positions that the loss is a mean over."""
        ...

    def target(self, teacher: Activations, batch: Batch) -> Target:
        """Return what the student is compared with; called without gradient."""
        ...

    def total(self, student: Activations, target: Target, batch: Batch) -> Tensor:
        """Return the loss summed over the counted positions, with gradient to the student.

        `target` is what `target` gave; None without a teacher.
        """
        ...

    def describe(self) -> tuple[str, str, str, str]:
        """Return what `plan` prints: taps, objective, projection, widths."""
        ...


@runtime_checkable
class Calibrates(Protocol):
    """A bound objective that may need statistics of the teacher's activations."""

    @property
    def wants_calibration(self) -> bool:
        """Return whether it needs them: whether `calibrated` is to be called before training."""
        ...

    def calibrated(self, teachers: Iterable[tuple[Activations, Batch]]) -> BoundObjective:
        """Return the objective with the statistics of the given batches."""
        ...


@runtime_checkable
class Storable(Protocol):
    """A bound objective whose target may be made beforehand and read by other runs."""

    @property
    def target_facts(self) -> Plain:
        """Return, as plain data, what `target` depends on besides the teacher and the data.

        What begins with `projection_` tells draws apart; targets of other draws serve as well.
        """
        ...

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        ...

    @property
    def sparse_temperature(self) -> float | None:
        """Return the softening of a `SparseTarget` that `total` can read; None if it reads none."""
        ...


@runtime_checkable
class ReadsLabels(Protocol):
    """A bound objective that may compare with the labels of the data."""

    @property
    def label_classes(self) -> int | None:
        """Return the number of classes that labels may have; None if labels are not read."""
        ...


def uncalibrated(objective: BoundObjective) -> Calibrates | None:
    """Return an objective that needs statistics before training; None if it needs none."""
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
        """Return the term bound to what both models show; `BindError` if they do not fit."""
        ...
