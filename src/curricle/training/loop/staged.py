"""Loss of a whole curriculum for training loops of other libraries and of users.

`StagedLoss` opens and closes the stages of a bound run at their steps and returns the loss of the
open one. Its owner has the batches, the optimizer, the schedule, evaluations and checkpoints.

    with staged_loss(student, teacher, curriculum, data, optimizer=optimizer) as loss:
        while not loss.is_over:
            loss(loss.next_batch()).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.advance()

Design: the losses are those of `StageLoss`, and the borders those of `Timeline`, as in the engine.
A step is begun with all its micro-batches, so that each is divided by the counts of all of them.

Units: FLOPs are those of the plan, in proportion to the tokens of the batches that were read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from curricle.curriculum.stages import Curriculum
from curricle.data.batch import Batch
from curricle.data.dataloaders import LoaderStream
from curricle.data.loader_workers import ended_workers
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.models.restoring import frozen_but
from curricle.models.wrapping import tapped
from curricle.objectives.base import compares_examples, label_check
from curricle.records import Usage
from curricle.teachers.stored import StoredTeacher
from curricle.teachers.trajectory import Trajectory
from curricle.training.binding.batches import LocatedErrors
from curricle.training.binding.bound_objectives import adapters_of
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.binding.starting import apply_start
from curricle.training.binding.timeline import StageEnd, Timeline, TimelineState
from curricle.training.loop.explained import Explained, explained_before
from curricle.training.loop.stage_loss import (
    CALIBRATION_BATCHES,
    StageLoss,
    StepLoss,
    open_stage_loss,
)
from curricle.training.setup.arguments import AnyModel, as_stream, as_teacher
from curricle.training.setup.optimizers import AdamW
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import check_single_process

# No weight moves by it: only the number of its moments enters the plan.
PLANNED_OPTIMIZER = AdamW(learning_rate=1.0)
"""Stands for the optimizer of the loop while stages are bound."""


@final
class StagedLoss:
    """Loss of the open stage of a run, for a loop that takes the steps.

    A context: entering opens the teacher, leaving closes the stage and puts everything back.
    """

    def __init__(
        self,
        run: BoundRun,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        read: Callable[[object], Batch] | None = None,
    ) -> None:
        """Begin before the first step.

        Args:
            run: The bound run.
            optimizer: The optimizer of the loop, which stages may reset; None if it is set later.
            read: Makes a batch of an item of the loop's own data; None takes batches only.

        Raises:
            BindError: If an objective has parameters of its own.
        """
        check_single_process()
        if run.settings.keep_best is not False:
            raise BindError(
                f"'keep_best' must be False where a loop of your own takes the steps and "
                f"evaluates; got {run.settings.keep_best!r}"
            )
        if run.settings.checks_each_loss:
            raise BindError(
                f"'on_divergence' must be 'stop' where a loop of your own takes the steps, which "
                f"sees each loss itself; got {run.settings.on_divergence!r}"
            )
        for stage in run.stages:
            if len(adapters_of(stage.terms)):
                raise BindError(
                    f"'objectives' of stage {stage.declared.name!r} must have no parameters of "
                    f"their own, which only curricle.distill trains and saves beside the student; "
                    f"got {stage.plan.objective!r} with projection {stage.plan.projection!r}"
                )
        self.run = run
        """The bound run."""
        self.optimizer = optimizer
        """The optimizer of the loop; a stage with `optimizer_state='reset'` clears its state."""
        self.timeline = Timeline([stage.span for stage in run.stages])
        """Stages as they follow each other."""
        self.num_steps = 0
        """Steps taken."""
        self.usage = Usage()
        """Usage until now, without seconds."""
        self._read = read
        self._first_tokens = run.stream.batch(0).num_read_tokens
        self._stack, self._stage_stack = ExitStack(), ExitStack()
        self._is_started = False
        self._loss: StageLoss | None = None
        self._counts: list[int] = []
        self._totals: list[list[Tensor]] = []
        self._num_begun = 0

    def __enter__(self) -> "StagedLoss":
        """Check the teacher's checkpoints and hold the teacher in evaluation mode.

        Returns:
            The loss.
        """
        run = self.run
        with ExitStack() as stack:
            stack.enter_context(ended_workers(run.stream))
            if run.teacher is not None:
                run.teacher.check(run.teachers)
                stack.enter_context(run.teacher.teaching(run.settings.teacher_inference))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the stage and the teacher."""
        try:
            self._close_stage()
        finally:
            self._stack.__exit__(kind, error, trace)

    @property
    def is_over(self) -> bool:
        """Return whether all stages have ended."""
        return not self.timeline.remaining()

    @property
    def stage(self) -> BoundStage:
        """Return the stage of the next step; the last one after the end."""
        remaining = self.timeline.remaining()
        return self.run.stages[remaining[0] if remaining else -1]

    @property
    def step_loss(self) -> StepLoss:
        """Return the loss of the step that was begun last, over its parts until now."""
        totals = [torch.stack(sums).sum() for sums in zip(*self._totals, strict=True)]
        return StepLoss(totals, self._counts, self._opened().weights)

    def start(self) -> None:
        """Apply the curriculum's initialization of the student, if it has one and nothing is done.

        The first step does it, too; a loop that evaluates before calls it itself.
        """
        if not self._is_started:
            self.usage = apply_start(self.run.warm_start, self.usage, self.run.settings.placement)
            self._is_started = True

    def restore(self, state: TimelineState, usage: Usage) -> None:
        """Go on from a checkpoint.

        Args:
            state: State of the timeline, as `timeline.state()` has returned it.
            usage: Usage at the checkpoint.

        Raises:
            ValueError: If the state does not fit the stages.
        """
        self._close_stage()
        self.timeline = Timeline([stage.span for stage in self.run.stages])
        self.timeline.restore(state, usage.steps)
        self.num_steps, self.usage = usage.steps, usage

    def next_batch(self) -> Batch:
        """Return the batch of the next step from the run's own data."""
        return self.run.stream.batch(self.num_steps)

    def as_batch(self, item: object) -> Batch:
        """Return an item of the loop's data as a batch, with labels and positions as in the run.

        Args:
            item: A batch, which is returned as it is, or an item of the loader.

        Raises:
            BindError: If it is no batch, and the data of the run are no loader.
        """
        if isinstance(item, Batch):
            return item
        if self._read is not None:
            return self._read(item)
        raise BindError(
            f"a step must be taken on a curricle.Batch where 'data' are no DataLoader; got "
            f"{type(item).__name__!r}"
        )

    def begin_step(self, *items: object) -> None:
        """Begin a step of several micro-batches, each of which is then called on.

        Args:
            *items: All micro-batches of the step, each a batch or an item of the loader.

        Raises:
            BindError: If all stages have ended, or an objective compares examples that several
                micro-batches would separate.
        """
        batches = [self.as_batch(item) for item in items]
        loss = self._loss if self._loss is not None else self._open_stage()
        check_parts(self.stage, len(batches), "'begin_step' must get 1 batch")
        with self._located():
            for batch in batches:
                self._check(batch)
        self._counts, self._totals = loss.counts(*batches), []
        self._num_begun = len(batches)
        self._spend(batches)

    def __call__(self, item: object) -> Tensor:
        """Return the loss of a batch, or the share of a micro-batch in the loss of the step begun.

        Gradients of the shares add up to that of the whole batch.

        Args:
            item: The batch, or an item of the loader; it is moved to the models.

        Raises:
            BindError: If the step has no further micro-batch.
        """
        batch = self.as_batch(item)
        if not self._counts:
            self.begin_step(batch)
        if len(self._totals) == self._num_begun:
            raise BindError(
                f"a step must be begun with all of its micro-batches and ended by 'advance()'; got "
                f"{self._num_begun + 1} calls in a step of {self._num_begun}; call "
                f"'begin_step(first, second, ...)' before several micro-batches"
            )
        loss = self._opened()
        with self._located():
            placed = self.run.settings.placement.moved(batch)
            sums = loss.sums(placed, loss.targets(placed))
        self._totals.append([total.detach() for total in sums])
        scales = loss.scales(self._counts)
        return torch.stack([s * total for s, total in zip(scales, sums, strict=True)]).sum()

    def advance(self, metrics: Mapping[str, float] | None = None) -> StageEnd | None:
        """Count the step as taken, after the update of the weights; close the stage if it ends.

        Args:
            metrics: Metrics of the student after the step, for stages that end by one.

        Returns:
            The end of the stage, if it ends here.
        """
        self.timeline.add([self.step_loss.loss])
        self.num_steps += 1
        self._counts, self._totals = [], []
        end = self.timeline.look(self.num_steps, metrics)
        if end is not None:
            self._close_stage()
        return end

    def _opened(self) -> StageLoss:
        if self._loss is None:
            raise BindError("a step must be begun by a batch first; got none")
        return self._loss

    def _open_stage(self) -> StageLoss:
        if self.is_over:
            raise BindError(f"the curriculum is over after {self.num_steps} steps; got another one")
        self.start()
        self._leave_out_explained()
        run, stage, start = self.run, self.stage, self.timeline.start
        is_entered = self.num_steps == start
        # An empty state is what the optimizer of the first stage has anyway.
        if is_entered and start and stage.declared.optimizer_state == "reset":
            if self.optimizer is None:
                raise BindError(
                    f"'optimizer' must be given, since stage {stage.declared.name!r} resets its "
                    f"state; got none"
                )
            self.optimizer.state.clear()
        with ExitStack() as stack:
            loss = stack.enter_context(open_stage_loss(run, stage))
            stack.enter_context(frozen_but(run.student.module, stage.trained))
            with self._located():
                placement = run.settings.placement
                # Also where the stage goes on: statistics are in no checkpoint.
                was_needed = loss.calibrate(
                    lambda: (
                        placement.moved(run.stream.batch(step))
                        for step in range(CALIBRATION_BATCHES)
                    )
                )
            self._stage_stack = stack.pop_all()
        if was_needed and is_entered:
            flops = CALIBRATION_BATCHES * stage.plan.teacher_flops
            self.usage += Usage(teacher_flops=flops)
        self._loss = loss
        return loss

    def _leave_out_explained(self) -> None:
        """Leave out the stages whose final targets are explained already."""
        measured: Explained | None = None
        while self.num_steps == self.timeline.start:
            measured = explained_before(self.run, self.stage, self.usage, measured)
            if measured is None:
                return
            self.usage += measured.usage
            if not measured.leaves_out(self.stage):
                return
            self.timeline.leave_out()

    def _close_stage(self) -> None:
        self._loss = None
        self._counts, self._totals = [], []
        self._stage_stack.close()

    def _located(self) -> AbstractContextManager[None]:
        return LocatedErrors(self.stage.declared.name, self.num_steps, self.run.seed)

    def _check(self, batch: Batch) -> None:
        """Check the ids and labels of a batch; see `RunBatches`."""
        for table in self.run.tables:
            table.check(batch)
        if batch.labels is None or not batch.labels.is_cpu:
            return
        for term in self.stage.terms:
            check = label_check(term.objective)
            if check is not None:
                check(batch.labels)

    def _spend(self, batches: Sequence[Batch]) -> None:
        """Add the cost of a step."""
        plan, tokens = self.stage.plan, sum(batch.num_read_tokens for batch in batches)
        student, teacher = (
            flops * tokens // self._first_tokens
            for flops in (plan.student_flops, plan.teacher_flops)
        )
        self.usage += Usage(
            steps=1,
            examples=sum(batch.num_examples for batch in batches),
            tokens=tokens,
            student_flops=student,
            teacher_flops=teacher,
        )


def check_parts(stage: BoundStage, number: int, rule: str) -> None:
    """Check that no objective of a stage compares examples that micro-batches would separate.

    Args:
        stage: The bound stage.
        number: Micro-batches of a step.
        rule: Beginning of the error sentence, with the argument that has the number.

    Raises:
        BindError: If there are several micro-batches and an objective compares examples.
    """
    for term, objective in zip(stage.terms, stage.declared.objectives, strict=True):
        if number > 1 and compares_examples(term.objective):
            raise BindError(
                f"{rule} for {type(objective).__name__} in stage {stage.declared.name!r}, which "
                f"compares the examples of a batch with each other; got {number}"
            )


@contextmanager
def staged_loss(  # noqa: PLR0913 - everything but four has a default
    student: AnyModel,
    teacher: AnyModel | StoredTeacher | None,
    curriculum: Curriculum,
    data: Stream | DataLoader[object],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    trajectory: Trajectory | None = None,
    settings: TrainingSettings = TrainingSettings(),
    seed: int = 0,
) -> Iterator[StagedLoss]:
    """Bind a curriculum and open its loss, for a training loop of your own.

    Args:
        student: The model that learns; the loop trains it.
        teacher: The finished teacher, or its stored targets; None for curricula that need none.
        curriculum: Result of a strategy such as `extraction`.
        data: Training batches as in `distill`.
        optimizer: The torch optimizer of the loop, which stages may reset.
        trajectory: The teacher's checkpoints, for curricula that follow them.
        settings: Device and precision of the passes.
        seed: Seed of the projections, and of the order of a `DataLoader`.

    Yields:
        The loss, which opens and closes the stages as steps are taken.
    """
    stream = as_stream(data, seed)
    run = bind(
        curriculum,
        student=tapped(student),
        teacher=as_teacher(teacher, trajectory),
        stream=stream,
        optimizer=PLANNED_OPTIMIZER,
        settings=settings,
        seed=seed,
    )
    read = stream.as_batch if isinstance(stream, LoaderStream) else None
    with StagedLoss(run, optimizer, read=read) as loss:
        yield loss
