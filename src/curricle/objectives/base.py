"""Interfaces of the terms of a stage's loss.

An *objective* is a frozen value that declares which activations of student and teacher are read and
how they are compared. Binding it to models gives a `BoundObjective`, which computes a *target* from
the teacher's activations (without gradient) and the loss against it, summed over positions.

Axes: leading (example, position), row (counted positions), width, selected, class.

Scale: every objective returns a sum over positions; the engine divides by the number of positions
of the full batch, so gradient accumulation and several ranks give the mean over the full batch.

Design: user code may define objectives; any object with the methods of `Objective` is accepted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.label_checks import require_classes
from curricle.errors import BindError, CurricleError, DataError
from curricle.models.tapped import Activations, Place, TappedModel
from curricle.objectives.frames import FrameCounter
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


def check_group(
    batch: Batch, size: int, user: str, *, kind: type[CurricleError] = DataError
) -> None:
    """Check that consecutive examples of a batch are declared to belong together.

    Args:
        batch: The batch.
        size: Examples of a group.
        user: Purpose of the groups, in error messages, with their members.
        kind: Class of the error: `BindError` while binding.
    """
    if batch.group == size:
        return
    got = "examples by themselves" if batch.group == 1 else f"groups of {batch.group}"
    raise kind(
        f"'group' of the batches must be {size} for {user}; got {batch.group}, which are {got}; "
        f"TextCollator declares the texts of a row, and a collate function curricle.Batch(..., "
        f"group={size})"
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


def refuse_embeddings(role: str, activations: Activations, loss: str) -> None:
    """Check that outputs are scores of classes and not embeddings of texts.

    Args:
        role: `student` or `teacher`.
        activations: Its activations.
        loss: Name of the loss that needs classes.

    Raises:
        BindError: If they are embeddings by their name.
    """
    if activations.are_embeddings:
        raise BindError(
            f"outputs of the {role} must be scores of classes for {loss}; got sentence embeddings; "
            f"'objective' of one_shot, or 'final_objective' of other strategies, may be "
            f"curricle.MatchEmbeddings() for equal widths or curricle.MatchSimilarities()"
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
    student_frames: FrameCounter | None = None
    """Counter of the student's frames, where its states may have frames of the samples in the data;
    None if it has none."""
    teacher_frames: FrameCounter | None = None
    """Counter of the teacher's frames; None if it has none."""
    common_classes: int | None = None
    """Number of leading classes that stand for the same tokens in both models; None if their
    tokenizers are unknown or equal."""
    models: tuple[TappedModel, TappedModel] | None = None
    """Student and teacher, for an objective that reads weights of one of them; None for others."""
    student_weights: bool = False
    """Whether the student's weights are read in every step, which must then be whole."""


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

    Optional attributes, read by the functions in parentheses:

    - `adapter`: module trained beside the student, or None (`adapters.adapter_of`);
    - `label_classes`: number of classes of labels, or None if labels are not read
      (`label_classes`); `check_labels(labels)`: another check of labels (`label_check`);
    - `compares_examples`: whether the loss of an example depends on the others of its batch, which
      micro-batches would separate (`compares_examples`);
    - `wants_calibration` and `calibrated(teachers)`: whether statistics of the teacher's
      activations are needed before training, and the function that computes them over some batches
      and returns the objective that holds them (`pending_calibration`);
    - `explained_rows(student, target, batch)` and `explained_share(pairs)`: how much of the
      targets the student's outputs explain (`ExplainedObjective`);
    - `target_facts`, `reads_selected` and `sparse_temperature`: see `TargetDescription`
      (`target_description`).
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


def compares_examples(objective: BoundObjective) -> bool:
    """Return whether the loss of an example depends on the others of its batch."""
    return bool(getattr(objective, "compares_examples", False))


@runtime_checkable
class ExplainedObjective(Protocol):
    """Objective that shows how much of its targets the student explains."""

    def explained_rows(
        self, student: Activations, target: Target, batch: Batch
    ) -> tuple[Tensor, Tensor] | None:
        """Return some rows of the student's outputs and of the target; None if there are none."""
        ...

    def explained_share(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
        """Return the explained share of the targets in such rows, at most 1."""
        ...


def explained_objective(objective: BoundObjective) -> ExplainedObjective | None:
    """Return an objective that shows the explained share of its targets; None for others."""
    return objective if conforms(objective, ExplainedObjective) else None


Calibration = Callable[[Iterable[tuple[Activations, Batch]]], BoundObjective]
"""Function that computes statistics of a teacher's activations over some batches and returns the
objective that holds them."""


def pending_calibration(objective: BoundObjective) -> Calibration | None:
    """Return the calibration of an objective before training; None if it needs none."""
    is_pending = getattr(objective, "wants_calibration", False)
    calibration: Calibration | None = getattr(objective, "calibrated", None)
    return calibration if is_pending else None


def label_classes(objective: BoundObjective) -> int | None:
    """Return the number of classes of an objective's labels; None if it reads no labels."""
    classes: int | None = getattr(objective, "label_classes", None)
    return classes


def label_check(objective: BoundObjective) -> Callable[[Tensor], None] | None:
    """Return the check of a batch's labels for an objective; None if it reads no labels.

    It raises `DataError`, and reads values, so it belongs where batches are on the CPU.
    """
    check: Callable[[Tensor], None] | None = getattr(objective, "check_labels", None)
    classes = label_classes(objective)
    if check is None and classes is not None:
        return partial(check_classes, num_classes=classes, where="")
    return check


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TargetDescription:
    """Description of targets that may be precomputed and read by other runs."""

    facts: Plain
    """Dependencies of `target` besides the teacher and the data, as plain data. Keys with the
    prefix `projection_` identify a random projection; targets of another one are equally valid."""
    reads_selected: bool
    """Whether only selected positions count."""
    sparse_temperature: float | None
    """Temperature of a `SparseTarget` for `total`; None if it accepts none."""


def target_description(objective: BoundObjective) -> TargetDescription | None:
    """Return the description of an objective's targets; None if they cannot be stored."""
    names = ("target_facts", "reads_selected", "sparse_temperature")
    if not all(hasattr(objective, name) for name in names):
        return None
    facts, reads_selected, temperature = (getattr(objective, name) for name in names)
    return TargetDescription(
        facts=facts, reads_selected=reads_selected, sparse_temperature=temperature
    )


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
