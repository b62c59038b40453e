"""Objective on logits of two vocabularies.

Two tokenizers have no classes in common by id, so a `comparison` decides which probabilities are
compared: those of equal rank, or those of groups of tokens with a common beginning. Positions are
those where both models have read the same text, so that both distributions are about the same
continuation: `matched` of the batch.

Axes: row (compared positions), class (of either vocabulary).

Unit: a compared position's probability, or nats, as of the comparison.
"""

from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.data.batch import Batch, Rows, check_positions
from curricle.errors import BindError
from curricle.models.model_notes import check_problem_type
from curricle.models.tapped import Activations, TappedModel
from curricle.objectives.base import MOST_WEIGHT, Reads, Sample, logits_of, require
from curricle.objectives.logits import check_scores, softening_words
from curricle.objectives.losses import cross_entropy
from curricle.objectives.vocabulary_groups import Comparison, SortedProbabilities
from curricle.values import value


@final
@value
class MatchPairedLogits:
    """Bring the student's output distribution close to that of a teacher with another tokenizer.

    loss = mean over compared positions of the comparison. With a `label_weight` L it is the mean
    over all selected positions of the comparison, 0 where the teacher has no counterpart, plus L
    times the cross-entropy of the label.

    Source:
        Boizard et al. 2024, universal logit distillation (arXiv 2402.12030), for the default; the
        paper adds the cross-entropy of the labels. Deviation: positions are paired where both
        tokenizers have read the same characters, and not by their number.
    """

    kind: Literal["paired_logits"] = "paired_logits"
    comparison: Comparison = SortedProbabilities()
    """Probabilities by rank, or by groups of tokens as from `curricle.token_groups`."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Softening of the teacher; dimensionless, positive."""
    student_temperature: float = Field(default=1.0, gt=0)
    """Softening of the student; dimensionless, positive."""
    label_weight: float = Field(default=0.0, ge=0, le=MOST_WEIGHT)
    """Factor of the cross-entropy of the labels, before `weight`. Probabilities by rank do
    not identify tokens, and positions without a counterpart of the teacher have labels alone."""
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT)
    """Factor of the term in the stage's loss; positive and at most a million."""

    @property
    def needs_teacher(self) -> bool:
        """Return True: the target is the teacher's distribution."""
        return True

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        """Return both logits."""
        check_problem_type(student, "student")
        check_problem_type(require(teacher, "teacher"), "teacher")
        return Reads(student_logits=True, teacher_logits=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> "_BoundPairedLogits":
        """Return the term after checking the positions.

        Raises:
            BindError: If a model has fewer than two classes, or the two have other positions.
        """
        del reads, is_residual
        teacher = require(sample.teacher, "teacher")
        batch = sample.batch
        student_shape, teacher_shape = (
            check_scores(role, tuple(logits_of(activations).shape))
            for role, activations in (("student", sample.student), ("teacher", teacher))
        )
        for role, positions in (
            ("student", sample.student.positions),
            ("teacher", teacher.positions),
        ):
            check_positions(f"'logits' of the {role}", positions, batch, kind=BindError)
        leading: tuple[int, ...] = student_shape[:-1]
        selected = batch.matched_selected
        if selected is not None:
            leading = tuple(selected.shape)
        if leading != teacher_shape[:-1]:
            raise BindError(
                f"'logits' of student and teacher must have the same compared positions; got "
                f"{leading} and {teacher_shape[:-1]}"
            )
        self.comparison.check(student_shape[-1], teacher_shape[-1])
        rows = Rows.of("'logits'", leading, batch) if batch.selected is None else None
        return _BoundPairedLogits(
            declared=self, rows=rows, num_classes=(student_shape[-1], teacher_shape[-1])
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _BoundPairedLogits:
    """`MatchPairedLogits` with the compared rows."""

    declared: MatchPairedLogits
    rows: Rows | None
    """Rows with counted logits; None for the selected positions."""
    num_classes: tuple[int, int]
    """Of student and teacher."""

    def count(self, batch: Batch) -> int:
        """Return the number of positions in the mean.

        Raises:
            BindError: If `label_weight` is positive and the data have no labels.
        """
        if self.declared.label_weight:
            if batch.labels is None:
                raise BindError(
                    f"'labels' must be in the data for 'label_weight' "
                    f"{self.declared.label_weight:g}; got batches without labels"
                )
            return batch.num_selected
        if self.rows is not None:
            return self.rows.count(batch.for_matching)
        return require(batch.matched_selected, "selected").numel()

    def target(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row class"]:
        """Return the teacher's logits at the compared positions."""
        logits = logits_of(teacher)
        return logits if self.rows is None else self.rows.take(logits, batch.for_matching)

    def total(self, student: Activations, target: Tensor | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss summed over the counted positions."""
        declared = self.declared
        total = declared.comparison(
            self._student_rows(student, batch),
            require(target, "target"),
            student_temperature=declared.student_temperature,
            teacher_temperature=declared.teacher_temperature,
        )
        if not declared.label_weight:
            return total
        labels = require(batch.labels, "labels")
        return total + declared.label_weight * cross_entropy(logits_of(student), labels)

    @property
    def label_classes(self) -> int | None:
        """Return the number of classes of labels; None if labels are not fitted."""
        return self.num_classes[0] if self.declared.label_weight else None

    def _student_rows(self, student: Activations, batch: Batch) -> Float[Tensor, "row class"]:
        logits = logits_of(student)
        check_positions("'logits'", student.positions, batch)
        if self.rows is not None:
            return self.rows.take(logits, batch.for_matching)
        if batch.matched is None:
            return logits
        return logits[batch.matched.flatten()[require(batch.selected, "selected")]]

    def describe(self) -> tuple[str, str, str, str]:
        """Return taps, objective, projection and widths in words."""
        declared = self.declared
        softening = softening_words(declared.teacher_temperature, declared.student_temperature)
        objective = f"{declared.comparison.kind} {softening}"
        if declared.label_weight:
            objective += f" + {declared.weight * declared.label_weight:g} x cross-entropy"
        widths = f"{self.num_classes[0]} <- {self.num_classes[1]}"
        return (
            "logits",
            f"{declared.weight:g} x {objective}",
            "-",
            widths,
        )
