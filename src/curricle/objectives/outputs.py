"""How is a student's output compared with a teacher's, or with the labels of the data?

Both objectives read logits at the selected positions only, so a masked language model computes
its head where a token was masked and nowhere else. If the data select none, logits are matched
wherever the model gives them and the position holds data.

Axes: leading (example, position), row (counted positions), class.

Unit: nats a counted position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.data.labels import misplaced
from curricle.data.streams import Batch
from curricle.errors import BindError, CurricleError, DataError
from curricle.models.decisions import check_problem_type
from curricle.models.heads import LinearHead
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.chunked import (
    Chunk,
    RowLoss,
    chunked_cross_entropy,
    chunked_divergence,
    chunked_total,
)
from curricle.objectives.divergences import Divergence, ForwardKL
from curricle.objectives.losses import cross_entropy
from curricle.objectives.sparse import SparseTarget, sparse_forward_kl
from curricle.objectives.terms import (
    MOST_WEIGHT,
    BoundObjective,
    Reads,
    Rows,
    Sample,
    Target,
    check_classes,
    check_positions,
    logits_of,
    required,
)
from curricle.specs import Plain, value

LOGIT_AXES = 2
"""Axes of logits at the least: rows and classes."""
FEWEST_CLASSES = 2
"""A distribution over a single class is always the same."""


@final
@value
class MatchLogits:
    """Bring the student's output distribution close to the teacher's.

    Mean over selected positions, in nats, times `student_temperature**2` if `scale` says so.

    Source:
        Hinton et al. 2015 (arXiv 1503.02531) for the temperature; both papers of the curricula use
        student temperature 1 and no squared factor. Deviation: KL instead of soft cross-entropy
        (same gradient), so that the value is zero at a match.
    """

    kind: Literal["logits"] = "logits"
    divergence: Divergence = ForwardKL()
    """How the two distributions are compared."""
    teacher_temperature: float = Field(default=1.0, ge=0)
    """Softening of the teacher; dimensionless; 0 takes its arg-max as a label."""
    student_temperature: float = Field(default=1.0, gt=0)
    """Softening of the student; dimensionless, positive."""
    scale: Literal["none", "temperature_squared"] = "none"
    """`temperature_squared` multiplies by the squared student temperature, which keeps the
    gradient's size when both are softened alike."""
    num_classes: int | None = Field(default=None, gt=0)
    """How many classes count, the first ones, where vocabularies are padded to different sizes;
    None counts all, which must then be equally many."""
    chunk: Chunk | None = None
    """Positions whose logits are held at one time, for large vocabularies: a number, `auto` for
    256 MiB of a model's logits, on a CPU at most 512 positions, None for all. Heads must end in a
    linear map."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    def __post_init__(self) -> None:
        """Check that the divergence is finite at the temperatures."""
        self.divergence.check(
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's distribution."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return both logits, or what they come from."""
        check_problem_type(student, "student")
        check_problem_type(required(teacher, "teacher"), "teacher")
        if self.chunk is None:
            return Reads(student_logits=True, teacher_logits=True)
        return Reads(student_head=True, teacher_head=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "BoundLogits":
        """Return the term after checking the vocabularies.

        Raises:
            BindError: If the numbers of classes differ and it is not said which count, there are
                no two classes, or the positions of the logits are not those of the data.
        """
        del reads, is_residual
        shown = required(sample.teacher, "teacher")
        *leading, student = check_scores("student", _shape(self.chunk, sample.student))
        *others, teacher = check_scores("teacher", _shape(self.chunk, shown))
        if self.num_classes is None and student != teacher:
            raise BindError(
                f"'vocabulary' of student and teacher must be equal to match logits, unless "
                f"'num_classes' says how many of padded ones count; got {student} and {teacher} "
                f"classes"
            )
        if self.num_classes is not None and self.num_classes > min(student, teacher):
            raise BindError(
                f"'num_classes' must be at most the {student} and {teacher} classes of student and "
                f"teacher; got {self.num_classes}"
            )
        for owner, positions in (
            ("student", sample.student.positions),
            ("teacher", shown.positions),
        ):
            check_positions(f"'logits' of the {owner}", positions, sample.batch, kind=BindError)
        if leading != others:
            raise BindError(
                f"'logits' of student and teacher must have the same positions; "
                f"got {tuple(leading)} and {tuple(others)}"
            )
        everywhere = sample.batch.selected is None
        rows = Rows.of("'logits'", leading, sample.batch) if everywhere else None
        return BoundLogits(declared=self, rows=rows, known=self.num_classes or teacher)


def check_scores(who: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of logits after checking that they can be those of a distribution.

    Args:
        who: `student` or `teacher`.
        shape: Their shape; classes on the last axis.

    Raises:
        BindError: If there is one value an example or position.
    """
    if len(shape) < LOGIT_AXES or shape[-1] < FEWEST_CLASSES:
        raise BindError(
            f"'logits' of the {who} must have two classes or more to be compared as "
            f"probabilities; got shape {shape}, one value each, as in regression or for a binary "
            f"logit; a module that returns torch.cat([torch.zeros_like(z), z], dim=-1) has the two "
            f"classes of a binary logit z, and MatchHidden matches states of any model"
        )
    return shape


def _shape(chunk: Chunk | None, shown: Activations) -> tuple[int, ...]:
    """Return the shape of logits, also of those that are not computed."""
    if chunk is None:
        return tuple(logits_of(shown).shape)
    head = required(shown.head, "head")
    return (*head.states.shape[:-1], head.num_classes)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLogits:
    """`MatchLogits` with equal vocabularies."""

    declared: MatchLogits
    rows: Rows | None
    """Where the logits count; None at the selected positions."""
    known: int
    """Number of classes that count."""

    @property
    def target_facts(self) -> Plain:
        """Return what the target depends on besides the teacher and the data."""
        return {"kind": "logits", "num_classes": self.known}

    @property
    def reads_selected(self) -> bool:
        """Return whether only selected positions count."""
        return self.rows is None

    @property
    def sparse_temperature(self) -> float | None:
        """Return the teacher's; None for a divergence that needs all classes."""
        declared = self.declared
        return declared.teacher_temperature if isinstance(declared.divergence, ForwardKL) else None

    def count(self, batch: Batch) -> int:
        """Return the number of selected positions, or of all with data if none are selected."""
        return batch.num_selected if self.rows is None else self.rows.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row class"] | LinearHead:
        """Return the teacher's logits, or what they come from."""
        if self.declared.chunk is None:
            return self.logits(teacher, batch)
        return self._head(teacher, batch).detached

    def total(self, student: Activations, target: Target, batch: Batch) -> Float[Tensor, ""]:
        """Return the divergence summed over selected positions, in nats."""
        declared = self.declared
        found = required(target, "target")
        if not isinstance(found, LinearHead):
            total = self._known(student, found, batch)
        else:
            total = chunked_divergence(
                self._head(student, batch),
                found,
                declared.divergence,
                student_temperature=declared.student_temperature,
                teacher_temperature=declared.teacher_temperature,
                chunk=declared.chunk or "auto",
            )
        squared = declared.student_temperature**2
        return total * squared if declared.scale == "temperature_squared" else total

    def _known(
        self, student: Activations, target: Tensor | SparseTarget, batch: Batch
    ) -> Float[Tensor, ""]:
        """Return the divergence from a target that need not be multiplied out."""
        chunk, compare = self.declared.chunk, self._comparison(target)
        if chunk is not None:
            return chunked_total(self._head(student, batch), compare, chunk=chunk)
        return compare(self.logits(student, batch), slice(None))

    def _comparison(self, target: Tensor | SparseTarget) -> RowLoss:
        declared = self.declared
        if isinstance(target, Tensor):
            return lambda logits, rows: declared.divergence(
                logits,
                target[rows],
                student_temperature=declared.student_temperature,
                teacher_temperature=declared.teacher_temperature,
            )
        if target.temperature != declared.teacher_temperature:
            raise BindError(
                f"'teacher_temperature' must be {target.temperature:g}, with which the stored "
                f"targets were made; got {declared.teacher_temperature:g}"
            )
        return lambda logits, rows: sparse_forward_kl(
            logits, target.at(rows), student_temperature=declared.student_temperature
        )

    def logits(self, shown: Activations, batch: Batch) -> Float[Tensor, "row class"]:
        """Return the counted logits of either model."""
        logits = logits_of(shown)
        check_positions("'logits'", shown.positions, batch)
        if self.declared.num_classes is not None:
            logits = logits[..., : self.declared.num_classes]
        return logits if self.rows is None else self.rows.take(logits, batch)

    def _head(self, shown: Activations, batch: Batch) -> LinearHead:
        check_positions("'logits'", shown.positions, batch)
        head = required(shown.head, "head").first(self.declared.num_classes)
        if self.rows is None:
            return head
        return replace(head, states=self.rows.take(head.states, batch))

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        declared = self.declared
        softening = f"T={declared.teacher_temperature:g}"
        return "logits", f"{declared.weight:g} x {declared.divergence.kind} {softening}", "-", "-"


@final
@value
class FitLabels:
    """Fit the data's labels by cross-entropy; mean over labeled positions, in nats."""

    kind: Literal["labels"] = "labels"
    chunk: Chunk | None = None
    """As in `MatchLogits`. Where both have it, each multiplies out the student's logits."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    @property
    def needs_teacher(self) -> bool:
        """Return False: the target is in the data."""
        return False

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the student's logits, or what they come from."""
        del teacher
        check_problem_type(student, "student")
        return Reads(student_logits=self.chunk is None, student_head=self.chunk is not None)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term after checking the labels of the first batch.

        Raises:
            BindError: If the student's logits are not where the labels are, or have no two classes.
        """
        del reads, is_residual
        batch, shown = sample.batch, sample.student
        *leading, classes = check_scores("student", _shape(self.chunk, shown))
        check_positions("'logits' of the student", shown.positions, batch, kind=BindError)
        # Data without labels are refused when they are counted.
        if batch.labels is not None:
            _check_places(leading, batch, kind=BindError)
            check_classes(batch.labels, classes)
        return _BoundLabels(declared=self, label_classes=classes)


def _check_places(
    leading: Sequence[int], batch: Batch, *, kind: type[CurricleError] = DataError
) -> None:
    """Check that there are logits for each label; see `check_positions`."""
    if math.prod(leading) != batch.num_selected:
        places = "examples" if batch.selected is None else "selected positions"
        raise kind(
            f"'logits' must be one for each label, of the {batch.num_selected} {places}; got shape "
            f"{tuple(leading)}; labels with two axes, one a position, select positions"
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundLabels:
    """`FitLabels`, which needs nothing else."""

    declared: FitLabels
    label_classes: int
    """Number of classes of the student."""

    def count(self, batch: Batch) -> int:
        """Return the number of labeled positions.

        Raises:
            BindError: If the data have no labels.
        """
        if batch.labels is None:
            named = "" if isinstance(batch.inputs, Tensor) else f" of {[*batch.inputs]}"
            raise BindError(
                f"'labels' must be in the data to fit them, under that name; got batches{named} "
                f"without{misplaced(batch.inputs)}"
            )
        return batch.num_selected

    def target(self, teacher: Activations, batch: Batch) -> Tensor:
        """Return the labels; never asked for, since no teacher is needed."""
        del teacher
        return required(batch.labels, "labels")

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy summed over labeled positions, in nats."""
        del target
        labels, chunk = required(batch.labels, "labels"), self.declared.chunk
        check_positions("'logits'", student.positions, batch)
        if chunk is None:
            logits = logits_of(student)
            _check_places(logits.shape[:-1], batch)
            return cross_entropy(logits, labels)
        head = required(student.head, "head")
        _check_places(head.states.shape[:-1], batch)
        return chunked_cross_entropy(head, labels, chunk=chunk)

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        return "labels", f"{self.declared.weight:g} x cross-entropy", "-", "-"
