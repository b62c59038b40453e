"""What happens in one training step?

The batch is cut into parts; for each part the teacher shows what the targets need, the student
runs as deep as the stage reads, and every objective adds its sum divided by the number of
positions of the *whole* batch. So the gradient does not depend on the number of parts.

Design: a stepper lives as long as a stage. Hooks are registered and parameters frozen once, when
it opens, and everything is put back when it closes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import vmap

from curricle import seeding
from curricle.data.blocks import Block
from curricle.data.streams import Batch
from curricle.errors import DataError, DivergenceError
from curricle.models.restoring import frozen_but
from curricle.models.tapped import Activations, Reader
from curricle.objectives.terms import BoundObjective, Target, check_positions, pending_calibration
from curricle.records import Spent
from curricle.teachers.live import LiveTeacher
from curricle.teachers.sharing import SharedTeacher
from curricle.training.batches import excess, guarded, located
from curricle.training.binding import BoundRun, BoundStage
from curricle.training.checkpoints import load_adapters
from curricle.training.costs import now
from curricle.training.prefetching import Prefetcher
from curricle.training.terms import adapters_of, opened, trained_beside

CALIBRATION_BATCHES = 8
"""Batches of the stream over which an objective may take statistics of the teacher."""


@final
@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The loss of one step, still on its device."""

    totals: list[Tensor]
    """Each objective's sum over the positions of the whole batch."""
    counts: list[int]
    """Number of those positions, at least 1."""
    weights: list[float]
    """Factor of each objective in the stage's loss."""

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
        """Return whether every sum is finite; waits for the device."""
        return all(math.isfinite(total.item()) for total in self.totals)


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """What one step reads."""

    counts: list[int]
    """Number of positions that each objective is a mean over, at least 1."""
    parts: list[tuple[Batch, list[Target] | None]]
    """The batch in parts, and what each objective compares the student with; None if that is still
    to be asked for."""


@final
class Stepper:
    """Runs the steps of one stage."""

    def __init__(
        self,
        run: BoundRun,
        stage: BoundStage,
        optimizer: torch.optim.Optimizer,
        *,
        student: Reader,
        teacher: Reader | None,
    ) -> None:
        """Take what `stepping` has opened."""
        self.run, self.stage, self.optimizer = run, stage, optimizer
        self._student = student
        self._teacher = None if teacher is None else guarded(run.tables, "teacher", teacher)
        self._terms = opened(stage.terms)
        self.adapters = adapters_of(self._terms)
        """What trains beside the student while the stage runs."""
        self.calibration = Spent()
        """What the teacher's statistics have cost, for objectives that ask for them."""
        self.with_others: Callable[[int], StepOutcome | None] | None = None
        """Gives the outcome of a step that was taken with others, if it was: with those of other
        students, or with those that follow."""
        self.ahead: Callable[[], int] = lambda: 0
        """Gives the number of steps that the weights are ahead, of those that go as one call."""
        self.until = 0
        """The step before which nobody looks at the weights: those before it may be taken ahead."""
        self.prefetcher: Prefetcher[Prepared] | None = None
        """Makes the next step ready while one runs, if it shall."""
        self.weights = [term.weight for term in stage.terms]
        self._parts = run.settings.accumulation
        self._device = run.settings.torch_device()
        self._parameters = [*run.student.module.parameters(), *self.adapters.parameters()]
        self._checks_each_step = self._device.type == "cpu"
        self._autocast = run.settings.autocast
        self._teacher_autocast = run.settings.teacher_autocast

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        run, stage = self.run, self.stage
        optimizer, declared = run.optimizer, stage.declared
        if declared.schedule == "own":
            factor = optimizer.schedule.factor(step - stage.start, stage.end - stage.start)
        else:
            factor = optimizer.schedule.factor(step, run.num_steps)
        return optimizer.learning_rate * factor * declared.learning_rate_scale

    def step(self, step: int) -> StepOutcome:
        """Run one step.

        Args:
            step: Its number, counted over the whole run.

        Returns:
            The loss of the step.

        Raises:
            DataError: If a batch cannot be read by a model; it is said where.
            DivergenceError: If the loss is not finite; the weights are those before the step.
        """
        with located(self.stage.declared.name, step, self.run.seed):
            return self._take(step)

    def _take(self, step: int) -> StepOutcome:
        if (outcome := self._joined(step)) is not None:
            return outcome
        if self.prefetcher is None:
            prepared = self.prepared(step)
        else:
            prepared = self.prefetcher.take(step, ahead=step + 1 < self.until)
        for parameter in self._parameters:
            parameter.grad = None
        with self._noise(step):
            outcome = self._accumulate(prepared)
        if self._checks_each_step:
            self.check(outcome, step)
        clip = self.run.settings.clip_norm
        if clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, clip)
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return outcome

    def _joined(self, step: int) -> StepOutcome | None:
        """Return the outcome of a step that was taken with others; None if it was not.

        Raises:
            DataError: If the students' tables have too few positions for the batch.
            IndexError: If something else was looked up in vain.
        """
        if self.with_others is None:
            return None
        try:
            return self.with_others(step)
        except IndexError as error:
            # Traced passes are not guarded: what they hold must be a function of tensors.
            words = excess(self.run.tables, "student", self.run.stream.batch(step).inputs)
            if not words:
                raise
            raise DataError(f"{words}; its forward pass says: {error}") from error

    def _noise(self, step: int) -> AbstractContextManager[None]:
        """Return the context of a step whose model draws from global generators, if it does."""
        run = self.run
        if not run.draws_noise and not run.draws_foreign_noise:
            return nullcontext()
        return seeding.scoped(run.seed, "noise", step, beyond_torch=run.draws_foreign_noise)

    def check(self, outcome: StepOutcome, step: int) -> None:
        """Check that a loss is finite.

        Raises:
            DivergenceError: If it is not.
        """
        if not outcome.is_finite:
            raise DivergenceError(
                f"'loss' must be finite; got {outcome.loss.item()} in stage "
                f"{self.stage.declared.name!r} at step {step} with seed {self.run.seed}"
            )

    def check_weights(self, step: int) -> None:
        """Check that the weights after a step are finite, which a finite loss does not tell.

        Raises:
            DivergenceError: If they are not.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self._parameters):
            raise DivergenceError(
                f"'weights' must be finite; they are not in stage {self.stage.declared.name!r} "
                f"after step {step} with seed {self.run.seed}"
            )

    def check_trained(self, step: int) -> None:
        """Check that what the stage has trained is finite when it ends, before it is kept.

        Raises:
            DivergenceError: If it is not; the first weight is named.
        """
        named = self.run.student.module.named_parameters()
        trained = [(name, one) for name, one in named if name in self.stage.trained]
        for name, parameter in [*trained, *self.adapters.named_parameters("adapters")]:
            if not bool(parameter.isfinite().all()):
                raise DivergenceError(
                    f"'weights' must be finite; {name!r} is not in stage "
                    f"{self.stage.declared.name!r} after step {step} with seed {self.run.seed}"
                )

    def calibrate(self) -> None:
        """Give objectives that ask for it the teacher's statistics over the first batches."""
        # Stored targets have what the capture has calibrated.
        needy = [
            None if term.stored is not None else pending_calibration(term.objective)
            for term in self._terms
        ]
        if not any(needy):
            return
        begins = now(self._device)
        with torch.no_grad(), self._teacher_autocast():
            shown = [self._show(self.batch(step)) for step in range(CALIBRATION_BATCHES)]
        self._terms = tuple(
            term if objective is None else replace(term, objective=objective.calibrated(shown))
            for term, objective in zip(self._terms, needy, strict=True)
        )
        stream = self.run.stream
        self.calibration = Spent(
            examples=CALIBRATION_BATCHES * stream.batch_size,
            tokens=CALIBRATION_BATCHES * stream.tokens_per_batch,
            teacher_flops=CALIBRATION_BATCHES * self.stage.plan.teacher_flops,
            seconds=now(self._device) - begins,
        )

    def batch(self, step: int) -> Batch:
        """Return the batch of a step on the device."""
        return self.run.stream.batch(step).to(self._device)

    def _show(self, batch: Batch) -> tuple[Activations, Batch]:
        if self._teacher is None:
            return Activations({}), batch
        return self._teacher(batch.inputs, batch.selected), batch

    def counts(self, batch: Batch) -> list[int]:
        """Return the number of positions that each objective is a mean over, at least 1."""
        return [term.objective.count(batch) or 1 for term in self._terms]

    def prepared(self, step: int) -> Prepared:
        """Return what a step reads, with targets if they are prefetched."""
        batch = self.run.stream.batch(step)
        counts = self.counts(batch)
        parts = [part.to(self._device) for part in batch.split(self._parts)]
        is_early = self.run.settings.prefetch == "targets"
        return Prepared(counts, [(one, self.targets(one) if is_early else None) for one in parts])

    def _accumulate(self, prepared: Prepared) -> StepOutcome:
        counts = prepared.counts
        scales = [weight / count for weight, count in zip(self.weights, counts, strict=True)]
        each = [self._part(batch, targets, scales) for batch, targets in prepared.parts]
        totals = (
            each[0]
            if len(each) == 1
            else [torch.stack(one).sum() for one in zip(*each, strict=True)]
        )
        return StepOutcome(totals, counts, self.weights)

    def _part(
        self, batch: Batch, targets: list[Target] | None, scales: Sequence[float]
    ) -> list[Tensor]:
        targets = self.targets(batch) if targets is None else targets
        totals = self.totals(
            batch, targets, read=guarded(self.run.tables, "student", self._student)
        )
        # Weights and counts enter as the gradient of the sums: no kernel is spent on them.
        torch.autograd.backward(
            totals,
            [torch.full_like(total, scale) for total, scale in zip(totals, scales, strict=True)],
        )
        return [total.detach() for total in totals]

    def targets(self, batch: Batch) -> list[Target]:
        """Return what each objective compares the student with; None without a teacher."""
        with torch.no_grad(), self._teacher_autocast():
            shown = None
            if self._teacher is not None:
                shown = self._teacher(batch.inputs, batch.selected)
            return [term.target(shown, batch) for term in self._terms]

    def targets_of(self, block: Block) -> list[Target]:
        """Return what `targets` gives for each batch of a block, along a new first axis."""
        if self._teacher is None:
            return [None] * len(self._terms)
        with torch.no_grad(), self._teacher_autocast():
            whole = block.whole
            shown = self._teacher(whole.inputs, whole.selected)
            # Inside `vmap` nothing is known of it any more.
            check_positions("'logits'", shown.positions, whole)
            logits = {} if shown.logits is None else {"logits": shown.logits}
            seen = block.cut({"hidden": shown.hidden, **logits}), block.parts
            return [
                vmap(partial(_target, term.objective))(*seen) if term.needs_teacher else None
                for term in self._terms
            ]

    def totals(
        self, batch: Batch, targets: Sequence[Target], *, read: Reader | None = None
    ) -> list[Tensor]:
        """Return each objective's sum over the positions of a batch, with gradient.

        Args:
            batch: The batch.
            targets: What each objective compares the student with.
            read: Runs the student; None takes its open reading as it is, which can be traced.
        """
        with self._autocast():
            student = (read or self._student)(batch.inputs, batch.selected)
        return [
            term.objective.total(student, target, batch)
            for term, target in zip(self._terms, targets, strict=True)
        ]


def _target(objective: BoundObjective, shown: dict[str, Any], batch: dict[str, Any]) -> Target:
    return objective.target(Activations(**shown), Batch(**batch))


@contextmanager
def stepping(
    run: BoundRun,
    stage: BoundStage,
    optimizer: torch.optim.Optimizer,
    *,
    resumed: Path | None = None,
) -> Iterator[Stepper]:
    """Open a stage: switch the teacher, register hooks, freeze what the stage does not train.

    Args:
        run: The run.
        stage: One of its stages.
        optimizer: Moves the student, and the adapters of the stage as long as it is open.
        resumed: Checkpoint from which the stage goes on; None begins it.

    Yields:
        What runs the steps.
    """
    with ExitStack() as stack:
        teacher: Reader | None = None
        if isinstance(run.teacher, (LiveTeacher, SharedTeacher)) and any(
            term.asks_teacher for term in stage.terms
        ):
            wanted = stage.reads
            teacher = stack.enter_context(
                run.teacher.reading(
                    stage.declared.teacher,
                    wanted.teacher,
                    logits=wanted.teacher_logits,
                    head=wanted.teacher_head,
                )
            )
        student = stack.enter_context(
            run.student.reading(
                stage.reads.student,
                logits=stage.reads.student_logits,
                head=stage.reads.student_head,
            )
        )
        stack.enter_context(frozen_but(run.student.module, stage.trained))
        stack.callback(run.student.module.zero_grad)
        stepper = Stepper(run, stage, optimizer, student=student, teacher=teacher)
        decay = run.optimizer.weight_decay
        stack.enter_context(trained_beside(optimizer, stepper.adapters, weight_decay=decay))
        if resumed is not None and len(stepper.adapters):
            load_adapters(resumed, stepper.adapters, optimizer)
        stepper.calibrate()
        if run.settings.prefetch != "none":
            made_ahead = Prefetcher(stepper.prepared, run.settings.torch_device())
            stepper.prefetcher = stack.enter_context(made_ahead)
        yield stepper
