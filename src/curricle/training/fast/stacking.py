"""Batched students and compiled blocks of steps, for models limited by Python overhead.

A small model spends its time on calls, not on arithmetic. Students of one architecture that are at
the same step of the same stage, with the same optimizer, become one batched model: one forward
pass, backward pass and update moves all of them. Steps before the next record, evaluation or
checkpoint may be taken in one compiled call, of one student or of a group.

Results agree with those of separate runs and single steps within rounding: a batched matrix product
adds up in another order. Stages with logits in chunks or adapters take single steps, and so do
batched students with noise or buffers, or with sparse stored targets. Compiled blocks with noise,
buffers or stored targets, and both fast paths with clipping or gradient accumulation, are refused
by the table of `setup.compatibility`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import final

from curricle.errors import DataError
from curricle.models.weights import architecture
from curricle.training.binding.batches import LocatedErrors, excess
from curricle.training.fast.batched_students import BatchedStudents, is_counter
from curricle.training.fast.multistep import FusedSteps
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.stepping import Stepper, TakeSteps
from curricle.values import fingerprint, plain


@final
class FusedStepper:
    """Steps of one student, in compiled blocks where a block fits."""

    def __init__(self, stepper: Stepper, number: int) -> None:
        """Take the steps of a stage.

        Args:
            stepper: Takes single steps.
            number: Steps in one compiled call.
        """
        self._stepper, self._number = stepper, number
        self._group: Group | None = None
        self._is_possible = is_batchable(stepper)

    def take(self, first: int, stop: int) -> list[StepLoss]:
        """Take a block of steps if it ends by `stop`, otherwise one step; see `TakeSteps`.

        Returns:
            The loss of each step.
        """
        # A first single step makes the moments, which are inputs of the graph.
        if stop - first >= self._number and self._is_possible and has_state(self._stepper):
            if self._group is None:
                self._group = Group([self._stepper], self._number)
                # A model that is no function of its weights alone takes single steps.
                self._is_possible = self._group.agrees(first)
            losses = self._group.take_block(first) if self._is_possible else None
            if losses is not None:
                return [loss for (loss,) in losses]
        return self._stepper.take(first, stop)


def fused_steps(number: int) -> Callable[[Stepper], AbstractContextManager[TakeSteps]]:
    """Return the way in which a run takes the steps of a stage: in compiled blocks.

    Args:
        number: Steps in one compiled call.
    """

    @contextmanager
    def steps(stepper: Stepper) -> Iterator[TakeSteps]:
        yield FusedStepper(stepper, number).take

    return steps


@final
class Group:
    """Students that take their steps as one model."""

    def __init__(self, steppers: list[Stepper], number: int) -> None:
        """Join students.

        Args:
            steppers: Steps of each, with open stages.
            number: Steps in one compiled call; 1 compiles nothing.
        """
        self.steppers = steppers
        self._students = BatchedStudents(steppers)
        self._compiled = FusedSteps(self._students, number) if number > 1 else None

    def agrees(self, step: int) -> bool:
        """Return whether the students compute the same as one model."""
        with self._explained(step):
            return self._students.agrees(self.steppers[0].batch(step))

    def take(self, step: int) -> list[list[StepLoss]]:
        """Take one step.

        Returns:
            For this step the loss of each student.
        """
        with self._explained(step):
            return [self._students.step(self.steppers[0].batch(step), step)]

    def take_block(self, step: int) -> list[list[StepLoss]] | None:
        """Take a block of steps.

        Returns:
            For each step the loss of each student; None if nothing was done and the steps must be
            taken singly.
        """
        if self._compiled is None:
            return None
        with self._explained(step):
            losses = self._compiled.step(step)
        if losses is None:
            # Batches that differ in shape once do so again: each attempt reads a block in vain.
            self._compiled = None
        return losses

    @contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Name the step in an error, and explain a failing look-up of a traced or batched pass.

        Yields:
            Nothing.

        Raises:
            DataError: If the students' tables have too few positions for the batch.
            IndexError: If another look-up failed.
        """
        stepper = self.steppers[0]
        run = stepper.run
        with LocatedErrors(stepper.stage.declared.name, step, run.seed):
            try:
                yield
            except IndexError as error:
                # Traced passes have no guard: they may depend on tensors only.
                words = excess(run.tables, "student", run.stream.batch(step).inputs)
                if not words:
                    raise
                raise DataError(f"{words}; its forward pass failed with: {error}") from error


def is_batchable(stepper: Stepper) -> bool:
    """Return whether the steps of a stage can be batched or compiled."""
    run = stepper.run
    # Noise is seeded for each student and step, which one call for several of them cannot do. A
    # head in chunks takes its gradient by an autograd function that `vmap` cannot map. Buffers are
    # no arguments of the batched model, so the first student's would serve all, and so would its
    # adapters. Sparse targets are no tensors that could be stacked.
    return not (
        run.is_noisy
        or run.has_buffers
        or stepper.stage.reads.student_head
        or len(stepper.loss.adapters)
        or any(term.stored is not None and not term.stored.is_dense for term in stepper.stage.terms)
    )


def has_state(stepper: Stepper) -> bool:
    """Return whether the optimizer has the state of all weights that the stage trains."""
    run, state = stepper.run, stepper.optimizer.state
    named = run.student.module.named_parameters()
    # Plain descent keeps no state, and has nothing to wait for.
    return not run.optimizer.moments or all(
        state.get(parameter) for name, parameter in named if name in stepper.stage.trained
    )


def separate(stepper: Stepper) -> None:
    """Give a student that was in a group memory of its own again."""
    for parameter in stepper.run.student.module.parameters():
        # A slice keeps the memory of the whole group alive.
        parameter.data = parameter.data.clone()
    for state in stepper.optimizer.state.values():
        for name, value in state.items():
            if value is not None:
                # Counters, too: a shared one would count the updates of all students.
                state[name] = value.clone()


def batching_key(stepper: Stepper) -> str:
    """Return a text that is equal for students that may become one batched model."""
    run, stage = stepper.run, stepper.stage
    module = run.student.module
    return fingerprint(
        [
            # Names and shapes do not show activations. `repr` shows many of the differences, and
            # the comparison of losses the others.
            [type(module).__qualname__, repr(module), architecture(module)],
            [name for name, parameter in module.named_parameters() if parameter.requires_grad],
            # The learning rate follows from these, and a group has one.
            [plain(stage.declared), stepper.start, stage.span.most, run.num_steps],
            # AdamW corrects by the number of updates, which is one for all of a group.
            [plain(run.optimizer), _counters(stepper)],
        ]
    )


def _counters(stepper: Stepper) -> list[list[object]]:
    """Return the optimizer's counts of updates; earlier stages may have trained other weights."""
    state = stepper.optimizer.state
    return [
        [name, key, value.tolist()]
        for name, parameter in stepper.run.student.module.named_parameters()
        for key, value in state.get(parameter, {}).items()
        if is_counter(key, value)
    ]
