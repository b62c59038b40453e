"""Loss of one stage: counts, targets and differentiable sums of its objectives.

`StageLoss` holds the forward passes of both models, opened as deep as the stage reads, and the
bound objectives. It is independent of optimizers, schedules, streams and placement, so the same
object serves the eager loop, prefetching (`targets` in a second thread), several students in one
batched model (`sums` as a function of the weights), target capture (`targets` alone) and compiled
steps.

Axes: as in `data.streams`; a sum has none.

Design: `sums` returns sums over positions and not means. The caller divides by the
number of positions of the whole batch, so that the gradient depends neither on the number of
micro-batches nor, later, on the number of processes.
"""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.models.tapped import Activations, Forward
from curricle.objectives.base import Target, pending_calibration
from curricle.teachers.live import LiveTeacher, TeacherForward, aligned
from curricle.teachers.shared import SharedTeacher
from curricle.training.binding.batches import TableLimit, run_forward
from curricle.training.binding.bound_objectives import Term, adapters_of, copy_trainable_terms
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.setup.settings import TrainingSettings

CALIBRATION_BATCHES = 8
"""Batches of the stream over which an objective may take statistics of the teacher."""


@final
@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of one step, not read from a GPU yet."""

    totals: list[Tensor]
    """Each objective's sum over the positions of the whole batch."""
    counts: list[int]
    """Number of those positions, at least 1."""
    weights: list[float]
    """Factor of each objective in the stage's loss."""
    fault: str = ""
    """Sentence about a step whose update was left out; empty for one that was applied."""
    note: str = ""
    """Sentence about a lack of memory, after which the step was taken in smaller micro-batches."""

    @property
    def terms(self) -> list[Tensor]:
        """Return the mean of each objective, unweighted."""
        return [total / count for total, count in zip(self.totals, self.counts, strict=True)]

    @property
    def loss(self) -> Tensor:
        """Return the weighted sum of the means."""
        weighted = zip(self.weights, self.terms, strict=True)
        return torch.stack([weight * term for weight, term in weighted]).sum()

    @property
    def is_finite(self) -> bool:
        """Return whether every sum is finite; waits for a GPU."""
        # A list and no generator, which costs a step of a small model more than the reads.
        return all([math.isfinite(total.item()) for total in self.totals])  # noqa: C419


@final
class StageLoss:
    """Loss of one stage as a function of a batch."""

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        settings: TrainingSettings,
        tables: Sequence[TableLimit] = (),
        student: Forward | None,
        teacher: TeacherForward | None,
    ) -> None:
        """Take opened forward passes.

        Args:
            terms: The bound objectives of the stage.
            settings: Precision of the passes.
            tables: Limits of the embeddings, which explain a failing pass.
            student: Forward pass of the student; None where only targets are made.
            teacher: Forward pass of the teacher; None if the stage needs none.
        """
        # The bound terms keep the first values of adapters, from which the stage begins again when
        # an interrupted run enters it anew.
        self.terms = copy_trainable_terms(terms)
        """The objectives; those with an adapter are copies of the declared ones."""
        self.adapters = adapters_of(self.terms)
        """Modules of the objectives that train beside the student."""
        self.weights = [term.weight for term in terms]
        """Factor of each objective in the loss."""
        self._student, self._teacher, self._tables = student, teacher, tables
        self._has_targets = teacher is not None or any(term.stored is not None for term in terms)
        # Looked up once: a pass of a small model takes as long as a few lookups of the placement.
        placement = settings.placement
        self._autocast: Callable[[], AbstractContextManager[object]] = partial(
            placement.autocast, settings.precision
        )
        self.teacher_autocast: Callable[[], AbstractContextManager[object]] = partial(
            placement.autocast, settings.precision_of_teacher
        )
        """Context in which targets are computed."""

    def counts(self, *batches: Batch) -> list[int]:
        """Return the number of positions of each objective's mean, at least 1.

        Args:
            *batches: The batch of a step, or all micro-batches of it.
        """
        # Where nothing is counted the sum is 0, which a division by 0 would make NaN.
        return [sum(map(term.objective.count, batches)) or 1 for term in self.terms]

    def scales(self, counts: Sequence[int]) -> list[float]:
        """Return the factor of each objective's sum in the loss.

        Args:
            counts: Number of positions of the whole batch for each objective.
        """
        return [weight / count for weight, count in zip(self.weights, counts, strict=True)]

    def student_states(self, batch: Batch, *, is_traced: bool = False) -> Activations:
        """Return the student's activations at the places that the stage reads, with gradient.

        Args:
            batch: The batch, or a part of it.
            is_traced: Whether the pass is traced or batched, where errors of the model cannot be
                explained by looking at the batch.
        """
        student = self._student
        assert student is not None  # noqa: S101 - opened for targets alone
        # Entered for each pass: torch keeps the casts of weights until the outermost autocast ends,
        # and weights move between steps.
        with self._autocast():
            if is_traced:
                return student(batch.inputs, batch.selected)
            return run_forward(
                lambda: student(batch.inputs, batch.selected), batch.inputs, "student", self._tables
            )

    def teacher_states(self, batch: Batch) -> Activations | None:
        """Return the teacher's activations at the student's positions, without gradient.

        Returns:
            The activations; None without a teacher.
        """
        with torch.no_grad(), self.teacher_autocast():
            return self._teacher_states(batch)

    def _teacher_states(self, batch: Batch) -> Activations | None:
        teacher, side = self._teacher, batch.for_teacher
        if teacher is None:
            return None
        states = run_forward(
            lambda: teacher(side.inputs, side.selected, batch.key),
            side.inputs,
            "teacher",
            self._tables,
        )
        # Without inputs of its own the teacher reads the batch itself: nothing is to be aligned.
        return states if side is batch else aligned(states, batch)

    def targets(self, batch: Batch, objectives: Container[int] | None = None) -> list[Target]:
        """Return the target of each objective, without gradient; None for one without a teacher.

        Args:
            batch: The batch, or a part of it.
            objectives: Numbers of the objectives to compute targets for; None for all.
        """
        if not self._has_targets:
            return [None] * len(self.terms)
        indexes = range(len(self.terms)) if objectives is None else objectives
        # Targets belong to the teacher's pass: its precision is theirs, also in a capture.
        with torch.no_grad(), self.teacher_autocast():
            states = self._teacher_states(batch)
            return [
                _target(term, states, batch) if number in indexes else None
                for number, term in enumerate(self.terms)
            ]

    def sums(
        self, batch: Batch, targets: Sequence[Target], *, is_traced: bool = False
    ) -> list[Tensor]:
        """Return each objective's sum over the positions of a batch, with gradient.

        Args:
            batch: The batch, or a part of it.
            targets: Result of `targets` for the same part.
            is_traced: As in `student_states`.
        """
        states = self.student_states(batch, is_traced=is_traced)
        return [
            term.objective.total(states, target, batch)
            for term, target in zip(self.terms, targets, strict=True)
        ]

    def calibrate(self, batches: Callable[[], Iterator[Batch]]) -> bool:
        """Give the objectives that need them the teacher's statistics.

        Args:
            batches: Returns the first batches of the stream; not called if nothing is needed.

        Returns:
            Whether the teacher was run.
        """
        # Stored targets contain the statistics of the capture already.
        pending = [
            None if term.stored is not None else pending_calibration(term.objective)
            for term in self.terms
        ]
        if not any(pending):
            return False
        states = [(self.teacher_states(batch) or Activations({}), batch) for batch in batches()]
        # Outside of autocast, in training and in a capture alike, so that stored and live targets
        # are centered on the same mean.
        with torch.no_grad():
            # New terms: the bound ones stay without statistics, so every entry into the stage takes
            # them anew.
            self.terms = tuple(
                term if calibrate is None else replace(term, objective=calibrate(states))
                for term, calibrate in zip(self.terms, pending, strict=True)
            )
        return True


def gradients_of_sums(sums: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Return the gradient of the loss, the weighted sum of means, with respect to each sum.

    Args:
        sums: Result of `StageLoss.sums`, or those of several students along one axis.
        scales: Result of `StageLoss.scales`.
    """
    return [torch.full_like(total, scale) for total, scale in zip(sums, scales, strict=True)]


def _target(term: Term, states: Activations | None, batch: Batch) -> Target:
    if term.stored is not None:
        # The objective counts the rows: a classifier has one an example, whatever the number of
        # positions with data.
        return term.stored.target(batch, term.objective.count(batch))
    if states is None or not term.needs_teacher:
        return None
    return term.objective.target(states, batch)


@contextmanager
def open_stage_loss(
    run: BoundRun, stage: BoundStage, *, only_targets: bool = False
) -> Iterator[StageLoss]:
    """Open the forward passes of a stage: load its teacher and register hooks.

    Args:
        run: The run.
        stage: One of its stages.
        only_targets: Whether the student stays closed.

    Yields:
        The loss of the stage.
    """
    reads = stage.reads
    with ExitStack() as stack:
        teacher: TeacherForward | None = None
        # A stage of labels or stored targets loads no checkpoint and runs no pass.
        if isinstance(run.teacher, (LiveTeacher, SharedTeacher)) and any(
            term.runs_teacher for term in stage.terms
        ):
            opening = run.teacher.open_taps(
                stage.declared.teacher,
                reads.teacher,
                logits=reads.teacher_logits,
                head=reads.teacher_head,
            )
            teacher = stack.enter_context(opening)
        student: Forward | None = None
        if not only_targets:
            student = stack.enter_context(
                run.student.open_taps(
                    reads.student, logits=reads.student_logits, head=reads.student_head
                )
            )
        yield StageLoss(
            stage.terms,
            settings=run.settings,
            tables=run.tables,
            student=student,
            teacher=teacher,
        )
