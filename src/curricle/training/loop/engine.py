"""Execution of a bound curriculum.

One loop runs every curriculum: stage by stage, step by step, with evaluations, records and
checkpoints at their intervals. A `Timeline` decides which stage runs and when something is due. A
`TrainingRun` advances by a step at a time, so that several runs can take turns at one teacher.

Design: observers receive the immutable records of `curricle.records`, the same values that go
to disk. Evaluating and saving do not count as training time. Modes: all submodules of a student
that is passed in evaluation mode are trained in training mode. In a student that is passed in
training mode, submodules in evaluation mode, such as frozen batch normalizations, stay in it, also
after each evaluation. All modes are restored after the run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import NoReturn, final

import torch

from curricle.curriculum.durations import Duration
from curricle.data.loader_workers import ended_workers
from curricle.errors import DivergenceError
from curricle.metrics import NLL
from curricle.models.eligibility import check_savable
from curricle.models.restoring import modes_kept, modes_of, train
from curricle.records import (
    EndRecord,
    EvaluationRecord,
    RecoveryRecord,
    StageEndRecord,
    StageRecord,
    Usage,
)
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.binding.facts import run_facts
from curricle.training.binding.starting import apply_start
from curricle.training.binding.timeline import StageEnd, Timeline
from curricle.training.loop.alike import check_alike
from curricle.training.loop.best import best_facts, best_weights, check_evaluated
from curricle.training.loop.checkpoints import CHECKPOINTS
from curricle.training.loop.evaluation import Evaluator, chance_of, check_ids, with_outputs
from curricle.training.loop.explained import Explained, explained_before
from curricle.training.loop.journal import Journal
from curricle.training.loop.recording import run_record, step_record, usage_after
from curricle.training.loop.recovery import Recovery
from curricle.training.loop.resuming import RunFolder
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.stepping import Stepper, TakeSteps, stepping
from curricle.training.loop.student_evaluation import StudentEvaluation
from curricle.training.setup.interrupts import Interrupted, Interrupts

StageSteps = Callable[[Stepper], AbstractContextManager[TakeSteps]]
"""Opens the way in which the steps of a stage are taken."""


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
    modes of the student. The caller sets the number of threads.
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
            run: The bound run.
            evaluate: Gives the student's metrics.
            metric: The metric by which the run is judged.
            outputs: Where to write.
            resume: Whether to go on from the newest checkpoint.
            until: Function from the metrics of an evaluation to whether the run may end there.
            stage_steps: Opens the way in which steps are taken.
            interrupts: Signals that end the run.
        """
        self.end: EndRecord | None = None
        """The last record; None until the run is complete."""
        self.stepper: Stepper | None = None
        """The steps of the open stage; None between stages."""
        self.timeline = Timeline(
            [stage.span for stage in run.stages],
            intervals=run.settings.intervals,
            # Weights of a trajectory are read between the intervals, so prefetch and compiled
            # blocks must end there, too.
            moments=() if outputs.trajectory is None else outputs.trajectory.steps,
        )
        """Stages as they follow each other."""
        self.stop = 0
        """Number of steps after which something is due or the stage ends."""
        self.num_steps = -1
        """Steps taken; -1 before the first stage is open."""
        self.run, self.metric, self.outputs = run, metric, outputs
        self.evaluate = with_outputs(evaluate, run.objectives)
        self._evaluation = StudentEvaluation(run, self.evaluate, metric)
        self._resume, self._until = resume, until
        self._stage_steps, self._interrupts = stage_steps, interrupts or Interrupts()
        self._usage = Usage()
        self._measured: Explained | None = None
        self._stack, self._stage_stack = ExitStack(), ExitStack()
        self._take: TakeSteps
        self._before, self._started = Usage(), 0.0
        self._optimizer: torch.optim.Optimizer
        # Every process takes the same steps and reads the same checkpoints; one of them writes.
        self._is_writer = run.settings.placement.is_writer
        check_evaluated(run.settings, run.num_steps)
        self._best = best_weights(
            run.settings,
            metric,
            outputs.better,
            folder=outputs.folder,
            is_writer=self._is_writer,
        )
        if self._best is not None:
            self._evaluation.require(self._best.metric)
        self._recovery = Recovery(run.settings, outputs.folder if self._is_writer else None)
        self._journal = Journal(
            None if outputs.folder is None else RunFolder.of(outputs.folder),
            run.student.module,
            self.timeline,
            # Only the process that writes notifies observers.
            observers=outputs.observers if self._is_writer else (),
            facts={**run_facts(run), **best_facts(self._best, run.settings.eval_every)},
            best=self._best,
            recovery=self._recovery,
            placement=run.settings.placement,
            keep=run.settings.keep_checkpoints,
            async_save=run.settings.async_save,
        )

    def __enter__(self) -> "TrainingRun":
        """Open the run folder, go on from a checkpoint if there is one, and open the teacher.

        Returns:
            The run; one that is complete already has an `end`, and its student the finished
            weights.
        """
        with ExitStack() as stack, self._interrupts.raised_at_once():
            stack.enter_context(ended_workers(self.run.stream))
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
            # Hooks and frozen flags of the stage lie inside the modes that the run restores.
            self._stage_stack.__exit__(kind, error, trace)
        finally:
            self._stack.__exit__(kind, error, trace)

    def _open_run(self, stack: ExitStack) -> None:
        run, module = self.run, self.run.student.module
        # Every checkpoint that will be read is looked at now, before a weight moves.
        if run.teacher is not None:
            run.teacher.check(run.teachers)
        call = {"metric": self.metric, "resume": self._resume, "output_dir": self.outputs.folder}
        check_alike(run, self.evaluate, {**self._journal.facts, **call})
        if self.outputs.folder is not None:
            # Here, and not at the first checkpoint, when steps would be lost.
            check_savable(module)
        stack.enter_context(modes_kept(module))
        self._evaluation.modes = train(module)
        check_ids(self.evaluate, run.tables)
        if not self._resume:
            # Before the folder is taken: a call with another evaluation may write there.
            self._evaluation.try_once()
        # Closed in the opposite order: the writer first, the lock of the folder after it.
        lock = stack.enter_context(ExitStack())
        stack.callback(self._journal.close)
        self._open_journal(lock)
        if self.end is not None:
            return
        # A finished run has returned above and needs no evaluator.
        if self._resume and self._journal.resumed is None:
            self._evaluation.try_once()
        if run.teacher is not None:
            # Last of all that may refuse: casting and compiling a teacher costs time and memory.
            stack.enter_context(run.teacher.teaching(run.settings.teacher_inference))
        # Within the teacher's context: a warm start runs it in evaluation mode.
        self._usage = apply_start(run.warm_start, self._journal.usage, run.settings.placement)
        self._open_student(stack)
        # A run that goes on is tried with the weights of its checkpoint.
        if self._journal.resumed is not None:
            self._evaluation.try_once()

    def _open_student(self, stack: ExitStack) -> None:
        """Divide the student among processes, if they hold shares of it, and make the optimizer."""
        run = self.run
        student = stack.enter_context(run.settings.placement.sharded(run.student))
        if student is not run.student:
            self.run = replace(run, student=student)
            self._evaluation.divide(self.run, modes_of(student.module))
        # Of all parameters, also those that a stage freezes: its state outlives stages, and torch
        # skips a parameter without a gradient.
        self._optimizer = run.optimizer.build(student.module.parameters())
        self._journal.restore(student.module, self._optimizer)

    def _open_journal(self, lock: ExitStack) -> None:
        run, outputs = self.run, self.outputs
        opening = run_record(run, self.metric, outputs.task, self._journal.digest)
        opening = replace(opening, better=outputs.better, chance=chance_of(self.evaluate))
        self.end = self._journal.open(opening, resume=self._resume, lock=lock)
        writes = outputs.folder is not None and self._is_writer
        if self.end is None and writes and outputs.trajectory is not None:
            # Under the lock only: temporary files of a running writer look like leftovers.
            outputs.trajectory.remove_leftovers()

    def advance(self, losses: Sequence[StepLoss] | None = None) -> None:
        """Take the next step or compiled block of steps, then record, evaluate and save as due.

        The first call opens a stage, the last one closes the run.

        Args:
            losses: Losses of steps that a group of students has taken; None takes the steps here.

        Raises:
            DivergenceError: If a step has failed, and the settings give no way to go on.
        """
        try:
            self._advance(losses)
        except DivergenceError as error:
            if not self._recovery.rolls_back():
                raise
            self._roll_back(error)

    def _advance(self, losses: Sequence[StepLoss] | None) -> None:
        if self.end is not None:
            return
        while self.stepper is None:
            if not self.timeline.remaining():
                self._finish()
                return
            self._enter_stage(self.run.stages[self.timeline.remaining()[0]])
        stepper = self.stepper
        assert stepper is not None  # noqa: S101 - opened above
        step_losses = self._take(self.num_steps, self.stop) if losses is None else losses
        if self._count(stepper, step_losses) is not None:
            self._close_stage(stepper)
            # The teacher of the stage goes before the next one is loaded.
            del stepper
            if not self.timeline.remaining():
                self._finish()

    def _count(self, stepper: Stepper, step_losses: Sequence[StepLoss]) -> StageEnd | None:
        """Count steps, record, evaluate and save as due, and handle a signal.

        Returns:
            The end of the stage, if these were its last steps.
        """
        self.num_steps += len(step_losses)
        # Before anything is saved: a checkpoint holds the sum over the open window, these steps
        # included.
        self.timeline.add(map(self._recovery.loss_for_rules, step_losses))
        for loss in step_losses:
            if loss.note:
                number = self._recovery.micro_batches
                self._write_recovery(stepper, loss.note, f"went on with {number} micro-batches")
            if loss.fault:
                self._write_recovery(stepper, loss.fault, "skipped")
        end, last = None, self.num_steps - 1
        is_due = self.num_steps == self.stop
        if is_due:
            paused = self._now()
            self._spend(paused)
            end = self._after(stepper, step_losses[-1], last)
            self._started += self._now() - paused
        # A run at its goal is complete after this step; `Interrupts` raises for the signal then.
        is_over = end is not None and end.why == "goal"
        requested = self.run.settings.placement.agreed(self._interrupts.requested)
        if not is_over and requested is not None:
            # Usage is noted where something is due, and a signal may come between.
            self._spend(self._now())
            self._interrupt(requested, stepper, step_losses[-1], last)
        if is_due and end is None:
            # Not after the end of a stage, whose successor has another first step.
            self.stop = self.timeline.due(self.num_steps)
        return end

    def _write_recovery(self, stepper: Stepper, fault: str, action: str) -> None:
        """Record that the last step has failed, and the reaction."""
        self._spend(self._now())
        stage = stepper.stage.declared.name
        self._journal.write(
            RecoveryRecord(stage=stage, fault=fault, action=action, usage=self._usage)
        )

    def _roll_back(self, error: DivergenceError) -> None:
        """Return to the newest checkpoint after a failed step.

        Raises:
            DivergenceError: If there is none.
        """
        if self.stepper is not None:
            self._spend(self._now())
            self._leave_stage()
        if not self._journal.roll_back(str(error), self._usage, self._optimizer):
            raise DivergenceError(f"{error}; no checkpoint was written before it") from error
        self._usage, self._measured = self._journal.usage, None

    def skip(self, seconds: float) -> None:
        """Leave the time in which other runs advanced out of the training time.

        Args:
            seconds: Seconds since the last step.
        """
        self._started += seconds

    def _enter_stage(self, stage: BoundStage) -> None:
        """Open a stage, or leave it out; one that goes on is open in any case."""
        measured = None
        if self._usage.steps == self.timeline.start:
            measured = explained_before(self.run, stage, self._usage, self._measured)
        if measured is not None:
            self._measured = measured
            self._usage += measured.usage
            if measured.leaves_out(stage):
                self._write_begin(stage, measured)
                self._write_end(self.timeline.leave_out())
                return
        self._open_stage(stage, measured)

    def _write_begin(self, stage: BoundStage, measured: Explained | None) -> None:
        share = None if measured is None else measured.share
        name = stage.declared.name
        self._journal.write(StageRecord(stage=name, usage=self._usage, explained=share))

    def _open_stage(self, stage: BoundStage, measured: Explained | None) -> None:
        start = self.timeline.start
        # Otherwise a checkpoint lies within the stage: its record is on disk, and the state of the
        # optimizer goes on.
        if self._usage.steps == start:
            self._recovery.enter_stage()
            if stage.declared.optimizer_state == "reset":
                self._optimizer = self.run.optimizer.build(self.run.student.module.parameters())
            self._write_begin(stage, measured)
        self._before = self._usage
        # A checkpoint at the border holds the adapters of the stage before.
        resumed = self._journal.resumed if self._before.steps > start else None
        with ExitStack() as stack:
            stage_steps = stepping(
                self.run,
                stage,
                self._optimizer,
                start=start,
                resumed=resumed,
                recovery=self._recovery,
            )
            stepper = stack.enter_context(stage_steps)
            self._take = stack.enter_context(self._stage_steps(stepper))
            self._stage_stack = stack.pop_all()
        self.stepper = stepper
        # A stage that goes on has been charged before its checkpoint; it takes the same statistics
        # again, since no checkpoint holds them.
        if self._before.steps == start:
            self._before += self.stepper.calibration
        self.num_steps = self._before.steps
        # Last: loading, hooks and compiling are no training, and calibration has its own seconds.
        self._started, self.stop = self._now(), self.timeline.due(self.num_steps)

    def _close_stage(self, stepper: Stepper) -> None:
        # No further loss of the stage would show an update to infinite weights.
        stepper.check_trained(self.num_steps - 1)
        self._leave_stage()

    def _leave_stage(self) -> None:
        self.stepper = None
        self._stage_stack.close()
        # The bound method holds the stepper, and with it the teacher of the stage.
        del self._take

    def _spend(self, at: float) -> None:
        """Note the usage of the stage until a time of `_now`."""
        stepper = self.stepper
        assert stepper is not None  # noqa: S101 - called while a stage is open
        seconds = self._before.seconds + at - self._started
        self._usage = usage_after(
            self.run, self._before, stepper.stage, done=self.num_steps, seconds=seconds
        )

    def _finish(self) -> None:
        files, module = self._journal.files, self.run.student.module
        try:
            metrics = self._evaluation.metrics(self.run.stages[-1], self._usage.steps - 1)
        except DivergenceError:
            raise
        except Exception as error:
            # The evaluation may be the user's, and training is over: its result is kept.
            if files is not None:
                self._journal.save_student()
                error.add_note(f"the trained weights are in {str(files.weights)!r}")
            raise
        best, point = self._best, None
        self._keep_best(metrics)
        if best is not None:
            # All processes read the file that one has written.
            self.run.settings.placement.wait()
            best.load(module)
            point = best.point
        # On disk before the record that holds their hash.
        weights = self._journal.save_student()
        end = EndRecord(
            metrics=metrics if point is None else point.metrics,
            usage=self._usage,
            weights=weights,
            best_metric="" if best is None or point is None else best.metric,
            best_step=0 if point is None else point.step,
            skipped_steps=self._recovery.state.skipped,
            roll_backs=self._recovery.state.roll_backs,
        )
        self._journal.finish(end)
        if best is not None:
            best.remove()
        self.end = end
        # The folder is free and the student in its own modes while other runs go on.
        self._stack.close()

    def _now(self) -> float:
        return self.run.settings.placement.now()

    def _after(self, stepper: Stepper, loss: StepLoss, step: int) -> StageEnd | None:
        """Record, evaluate and save as due after a step.

        Returns:
            The end of the stage, if it ends after this step.
        """
        settings, stage, done = self.run.settings, stepper.stage, step + 1
        if done % settings.log_every == 0:
            self._write_loss(stepper, loss, step)
        trajectory = self.outputs.trajectory
        is_kept = trajectory is not None and done in trajectory.steps
        is_due = done % settings.eval_every == 0
        if is_kept:
            # Weights may be non-finite after a finite loss, and a trajectory must not hold them.
            stepper.check_weights(step)
        metrics: dict[str, float] = {}
        if is_due or is_kept:
            metrics = self._metrics_or_save(stage, stepper, loss, step)
        reaches_goal = False
        if is_due:
            self._keep_best(metrics)
            name = stage.declared.name
            self._journal.write(EvaluationRecord(stage=name, metrics=metrics, usage=self._usage))
            # As long as no objective has read the logits, a metric of them measures chance.
            is_taught = stage.plan.reads_logits
            reaches_goal = is_taught and self._until is not None and self._until(metrics)
        # Before the checkpoint, which counts the record of an end as written.
        # An evaluation for the trajectory alone must not end a stage: with and without a trajectory
        # the run is the same.
        end = self._look(stage, done, metrics if is_due else {}, reaches_goal=reaches_goal)
        if trajectory is not None and is_kept:
            module, nll = self.run.student.module, metrics.get(NLL.name)
            trajectory.save(module, done, nll, is_writer=self._is_writer)
        every = settings.save_every
        # Nothing is resumed from where a run has ended.
        if every is not None and done % every == 0 and not reaches_goal:
            self._save(stepper, loss, step)
        return end

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        """Keep the weights after an evaluation, if the settings say so and they are the best."""
        if self._best is not None:
            # A checkpoint that is being written takes the file of the best weights until now.
            self._journal.wait()
            self._best.keep(self.run.student.module, self._usage.steps, metrics)

    def _write_loss(self, stepper: Stepper, loss: StepLoss, step: int) -> None:
        """Record the loss of a step, unless it was skipped and has a record of its own."""
        # On a GPU this is the first look at a loss since the last record.
        stepper.check(loss, step)
        if loss.fault:
            return
        rate = stepper.learning_rate(step)
        record = step_record(stepper.stage, loss, learning_rate=rate, usage=self._usage)
        self._journal.write(record)

    def _look(
        self,
        stage: BoundStage,
        done: int,
        metrics: Mapping[str, float],
        *,
        reaches_goal: bool = False,
    ) -> StageEnd | None:
        """Return the end of a stage, if it ends here, after recording it."""
        end = self.timeline.look(done, metrics, reaches_goal=reaches_goal)
        # Stages of fixed length need no record of their end: it is in the plan, or in the usage of
        # the run's last record if the goal ends the run early.
        if end is not None and not isinstance(stage.declared.duration, Duration):
            self._write_end(end)
        return end

    def _write_end(self, end: StageEnd) -> None:
        self._journal.write(
            StageEndRecord(
                stage=end.stage,
                planned=end.planned,
                done=end.done,
                why=end.why,
                usage=self._usage,
            )
        )

    def _interrupt(
        self, signal_number: int, stepper: Stepper, loss: StepLoss, step: int
    ) -> NoReturn:
        """End the run after a step, of which a checkpoint is left.

        Raises:
            Interrupted: Always.
        """
        self._save(stepper, loss, step, is_last=True)
        files = self._journal.files
        saved = None if files is None else files.newest()
        raise Interrupted(signal_number, saved)

    def _save(self, stepper: Stepper, loss: StepLoss, step: int, *, is_last: bool = False) -> None:
        if self.outputs.folder is None:
            return
        # A run that has diverged must not replace its last good checkpoint.
        stepper.check(loss, step)
        stepper.check_weights(step)
        adapters = stepper.loss.adapters
        self._journal.save(self._usage, self._optimizer, adapters=adapters, is_last=is_last)

    def _metrics_or_save(
        self, stage: BoundStage, stepper: Stepper, loss: StepLoss, step: int
    ) -> dict[str, float]:
        """Return the student's metrics; if the evaluation fails, a checkpoint is left.

        Raises:
            DivergenceError: If one is not finite; then nothing is saved.
            Exception: The error of the evaluation.
        """
        try:
            return self._evaluation.metrics(stage, self._usage.steps - 1)
        except DivergenceError:
            # Where not every loss is checked, an error about that of the step is more precise.
            stepper.check(loss, step)
            raise
        except Exception as error:
            # The checkpoint goes on after this step, which may be the last of a window or stage.
            self._look(stage, step + 1, {})
            self._save(stepper, loss, step, is_last=True)
            if self.outputs.folder is not None:
                error.add_note(f"a checkpoint is in {str(self.outputs.folder / CHECKPOINTS)!r}")
            raise
