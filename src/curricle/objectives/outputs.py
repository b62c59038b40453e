"""How is a student's output compared with a teacher's, or with the labels of the data?

Both objectives read logits at the selected positions only, so a masked language model computes
its head where a token was masked and nowhere else. If the data select none, logits are matched
wherever the model gives them and the position holds data.

Axes: leading (example, position), row (counted positions), class.

Unit: nats a counted position.
"""

from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.data.streams import Batch
from curricle.errors import BindError
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.divergences import Divergence, ForwardKL
from curricle.objectives.losses import cross_entropy
from curricle.objectives.terms import (
    BoundObjective,
    Reads,
    Rows,
    Sample,
    required,
)
from curricle.specs import value


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
    weight: float = Field(default=1.0, gt=0)
    """Factor of the term in the stage's loss; positive."""

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
        """Return both logits."""
        del student
        required(teacher, "teacher")
        return Reads(student_logits=True, teacher_logits=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term after checking the vocabularies.

        Raises:
            BindError: If the numbers of classes differ.
        """
        del reads, is_residual
        *leading, student = required(sample.student.logits, "logits").shape
        teacher = required(required(sample.teacher, "teacher").logits, "logits").shape[-1]
        if student != teacher:
            raise BindError(
                f"'vocabulary' of student and teacher must be equal to match logits; "
                f"got {student} and {teacher} classes"
            )
        everywhere = sample.batch.selected is None
        rows = Rows.of("'logits'", leading, sample.batch) if everywhere else None
        return _BoundLogits(declared=self, rows=rows)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundLogits:
    """`MatchLogits` with equal vocabularies."""

    declared: MatchLogits
    rows: Rows | None
    """Where the logits count; None at the selected positions."""

    def count(self, batch: Batch) -> int:
        """Return the number of selected positions, or of all with data if none are selected."""
        return batch.num_selected if self.rows is None else self.rows.count(batch)

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row class"]:
        """Return the teacher's logits."""
        return self._rows(teacher, batch)

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the divergence summed over selected positions, in nats."""
        declared = self.declared
        total = declared.divergence(
            self._rows(student, batch),
            required(target, "target"),
            student_temperature=declared.student_temperature,
            teacher_temperature=declared.teacher_temperature,
        )
        squared = declared.student_temperature**2
        return total * squared if declared.scale == "temperature_squared" else total

    def _rows(self, shown: Activations, batch: Batch) -> Float[Tensor, "row class"]:
        logits = required(shown.logits, "logits")
        return logits if self.rows is None else self.rows.take(logits, batch)

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
    weight: float = Field(default=1.0, gt=0)
    """Factor of the term in the stage's loss; positive."""

    @property
    def needs_teacher(self) -> bool:
        """Return False: the target is in the data."""
        return False

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return the student's logits."""
        del student, teacher
        return Reads(student_logits=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        """Return the term."""
        del reads, sample, is_residual
        return _BoundLabels(declared=self)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundLabels:
    """`FitLabels`, which needs nothing else."""

    declared: FitLabels

    def count(self, batch: Batch) -> int:
        """Return the number of labeled positions.

        Raises:
            BindError: If the data have no labels.
        """
        if batch.labels is None:
            raise BindError("'labels' must be in the data to fit them; got batches without labels")
        return batch.num_selected

    def target(self, teacher: Activations, batch: Batch) -> Tensor:
        """Return the labels; never asked for, since no teacher is needed."""
        del teacher
        return required(batch.labels, "labels")

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy summed over labeled positions, in nats."""
        del target
        return cross_entropy(required(student.logits, "logits"), required(batch.labels, "labels"))

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        return "labels", f"{self.declared.weight:g} x cross-entropy", "-", "-"
