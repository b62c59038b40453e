"""Execution of a bound curriculum.

One loop runs every curriculum: stage by stage, step by step, with evaluations, records and
checkpoints at their intervals. It knows objectives and durations, not strategies. A `TrainingRun`
advances by a step at a time, so that several runs can take turns at one teacher.

Design: observers receive the immutable records of `curricle.records`, the same values that go
to disk. Training time stands still while the student is evaluated or saved. While it trains, every
submodule of the student is in training mode if the student was in evaluation mode at the call. Of a
student in training mode, submodules that its owner has put in evaluation mode, such as frozen batch
normalizations, stay there, also after each evaluation. After the run all modes are as they were.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, final

import torch

from curricle import seeding
from curricle.errors import CheckpointError, DivergenceError
from curricle.metrics import CLASS_METRICS, NLL
from curricle.models.eligibility import check_savable
from curricle.models.restoring import Modes, buffers_kept, modes_kept, set_modes, train
from curricle.records import (
    EndRecord,
    EvaluationRecord,
    Record,
    RecordWriter,
    RunRecord,
    Spent,
    StageRecord,
)
from curricle.teachers.trajectory import TrajectoryWriter
from curricle.training.binding.bound_run import BoundRun, BoundStage
from curricle.training.binding.facts import differences, run_facts, write_facts
from curricle.training.binding.speed import check_speed
from curricle.training.binding.starting import begun
from curricle.training.fast.stacking import compiled_blocks
from curricle.training.loop.checkpoints import (
    RunState,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from curricle.training.loop.evaluation import Evaluator, chance_of
from curricle.training.loop.recording import run_record, spend, step_record
from curricle.training.loop.results import plain_metrics
from curricle.training.loop.resuming import RunFolder, owner_of
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.stepping import Stepper, TakeSteps, stepping
from curricle.training.process.ambient import standard_state
from curricle.training.process.costs import now
from curricle.training.process.interrupts import Interrupted, Interrupts
from curricle.values import fingerprint

StageSteps = Callable[[Stepper], AbstractContextManager[TakeSteps]]
"""Opens the way in which the steps of a stage are taken."""
Observer = Callable[[Record], None]
"""A function that is told what happens; it gets immutable records and cannot reach the engine."""
RECORDS, CHECKPOINTS, FINISHED = "records.jsonl", "checkpoints", "model.safetensors"
OUR_METRICS = tuple(metric.name for metric in CLASS_METRICS)
"""What every evaluator of ours gives, which need not be tried before training."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where a run writes, and what else is told of it."""

    folder: Path | None = None
    """Run folder; None writes nothing."""
    observers: tuple[Observer, ...] = ()
    """Told of every record."""
    trajectory: TrajectoryWriter | None = None
    """Keeps the student's weights at chosen steps, as teaching does."""
    task: str = ""
    """What the data are, in a few words."""
    better: Literal["higher", "lower"] | None = None
    """Which values of the metric are better, if declared; None leaves it to the metric's name."""


@standard_state()
def execute(
    run: BoundRun,
    evaluate: Evaluator,
    *,
    metric: str,
    outputs: Outputs,
    resume: bool = False,
    until: Callable[[Mapping[str, float]], bool] | None = None,
) -> EndRecord:
    """Run a bound curriculum to its end.

    Args:
        run: What to run; the student is trained in place.
        evaluate: Gives the student's metrics.
        metric: The metric by which the run is judged.
        outputs: Where to write.
        resume: Whether to go on from the newest checkpoint in the run folder; if the run is
            complete, the student gets its finished weights and nothing is run.
        until: Says of the metrics of an evaluation whether the run may end there; not asked in
            stages that leave the logits alone.

    Returns:
        The last record.

    Raises:
        BindError: If the evaluator does not give the metric, or steps that are to be compiled
            cannot be.
        CheckpointError: If the folder already holds a run and `resume` is off, or holds another
            run and `resume` is on.
        DivergenceError: If a loss is not finite.
        Interrupted: If a signal has ended the run, after a checkpoint was written if there is a
            folder.
    """
    check_speed(run)
    number = run.settings.compiled_steps
    interrupts = Interrupts(saves=outputs.folder is not None)
    with run.settings.stated_threads(), interrupts:
        training = TrainingRun(
            run,
            evaluate,
            metric=metric,
            outputs=outputs,
            resume=resume,
            until=until,
            stage_steps=single_steps if number == 1 else compiled_blocks(number),
            interrupts=interrupts,
        )
        with training:
            while training.end is None:
                training.advance()
        return training.end


@contextmanager
def single_steps(stepper: Stepper) -> Iterator[TakeSteps]:
    """Open single steps of a stage.

    Yields:
        The way to take them.
    """
    yield stepper.take


@final
class TrainingRun:
    """One run that advances from step to step, so that several can take turns.

    A context: entering opens the run folder and the teacher, leaving closes them and puts back the
    modes of the student. Whoever advances it sees to the number of threads.
    """

    def __init__(  # noqa: PLR0913 - everything but the first two has a name
        self,
        run: BoundRun,
        evaluate: Evaluator,
        *,
        metric: str,
        outputs: Outputs,
        resume: bool = False,
        until: Callable[[Mapping[str, float]], bool] | None = None,
        stage_steps: StageSteps = single_steps,
        interrupts: Interrupts | None = None,
    ) -> None:
        """Declare a run; arguments and errors are those of `execute`.

        Args:
            run: What to run.
            evaluate: Gives the student's metrics.
            metric: The metric by which the run is judged.
            outputs: Where to write.
            resume: Whether to go on from the newest checkpoint.
            until: Says of the metrics of an evaluation whether the run may end there.
            stage_steps: Opens the way in which steps are taken.
            interrupts: Signals that end the run.
        """
        self.end: EndRecord | None = None
        """The last record; None until the run is complete."""
        self.stepper: Stepper | None = None
        """The steps of the open stage; None between stages."""
        self.stop = 0
        """Step before which the weights are neither recorded, evaluated nor saved."""
        self.num_steps = -1
        """Steps taken; -1 before the first stage is open."""
        self.run, self.evaluate, self.metric, self.outputs = run, evaluate, metric, outputs
        self._resume, self._until = resume, until
        self._stage_steps, self._interrupts = stage_steps, interrupts or Interrupts()
        self._has_ended = False
        self._spent = Spent()
        self._writer: RecordWriter | None = None
        self._resumed: Path | None = None
        self._modes: Modes = ()
        self._stack, self._stage_stack = ExitStack(), ExitStack()
        self._take: TakeSteps
        self._before, self._started, self._due = Spent(), 0.0, 0
        self._coming = list(run.stages)
        self._optimizer = run.optimizer.build(run.student.module.parameters())
        self._facts = run_facts(run)
        self._digest = fingerprint(self._facts)

    def __enter__(self) -> "TrainingRun":
        """Open the run folder, go on from a checkpoint if there is one, and open the teacher.

        Returns:
            The run; one that is complete already has an `end`, and its student the finished
            weights.
        """
        with ExitStack() as stack:
            self._open_run(stack)
            # Only a run that has opened, and goes on, is left open.
            if self.end is None:
                self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the stage and the run."""
        try:
            self._stage_stack.__exit__(kind, error, trace)
        finally:
            self._stack.__exit__(kind, error, trace)

    def _open_run(self, stack: ExitStack) -> None:
        run, module = self.run, self.run.student.module
        # Every checkpoint that will be read is looked at now, before a weight moves.
        if run.teacher is not None:
            run.teacher.check(run.teachers)
        if self.outputs.folder is not None:
            check_savable(module)
        stack.enter_context(modes_kept(module))
        self._modes = train(module)
        if not self._resume:
            # Before the folder is taken: a call with another evaluation may write there.
            self._try_evaluation()
        # Closed in the opposite order: the writer first, the lock of the folder after it.
        lock = stack.enter_context(ExitStack())
        stack.callback(self._close_writer)
        self.end = self._open(lock)
        if self.end is not None:
            return
        folder = self.outputs.folder
        if folder is not None and self._resumed is None:
            write_facts(folder, self._facts)
        if self._resume:
            self._try_evaluation()
        if run.teacher is not None:
            stack.enter_context(run.teacher.teaching(run.settings.teacher_inference))
        self._spent = begun(run.start, self._spent, run.settings.torch_device())
        self._coming = [stage for stage in run.stages if self._spent.steps < stage.end]

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def advance(self, losses: Sequence[StepLoss] | None = None) -> None:
        """Take the next step or compiled block of steps, and write what is due after it.

        The first call opens a stage, the last one closes the run.

        Args:
            losses: Losses of steps that were taken with those of other students; None takes them.
        """
        if self.end is not None:
            return
        if self.stepper is None:
            if not self._coming or self._has_ended:
                self._finish()
                return
            self._open_stage(self._coming.pop(0))
        stepper = self.stepper
        assert stepper is not None  # noqa: S101 - opened above
        taken = self._take(self.num_steps, self.stop) if losses is None else losses
        self.num_steps += len(taken)
        is_over = False
        if self.num_steps == self._due:
            self._due = self._next_due(self._due)
            paused = self._now()
            self._spend(paused)
            self._after(stepper, taken[-1], self.num_steps - 1)
            is_over = self._has_ended
            self._started += self._now() - paused
        if not is_over and self._interrupts.requested is not None:
            self._spend(self._now())
            self._interrupt(self._interrupts.requested, stepper, taken[-1], self.num_steps - 1)
        self.stop = min(self._due, stepper.stage.end)
        if is_over or self.num_steps == stepper.stage.end:
            self._close_stage(stepper)
            # The teacher of the stage goes before the next one is loaded.
            del stepper
            if not self._coming or self._has_ended:
                self._finish()

    def skip(self, seconds: float) -> None:
        """Leave out of the training time what has passed while other runs advanced.

        Args:
            seconds: Seconds since the last step.
        """
        self._started += seconds

    def _open_stage(self, stage: BoundStage) -> None:
        if self._spent.steps == stage.start:
            if stage.declared.optimizer_state == "reset":
                self._optimizer = self.run.optimizer.build(self.run.student.module.parameters())
            self._tell(StageRecord(stage=stage.declared.name, spent=self._spent))
        self._before = self._spent
        resumed = self._resumed if self._before.steps > stage.start else None
        with ExitStack() as stack:
            opened = stepping(self.run, stage, self._optimizer, resumed=resumed)
            stepper = stack.enter_context(opened)
            self._take = stack.enter_context(self._stage_steps(stepper))
            self._stage_stack = stack.pop_all()
        self.stepper = stepper
        if self._before.steps == stage.start:
            self._before += self.stepper.calibration
        self.num_steps = self._before.steps
        self._started, self._due = self._now(), self._next_due(self.num_steps)
        self.stop = min(self._due, stage.end)

    def _close_stage(self, stepper: Stepper) -> None:
        if not self._has_ended:
            self._spend(self._now())
        stepper.check_trained(self.num_steps - 1)
        self.stepper = None
        self._stage_stack.close()
        del self._take

    def _spend(self, at: float) -> None:
        """Note what the stage has consumed by a time of `_now`."""
        stepper = self.stepper
        assert stepper is not None  # noqa: S101 - called while a stage is open
        seconds = self._before.seconds + at - self._started
        self._spent = spend(
            self.run, self._before, stepper.stage, done=self.num_steps, seconds=seconds
        )

    def _finish(self) -> None:
        files, module = self._files(), self.run.student.module
        try:
            metrics = self._metrics(self.run.stages[-1])
        except Exception as error:
            if files is not None:
                files.save_student(module)
                error.add_note(f"the trained weights are in {str(files.weights)!r}")
            raise
        weights = "" if files is None else files.save_student(module)
        end = EndRecord(metrics=metrics, spent=self._spent, weights=weights)
        self._tell(end)
        if files is not None and self._writer is not None:
            self._writer.sync()
            files.seal()
        self.end = end
        # The folder is free and the student in its own modes while other runs go on.
        self._stack.close()

    def _now(self) -> float:
        return now(self.run.settings.torch_device())

    def _next_due(self, done: int) -> int:
        """Return after how many steps, more than are done, something is to be written."""
        settings, trajectory = self.run.settings, self.outputs.trajectory
        every = (settings.record_every, settings.evaluate_every, settings.checkpoint_every)
        due = [done - done % interval + interval for interval in every if interval is not None]
        kept = () if trajectory is None else trajectory.steps
        return min([*due, *(step for step in kept if step > done)])

    def _after(self, stepper: Stepper, loss: StepLoss, step: int) -> None:
        settings, stage, done = self.run.settings, stepper.stage, step + 1
        if done % settings.record_every == 0:
            stepper.check(loss, step)
            rate = stepper.learning_rate(step)
            self._tell(step_record(stage, loss, learning_rate=rate, spent=self._spent))
        trajectory = self.outputs.trajectory
        is_kept = trajectory is not None and done in trajectory.steps
        is_due = done % settings.evaluate_every == 0
        if is_kept:
            stepper.check_weights(step)
        metrics: dict[str, float] = {}
        if is_due or is_kept:
            metrics = self._metrics_or_save(stage, stepper, loss, step)
        if is_due:
            name = stage.declared.name
            self._tell(EvaluationRecord(stage=name, metrics=metrics, spent=self._spent))
            is_taught = stage.plan.reads_logits
            self._has_ended = is_taught and self._until is not None and self._until(metrics)
        if trajectory is not None and is_kept:
            trajectory.save(self.run.student.module, done, metrics.get(NLL.name))
        every = settings.checkpoint_every
        # Nothing is resumed from where a run has ended.
        if every is not None and done % every == 0 and not self._has_ended:
            self._save(stepper, loss, step)

    def _interrupt(
        self, signal_number: int, stepper: Stepper, loss: StepLoss, step: int
    ) -> NoReturn:
        """End the run after a step, of which a checkpoint is left.

        Raises:
            Interrupted: Always.
        """
        self._save(stepper, loss, step)
        files = self._files()
        saved = None if files is None else files.newest()
        raise Interrupted(signal_number, saved)

    def _save(self, stepper: Stepper, loss: StepLoss, step: int) -> None:
        if self.outputs.folder is None or self._writer is None:
            return
        # A run that has diverged must not replace its last good checkpoint.
        stepper.check(loss, step)
        stepper.check_weights(step)
        # Not even a crash of the machine may leave a checkpoint whose records are lost.
        self._writer.sync()
        state = RunState(
            spent=self._spent,
            records_bytes=self._writer.size,
            records_head=self._writer.head,
            run=self._digest,
        )
        folder, module = self.outputs.folder / CHECKPOINTS, self.run.student.module
        save_checkpoint(folder, state, module, self._optimizer, adapters=stepper.loss.adapters)

    def _metrics_or_save(
        self, stage: BoundStage, stepper: Stepper, loss: StepLoss, step: int
    ) -> dict[str, float]:
        """Return the student's metrics; if the evaluation fails, a checkpoint is left.

        Raises:
            DivergenceError: If one is not finite; then nothing is saved.
            Exception: What the evaluation has raised.
        """
        try:
            return self._metrics(stage)
        except DivergenceError:
            # Where not every loss is looked at, that of the step says more.
            stepper.check(loss, step)
            raise
        except Exception as error:
            self._save(stepper, loss, step)
            if self.outputs.folder is not None:
                error.add_note(f"a checkpoint is in {str(self.outputs.folder / CHECKPOINTS)!r}")
            raise

    @property
    def _is_ours(self) -> bool:
        """Return whether the evaluation is one of this package."""
        return str(getattr(self.evaluate, "__module__", "")).startswith("curricle.")

    def _try_evaluation(self) -> None:
        """Check what the evaluation returns before a weight moves; nothing of it is recorded.

        Evaluators of ours are not run once more for it.
        """
        if self._is_ours and self.metric in OUR_METRICS:
            return
        module = self.run.student.module
        with (
            buffers_kept(module),
            seeding.scoped(self.run.seed, "evaluation/trial", beyond_torch=True),
        ):
            self._evaluated()

    def _evaluated(self) -> dict[str, float]:
        """Return what the evaluation gives of the student as it is; its modes come back after."""
        module = self.run.student.module
        module.eval()
        try:
            with torch.no_grad(), self.run.settings.autocast():
                return plain_metrics(self.evaluate(self.run.student), self.metric)
        finally:
            module.train()
            set_modes(self._modes)

    def _metrics(self, stage: BoundStage) -> dict[str, float]:
        """Return the student's finite metrics.

        Raises:
            DivergenceError: If the metric by which the run is judged, or any metric of an
                evaluation of this package, is not finite.
        """
        metrics = self._evaluated()
        for name, number in metrics.items():
            # Metrics of the caller may be undefined for some students, as a precision without
            # positive predictions; ours are finite for every student that has not diverged.
            if not math.isfinite(number) and (name == self.metric or self._is_ours):
                raise DivergenceError(
                    f"{name!r} must be finite; got {number} in stage {stage.declared.name!r} "
                    f"after step {self._spent.steps - 1} with seed {self.run.seed}"
                )
        return {name: number for name, number in metrics.items() if math.isfinite(number)}

    def _files(self) -> RunFolder | None:
        """Return the places of the run's files; None if nothing is written."""
        folder = self.outputs.folder
        if folder is None:
            return None
        return RunFolder(
            records=folder / RECORDS, checkpoints=folder / CHECKPOINTS, weights=folder / FINISHED
        )

    def _open(self, lock: ExitStack) -> EndRecord | None:
        """Open the records at the newest checkpoint.

        Args:
            lock: Gives the folder back when it closes.

        Returns:
            The end of the run if it is complete; nothing is open then.

        Raises:
            CheckpointError: If the folder holds a run that is not to be resumed, or another one, or
                a damaged one, or another process writes into it.
        """
        opening = run_record(self.run, self.metric, self.outputs.task, self._digest)
        opening = replace(opening, better=self.outputs.better, chance=chance_of(self.evaluate))
        files = self._files()
        if files is None:
            self._tell(opening)
            return None
        if not self._resume:
            files.check_free()
        end = self._finished(files, opening)
        if end is not None:
            return end
        # What was read above may be of a process that has written since.
        files.open_for_writing(lock)
        if self.outputs.trajectory is not None:
            self.outputs.trajectory.remove_leftovers()
        if not self._resume:
            files.check_free()
        end = self._finished(files, opening)
        if end is None:
            self._go_on(files, opening)
        return end

    def _finished(self, files: RunFolder, opening: RunRecord) -> EndRecord | None:
        """Return the end of a complete run, whose student gets its weights; else None.

        Raises:
            CheckpointError: If the folder holds another run or a damaged one.
        """
        known, newest = files.known_records(), files.newest()
        owner = owner_of(known, self._digest) if newest is None else read_state(newest).run
        if owner != self._digest:
            raise CheckpointError(
                f"{str(newest or files.records)!r} must belong to this run; its digest is "
                f"{owner!r}, not {self._digest!r}{self._reason(files.folder, known)}"
            )
        if not known or not isinstance(end := known[-1], EndRecord):
            return None
        files.load_student(self.run.student.module, end)
        self._notify(opening)
        self._notify(end)
        return end

    def _reason(self, folder: Path, known: Sequence[Record]) -> str:
        """Return what a refusal to go on adds: what has changed, and whether that can be helped."""
        changes = differences(folder, self._facts)
        is_finished = bool(known) and isinstance(known[-1], EndRecord)
        end = "; a finished run cannot be prolonged or changed, take another folder"
        return (f": {changes}" if changes else "") + (end if is_finished else "")

    def _go_on(self, files: RunFolder, opening: RunRecord) -> None:
        """Go on from the newest checkpoint, or begin if there is none."""
        self._resumed = files.newest()
        if self._resumed is None:
            files.begin()
            self._writer = RecordWriter(files.records)
            self._tell(opening)
            return
        state = read_state(self._resumed, planned=self.run.stages[-1].end)
        self._writer = RecordWriter(
            files.records, keep_bytes=state.records_bytes, head=state.records_head
        )
        load_checkpoint(self._resumed, self.run.student.module, self._optimizer)
        self._spent = state.spent
        # It is on disk already, but these observers have not seen it.
        self._notify(opening)

    def _tell(self, record: Record) -> None:
        if self._writer is not None:
            self._writer.write(record)
        self._notify(record)

    def _notify(self, record: Record) -> None:
        for observer in self.outputs.observers:
            observer(record)
