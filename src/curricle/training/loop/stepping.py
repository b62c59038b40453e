"""Optimizer steps of one stage.

A step reads its batch, computes the targets and the sums of `StageLoss` for each micro-batch, takes
the gradient of the weighted means over the whole batch, clips it and updates the weights. A
`Stepper` lives as long as its stage: hooks are registered and parameters frozen when it opens, and
everything is put back when it closes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.finiteness import non_finite_words
from curricle.errors import DivergenceError, OutOfMemoryError, short_reason
from curricle.memory import is_out_of_memory
from curricle.models.inference import compiled_blocks
from curricle.models.restoring import frozen_but
from curricle.models.shares import whole
from curricle.objectives.adapters import methods_of
from curricle.objectives.base import Target, compares_examples
from curricle.records import Usage
from curricle.training.binding.batches import LocatedErrors
from curricle.training.binding.bound_objectives import adapters_in_optimizer, begin_adapters
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.loop.checkpoints import load_adapters
from curricle.training.loop.prefetching import Prefetcher
from curricle.training.loop.recovery import FAILED, Recovery
from curricle.training.loop.stage_loss import (
    CALIBRATION_BATCHES,
    StageLoss,
    StepLoss,
    gradients_of_sums,
    open_stage_loss,
)
from curricle.training.setup.divergence import SkipSteps

MOST_INSPECTED_STEPS = 100
"""Steps whose inputs are inspected after a non-finite loss, where not every loss is checked."""

Buffers = list[tuple[Tensor, Tensor]]
"""Buffers, each with a copy of its values."""
TakeSteps = Callable[[int, int], list[StepLoss]]
"""Function of `first` and `stop` that takes one or more optimizer steps, from `first` on and before
`stop`, and returns the loss of each. No record, evaluation or checkpoint is due between them."""


def _restore(copies: Buffers) -> None:
    for buffer, values in copies:
        buffer.copy_(values)


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """Inputs of one step."""

    counts: list[int]
    """Number of positions of each objective's mean, at least 1."""
    parts: list[tuple[Batch, list[Target] | None]]
    """The micro-batches, each with the targets of all objectives; None if they are not computed
    yet."""


def _sizes(prepared: Prepared) -> tuple[int, int]:
    """Return the number of examples of a step, and of its micro-batches."""
    return sum(batch.num_examples for batch, _ in prepared.parts), len(prepared.parts)


def _is_finite(weight: Tensor) -> bool:
    """Return whether a weight is finite, in every process that holds a share of it."""
    return bool(whole(weight.isfinite().all()))


@final
class Stepper:
    """Eager steps of one stage."""

    def __init__(
        self,
        run: BoundRun,
        stage: BoundStage,
        optimizer: torch.optim.Optimizer,
        loss: StageLoss,
        *,
        start: int,
        unsummed: Callable[[], AbstractContextManager[object]] = nullcontext,
        recovery: Recovery | None = None,
    ) -> None:
        """Take the parts that `stepping` has opened."""
        self._unsummed = unsummed
        self.recovery = recovery or Recovery(run.settings)
        """Judges the loss of each step."""
        self.start = start
        """First step of the stage."""
        self.run, self.stage, self.optimizer, self.loss = run, stage, optimizer, loss
        self.calibration = Usage()
        """Cost of the teacher's statistics, for objectives that need them."""
        self.prefetcher: Prefetcher[Prepared] | None = None
        """Prepares the next step in a second thread; None prepares each step when it is taken."""
        self.num_taken = 0
        """Steps taken since the stage was opened."""
        self._placement = run.settings.placement
        self._num_processes = self._placement.num_processes
        # Gradients of adapters are part of the norm by which all are clipped.
        self._parameters = [*run.student.module.parameters(), *loss.adapters.parameters()]
        self._prepares = methods_of(loss.adapters, "prepare")
        # Looked up once, as properties cost a step of a small model time.
        self._num_steps, self._is_noisy = run.num_steps, run.is_noisy
        # On a GPU a look at every loss would wait for each step.
        self._checks_each_step = not self._placement.is_queued or run.settings.checks_each_loss
        self._can_skip = isinstance(run.settings.on_divergence, SkipSteps)
        self._can_halve = run.settings.on_out_of_memory == "halve"

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        run, stage = self.run, self.stage
        optimizer, declared = run.optimizer, stage.declared
        if declared.schedule == "own":
            # Of planned lengths: when a rule ends the stage is not known yet.
            factor = optimizer.schedule.factor(step - self.start, stage.span.most)
        else:
            factor = optimizer.schedule.factor(step, self._num_steps)
        rate = optimizer.learning_rate * factor * declared.learning_rate_scale
        return rate * self.recovery.learning_rate_scale

    def take(self, first: int, stop: int) -> list[StepLoss]:
        """Take one step; the following is prefetched unless it is `stop`; see `TakeSteps`.

        Returns:
            The loss of the step, in a list.
        """
        return [self.step(first, stop=stop)]

    def step(self, step: int, *, stop: int = 0) -> StepLoss:
        """Take one step.

        Args:
            step: Its number, counted over the whole run.
            stop: Step before which steps may be prefetched.

        Returns:
            The loss of the step.

        Raises:
            DataError: If a batch cannot be read by a model; the stage and the step are named.
            DivergenceError: If the loss is not finite; the weights are those before the step.
            OutOfMemoryError: If the memory does not suffice.
        """
        with LocatedErrors(self.stage.declared.name, step, self.run.seed):
            return self._update(self._inputs(step, stop), step)

    def _inputs(self, step: int, stop: int) -> Prepared:
        """Return the inputs of a step, prefetched or not.

        Raises:
            OutOfMemoryError: If the memory does not suffice for them.
            RuntimeError: Any other of the stream or the teacher.
        """
        try:
            if self.prefetcher is None:
                return self.prepared(step)
            return self.prefetcher.take(step, ahead=step + 1 < stop)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            examples = self.run.stream.batch_size // self._num_processes
            remedies = "a smaller batch" if self.prefetcher is None else "prefetch='none'"
            raise OutOfMemoryError(
                self._shortage("inputs", step, examples, self.recovery.micro_batches)
                + f"; choose {remedies}: {short_reason(error)}"
            ) from error

    def prepared(self, step: int) -> Prepared:
        """Return the inputs of a step, with targets if these are prefetched."""
        batch = self.run.stream.batch(step)
        # Counted before the batch is split among micro-batches and processes: each part of the loss
        # is divided by the whole count.
        counts = self.loss.counts(batch)
        micro_batches = [
            self._placement.part_of(micro_batch)
            for micro_batch in batch.split(self.recovery.micro_batches)
        ]
        # Ahead, the targets of all micro-batches are in memory at once, otherwise those of one.
        is_early = self.run.settings.prefetch == "targets"
        return Prepared(
            counts,
            [
                (micro_batch, self.loss.targets(micro_batch) if is_early else None)
                for micro_batch in micro_batches
            ],
        )

    def _update(self, prepared: Prepared, step: int) -> StepLoss:
        for parameter in self._parameters:
            # None and not zero: torch skips a parameter without gradient, so that one outside of
            # the stage neither decays nor gets a state.
            parameter.grad = None
        copies = self._kept_buffers()
        loss = self._passed_in_memory(prepared, step, copies)
        # Before the update, so that the weights stay those before the step.
        if self._checks_each_step:
            if fault := self._fault(loss):
                loss = self._skipped(loss, fault, step)
                _restore(copies)
                return loss
            self.recovery.add(loss)
        try:
            self._move(step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Not repeated: torch changes some weights and moments before others, and smaller
            # micro-batches need the same memory here.
            raise OutOfMemoryError(
                self._shortage("optimizer", step, *_sizes(prepared))
                + f"; choose an optimizer with less state, as SGD without momentum, "
                f"parallel='fsdp2' or a smaller student; the update is incomplete, so a run goes "
                f"on from its newest checkpoint: {short_reason(error)}"
            ) from error
        return loss

    def _move(self, step: int) -> None:
        """Update the weights by their gradients."""
        for prepare in self._prepares:
            prepare()
        clip = self.run.settings.max_grad_norm
        if clip is not None:
            self._placement.clip(self._parameters, clip)
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            # From the step alone: the call counts of torch's schedulers would have to be saved.
            group["lr"] = rate
        self.optimizer.step()
        self.num_taken += 1

    def _kept_buffers(self) -> Buffers:
        """Return the buffers of the student with copies, where a failed pass may move them."""
        if not self._can_skip and not self._can_halve:
            return []
        # Running statistics, for example, which may not be finite after a failed pass.
        return [(buffer, buffer.clone()) for buffer in self.run.student.module.buffers()]

    def _passed_in_memory(self, prepared: Prepared, step: int, copies: Buffers) -> StepLoss:
        """Return the loss of a step, in smaller micro-batches if memory lacks and settings say so.

        Raises:
            OutOfMemoryError: If the memory does not suffice.
            RuntimeError: Any other of the models or the objectives.
        """
        note = ""
        while True:
            try:
                loss = self._passed(prepared, step)
                return replace(loss, note=note) if note else loss
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                is_divisible = self._is_divisible(prepared)
                number = 2 * len(prepared.parts)
                # A run with other 'gradient_accumulation_steps' cannot go on from its checkpoints.
                remedy = (
                    f"on_out_of_memory='halve', for a new run 'gradient_accumulation_steps' of "
                    f"{number}"
                    if is_divisible
                    else "a smaller batch"
                )
                shortage = OutOfMemoryError(
                    self._shortage("batch", step, *_sizes(prepared))
                    + f"; choose {remedy}, precision='bfloat16' or a smaller student: "
                    f"{short_reason(error)}"
                )
                if not self._can_halve or not is_divisible:
                    raise shortage from error
                note = str(shortage)
            # Outside of the handler, whose traceback holds the activations of the failed pass.
            for parameter in self._parameters:
                parameter.grad = None
            _restore(copies)
            self.recovery.halve()
            prepared = self.prepared(step)

    def _shortage(self, name: str, step: int, examples: int, micro_batches: int) -> str:
        """Return the beginning of the sentence about a lack of memory.

        Args:
            name: Name of the part of the step that does not fit.
            step: The step.
            examples: Examples of the batch, or of this process's share.
            micro_batches: Number of micro-batches.
        """
        return (
            f"{name!r} must fit into memory; it does not in stage {self.stage.declared.name!r} at "
            f"step {step}, with {examples} examples in {micro_batches} micro-batches of "
            f"{examples // micro_batches}"
        )

    def _is_divisible(self, prepared: Prepared) -> bool:
        """Return whether the micro-batches of a step can be halved."""
        compares = any(compares_examples(term.objective) for term in self.loss.terms)
        sizes = [batch.num_examples // batch.group for batch, _ in prepared.parts]
        return not compares and all(size % 2 == 0 for size in sizes)

    def _passed(self, prepared: Prepared, step: int) -> StepLoss:
        """Return the loss of a step after computing its gradient."""
        if not self._is_noisy:
            # Seeding the global generators costs every step time; most models draw nothing.
            return self._accumulate(prepared)
        with self._noise(step):
            return self._accumulate(prepared)

    def _skipped(self, loss: StepLoss, fault: str, step: int) -> StepLoss:
        """Return the loss of a failed step with its fault, if the step may be skipped.

        Raises:
            DivergenceError: If it may not.
        """
        sentence = self._failed(fault, step)
        if not self.recovery.skips():
            raise DivergenceError(f"{sentence}{self.recovery.bound}")
        return replace(loss, fault=sentence)

    def _noise(self, step: int) -> AbstractContextManager[None]:
        """Return the context of a step in which global generators are seeded."""
        run = self.run
        # Noise depends on seed and step alone, so a run draws the same masks after it was resumed.
        # Processes draw different masks for their shares; the first has the stream of one process.
        rank = self._placement.rank
        names = ("noise", step, rank) if rank else ("noise", step)
        return seeding.scoped(run.seed, *names, beyond_torch=run.draws_foreign_noise)

    def _accumulate(self, prepared: Prepared) -> StepLoss:
        counts = prepared.counts
        scales = self.loss.scales(counts)
        if self._num_processes > 1:
            # The wrapper takes the mean over processes, and the whole count divides their sum.
            scales = [scale * self._num_processes for scale in scales]
        *earlier, last = prepared.parts
        sums_of_parts = []
        for part in earlier:
            with self._unsummed():
                sums_of_parts.append(self._backward(*part, scales))
        sums_of_parts.append(self._backward(*last, scales))
        # The student's are averaged by its wrapper.
        self._placement.average_gradients(self.loss.adapters.parameters())
        # A single part is left as it is: accumulation costs nothing where there is none.
        totals = (
            sums_of_parts[0]
            if len(sums_of_parts) == 1
            else [torch.stack(sums).sum() for sums in zip(*sums_of_parts, strict=True)]
        )
        return StepLoss(self._placement.summed(totals), counts, self.loss.weights)

    def _backward(
        self, batch: Batch, targets: list[Target] | None, scales: list[float]
    ) -> list[Tensor]:
        if targets is None:
            targets = self.loss.targets(batch)
        sums = self.loss.sums(batch, targets)
        # Weights and counts enter as the gradient of the sums: no kernel is spent on them.
        torch.autograd.backward(sums, gradients_of_sums(sums, scales))
        # Without their graph, whose activations are freed before the next micro-batch.
        return [total.detach() for total in sums]

    def _fault(self, loss: StepLoss) -> str:
        """Return the rule that a step breaks before its update; empty if it breaks none."""
        fault = self.recovery.fault(loss)
        if fault or not self._can_skip:
            return fault
        # An infinite gradient of a finite loss would destroy the weights, which no skip mends.
        norm = self._placement.gradient_norm(self._parameters).item()
        return "" if math.isfinite(norm) else f"'gradient' must be finite; got a norm of {norm}"

    def _failed(self, fault: str, step: int) -> str:
        """Return the sentence about a failed step, whose batch is kept.

        Args:
            fault: The rule that the step breaks.
            step: The step.
        """
        name, seed = self.stage.declared.name, self.run.seed
        sentence = f"{fault} in stage {name!r} at step {step} with seed {seed}"
        sentence += self._blamed(step)
        facts = {"stage": name, "seed": seed, "fault": sentence}
        path = self.recovery.keep(self.run.stream.batch(step), step, facts)
        if path is None:
            return sentence
        return f"{sentence}; its batch is in {f'{FAILED}/{path.name}'!r} of the run folder"

    def check(self, loss: StepLoss, step: int) -> None:
        """Check that the loss of a step that was applied is finite.

        Raises:
            DivergenceError: If it is not; inputs that were not finite are named.
        """
        if not loss.fault and not loss.is_finite:
            fault = f"'loss' must be finite; got {loss.loss.item()}"
            raise DivergenceError(self._failed(fault, step))

    def _blamed(self, step: int) -> str:
        """Return the end of an error sentence for inputs that were not finite; empty if all were.

        Args:
            step: The step after which something is not.
        """
        if self.prefetcher is not None:
            # The batches are read again here, and two threads must not read a stream at once.
            self.prefetcher.settle()
        # Where each loss is checked, no step before was at fault.
        number = 1 if self._checks_each_step else self.run.settings.log_every
        number = min(number, MOST_INSPECTED_STEPS)
        for read in range(max(self.start, step + 1 - number), step + 1):
            if words := non_finite_words(self.run.stream.batch(read), f"step {read}"):
                return words
        return ""

    def check_weights(self, step: int) -> None:
        """Check that the weights after a step are finite, which a finite loss does not show.

        Raises:
            DivergenceError: If they are not.
        """
        # All flags are read at once, as a GPU is waited for at each reading.
        flags = [whole(parameter.isfinite().all()) for parameter in self._parameters]
        if flags and not torch.stack(flags).all():
            raise DivergenceError(
                f"'weights' must be finite; they are not in stage {self.stage.declared.name!r} "
                f"after step {step} with seed {self.run.seed}{self._blamed(step)}"
            )

    def check_trained(self, step: int) -> None:
        """Check that the weights that the stage has trained are finite when it ends.

        Raises:
            DivergenceError: If they are not; the first weight is named.
        """
        named = self.run.student.module.named_parameters()
        trained = [(name, weight) for name, weight in named if name in self.stage.trained]
        for name, weight in [*trained, *self.loss.adapters.named_parameters("adapters")]:
            if not _is_finite(weight):
                raise DivergenceError(
                    f"'weights' must be finite; {name!r} is not in stage "
                    f"{self.stage.declared.name!r} after step {step} with seed {self.run.seed}"
                    f"{self._blamed(step)}"
                )

    def calibrate(self) -> None:
        """Give the objectives that need them the teacher's statistics over the first batches."""
        begins = self._placement.now()
        with LocatedErrors(self.stage.declared.name, self.start, self.run.seed):
            was_needed = self.loss.calibrate(
                lambda: (self.batch(step) for step in range(CALIBRATION_BATCHES))
            )
        if was_needed:
            stream = self.run.stream
            self.calibration = Usage(
                examples=CALIBRATION_BATCHES * stream.batch_size,
                tokens=CALIBRATION_BATCHES * stream.tokens_per_batch,
                teacher_flops=CALIBRATION_BATCHES * self.stage.plan.teacher_flops,
                seconds=self._placement.now() - begins,
            )

    def batch(self, step: int) -> Batch:
        """Return the whole batch of a step where the models lie."""
        return self._placement.moved(self.run.stream.batch(step))


@contextmanager
def stepping(
    run: BoundRun,
    stage: BoundStage,
    optimizer: torch.optim.Optimizer,
    *,
    start: int | None = None,
    resumed: Path | None = None,
    recovery: Recovery | None = None,
) -> Iterator[Stepper]:
    """Open a stage: load its teacher, register hooks, freeze the weights that it does not train.

    Args:
        run: The run.
        stage: One of its stages.
        optimizer: Moves the student, and the adapters of the stage as long as it is open.
        start: First step of the stage; None takes the planned one.
        resumed: Checkpoint from which the stage goes on; None begins it.
        recovery: Recovery of the run; by default one that keeps nothing.

    Yields:
        The steps of the stage.
    """
    with ExitStack() as stack:
        loss = stack.enter_context(open_stage_loss(run, stage))
        stack.enter_context(frozen_but(run.student.module, stage.trained))
        if run.settings.compiles_student:
            stack.enter_context(compiled_blocks(run.student))
        # Gradients take as much memory as the weights, and are not read after the stage.
        stack.callback(run.student.module.zero_grad)
        first = stage.span.start if start is None else start
        # After the rest of the weights is frozen: gradients of all others are waited for.
        unsummed = stack.enter_context(run.settings.placement.synchronized(run.student))
        stepper = Stepper(
            run, stage, optimizer, loss, start=first, unsummed=unsummed, recovery=recovery
        )
        decay = run.optimizer.weight_decay
        stack.enter_context(adapters_in_optimizer(optimizer, loss.adapters, weight_decay=decay))
        if resumed is None:
            begin_adapters(loss.adapters)
        elif len(loss.adapters):
            # After the optimizer has them: state of a parameter in none of its groups is refused.
            load_adapters(resumed, loss.adapters, optimizer)
        # Also where the stage goes on: statistics are in no checkpoint. And before the second
        # thread begins, since both read the stream.
        stepper.calibrate()
        if run.settings.prefetch != "none":
            prefetcher = Prefetcher(stepper.prepared, run.settings.placement.side_stream())
            stepper.prefetcher = stack.enter_context(prefetcher)
        yield stepper
