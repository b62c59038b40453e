"""How is a bound curriculum executed?

One loop runs every curriculum: stage by stage, step by step, with evaluations, records and
checkpoints at their intervals. It knows objectives and durations, not strategies.

Design: observers receive the immutable records of `curricle.records`, the same values that go
to disk. Training time stands still while the student is evaluated or saved. While it trains, every
submodule of the student is in training mode if the student was in evaluation mode at the call. Of a
student in training mode, submodules that its owner has put in evaluation mode, such as frozen batch
normalizations, stay there, also after each evaluation. After the run all modes are as they were.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, final

import torch

from curricle import seeding
from curricle.errors import CheckpointError, DivergenceError
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
from curricle.specs import fingerprint
from curricle.teachers.trajectory import TrajectoryWriter
from curricle.training.ambient import standard_state
from curricle.training.binding import BoundRun, BoundStage
from curricle.training.checkpoints import (
    RunState,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from curricle.training.costs import now
from curricle.training.evaluation import LOSS, Evaluator, chance_of
from curricle.training.facts import differences, run_facts, write_facts
from curricle.training.interrupts import Interrupted, Interrupts
from curricle.training.recording import run_record, spend, step_record
from curricle.training.results import plain_metrics
from curricle.training.resuming import RunFolder, owner_of
from curricle.training.speed import check_speed
from curricle.training.stacking import Stack
from curricle.training.starting import begun
from curricle.training.stepping import StepOutcome, Stepper, stepping

Steps = Generator[int, float, EndRecord]
"""A run that stands still after each step: it gives the number of steps that are done, wants to be
sent the seconds that have passed meanwhile, and returns its last record."""
Joining = Callable[[Stepper], AbstractContextManager[object]]
"""Lets a stage that is open take its steps together with others, until the context closes."""
Observer = Callable[[Record], None]
"""A function that is told what happens; it gets immutable records and cannot reach the engine."""
RECORDS, CHECKPOINTS, FINISHED = "records.jsonl", "checkpoints", "model.safetensors"
OUR_METRICS = ("accuracy", LOSS)
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
    ahead = run.settings.compiled_steps
    interrupts = Interrupts(saves=outputs.folder is not None)
    steps = executing(
        run,
        evaluate,
        metric=metric,
        outputs=outputs,
        resume=resume,
        until=until,
        joining=nullcontext if ahead == 1 else Stack(ahead, is_class=False).joining,
        interrupts=interrupts,
    )
    with run.settings.stated_threads(), interrupts:
        try:
            next(steps)
            while True:
                steps.send(0.0)
        except StopIteration as finished:
            end: EndRecord = finished.value
            return end


def executing(  # noqa: PLR0913 - what several runs may share, beside what each has
    run: BoundRun,
    evaluate: Evaluator,
    *,
    metric: str,
    outputs: Outputs,
    resume: bool = False,
    until: Callable[[Mapping[str, float]], bool] | None = None,
    joining: Joining = nullcontext,
    interrupts: Interrupts | None = None,
) -> Steps:
    """Run a bound curriculum step by step; arguments and errors are those of `execute`.

    Whoever asks for the steps sees to the number of threads, and may join those of several runs.

    Yields:
        The number of steps done.

    Returns:
        The last record.
    """
    # Every checkpoint that will be read is looked at now, before a weight moves.
    if run.teacher is not None:
        run.teacher.check(run.teachers)
    if outputs.folder is not None:
        check_savable(run.student.module)
    with modes_kept(run.student.module):
        whole = _Execution(
            run, evaluate, metric, outputs, until, joining, interrupts or Interrupts()
        )
        return (yield from whole.run_all(resume=resume))


@final
@dataclass(slots=True)
class _Execution:
    """One execution: the state that changes while a run goes on."""

    run: BoundRun
    evaluate: Evaluator
    metric: str
    outputs: Outputs
    until: Callable[[Mapping[str, float]], bool] | None
    joining: Joining
    interrupts: Interrupts
    has_ended: bool = False
    spent: Spent = field(default_factory=Spent)
    writer: RecordWriter | None = None
    resumed: Path | None = None
    modes: Modes = ()
    lock: ExitStack = field(default_factory=ExitStack)
    optimizer: torch.optim.Optimizer = field(init=False)
    facts: dict[str, Any] = field(init=False)
    digest: str = field(init=False)

    def run_all(self, *, resume: bool) -> Steps:
        run = self.run
        self.optimizer = run.optimizer.build(run.student.module.parameters())
        self.facts = run_facts(run)
        self.digest = fingerprint(self.facts)
        self.modes = train(run.student.module)
        if not resume:
            # Before the folder is taken: a call with another evaluation may write there.
            self._try_evaluation()
        try:
            end = self._open(resume=resume)
            if end is not None:
                return end
            folder = self.outputs.folder
            if folder is not None and self.resumed is None:
                write_facts(folder, self.facts)
            if resume:
                self._try_evaluation()
            teacher, settings = run.teacher, run.settings
            with nullcontext() if teacher is None else teacher.teaching(settings.teacher_inference):
                return (yield from self._stages())
        finally:
            if self.writer is not None:
                self.writer.close()
            self.lock.close()

    def _stages(self) -> Steps:
        self.spent = begun(self.run.start, self.spent, self.run.settings.torch_device())
        for stage in self.run.stages:
            if self.spent.steps < stage.end and not self.has_ended:
                yield from self._stage(stage)
        files, module = self._files(), self.run.student.module
        try:
            metrics = self._metrics(self.run.stages[-1])
        except Exception as error:
            if files is not None:
                files.save_student(module)
                error.add_note(f"the trained weights are in {str(files.weights)!r}")
            raise
        weights = "" if files is None else files.save_student(module)
        end = EndRecord(metrics=metrics, spent=self.spent, weights=weights)
        self._tell(end)
        if files is not None and self.writer is not None:
            self.writer.sync()
            files.seal()
        return end

    def _stage(self, stage: BoundStage) -> Generator[int, float, None]:
        if self.spent.steps == stage.start:
            if stage.declared.optimizer_state == "reset":
                self.optimizer = self.run.optimizer.build(self.run.student.module.parameters())
            self._tell(StageRecord(stage=stage.declared.name, spent=self.spent))
        before = self.spent
        resumed = self.resumed if before.steps > stage.start else None
        opened = stepping(self.run, stage, self.optimizer, resumed=resumed)
        with opened as stepper, self.joining(stepper):
            if before.steps == stage.start:
                before += stepper.calibration
            started, due = self._now(), self._next_due(before.steps)
            for step in range(before.steps, stage.end):
                stepper.until = min(due, stage.end)
                outcome = stepper.step(step)
                if step + 1 == due:
                    due = self._next_due(due)
                    paused = self._now()
                    seconds = before.seconds + paused - started
                    self.spent = spend(self.run, before, stage, done=step + 1, seconds=seconds)
                    self._after(stage, stepper, outcome, step)
                    if self.has_ended:
                        stepper.check_trained(step)
                        return
                    started += self._now() - paused
                if self.interrupts.requested is not None and not stepper.ahead():
                    seconds = before.seconds + self._now() - started
                    self.spent = spend(self.run, before, stage, done=step + 1, seconds=seconds)
                    self._interrupt(self.interrupts.requested, stepper, outcome, step)
                started += yield step + 1
            seconds = before.seconds + self._now() - started
            stepper.check_trained(stage.end - 1)
        self.spent = spend(self.run, before, stage, done=stage.end, seconds=seconds)

    def _now(self) -> float:
        return now(self.run.settings.torch_device())

    def _next_due(self, done: int) -> int:
        """Return after how many steps, more than are done, something is to be written."""
        settings, trajectory = self.run.settings, self.outputs.trajectory
        every = (settings.record_every, settings.evaluate_every, settings.checkpoint_every)
        due = [done - done % interval + interval for interval in every if interval is not None]
        kept = () if trajectory is None else trajectory.steps
        return min([*due, *(step for step in kept if step > done)])

    def _after(self, stage: BoundStage, stepper: Stepper, outcome: StepOutcome, step: int) -> None:
        settings, done = self.run.settings, step + 1
        if done % settings.record_every == 0:
            stepper.check(outcome, step)
            rate = stepper.learning_rate(step)
            self._tell(step_record(stage, outcome, learning_rate=rate, spent=self.spent))
        trajectory = self.outputs.trajectory
        is_kept = trajectory is not None and done in trajectory.steps
        is_due = done % settings.evaluate_every == 0
        if is_kept:
            stepper.check_weights(step)
        metrics: dict[str, float] = {}
        if is_due or is_kept:
            metrics = self._metrics_or_save(stage, stepper, outcome, step)
        if is_due:
            name = stage.declared.name
            self._tell(EvaluationRecord(stage=name, metrics=metrics, spent=self.spent))
            is_taught = stage.plan.reads_logits
            self.has_ended = is_taught and self.until is not None and self.until(metrics)
        if trajectory is not None and is_kept:
            trajectory.save(self.run.student.module, done, metrics.get(LOSS))
        every = settings.checkpoint_every
        # Nothing is resumed from where a run has ended.
        if every is not None and done % every == 0 and not self.has_ended:
            self._save(stepper, outcome, step)

    def _interrupt(
        self, signal_number: int, stepper: Stepper, outcome: StepOutcome, step: int
    ) -> NoReturn:
        """End the run after a step, of which a checkpoint is left.

        Raises:
            Interrupted: Always.
        """
        self._save(stepper, outcome, step)
        files = self._files()
        saved = None if files is None else files.newest()
        raise Interrupted(signal_number, saved)

    def _save(self, stepper: Stepper, outcome: StepOutcome, step: int) -> None:
        if self.outputs.folder is None or self.writer is None:
            return
        # A run that has diverged must not replace its last good checkpoint.
        stepper.check(outcome, step)
        stepper.check_weights(step)
        # Not even a crash of the machine may leave a checkpoint whose records are lost.
        self.writer.sync()
        state = RunState(
            spent=self.spent,
            records_bytes=self.writer.size,
            records_head=self.writer.head,
            run=self.digest,
        )
        folder, module = self.outputs.folder / CHECKPOINTS, self.run.student.module
        save_checkpoint(folder, state, module, self.optimizer, adapters=stepper.adapters)

    def _metrics_or_save(
        self, stage: BoundStage, stepper: Stepper, outcome: StepOutcome, step: int
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
            stepper.check(outcome, step)
            raise
        except Exception as error:
            self._save(stepper, outcome, step)
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
            set_modes(self.modes)

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
                    f"after step {self.spent.steps - 1} with seed {self.run.seed}"
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

    def _open(self, *, resume: bool) -> EndRecord | None:
        """Open the records at the newest checkpoint.

        Returns:
            The end of the run if it is complete; nothing is open then.

        Raises:
            CheckpointError: If the folder holds a run that is not to be resumed, or another one, or
                a damaged one, or another process writes into it.
        """
        opening = run_record(self.run, self.metric, self.outputs.task, self.digest)
        opening = replace(opening, better=self.outputs.better, chance=chance_of(self.evaluate))
        files = self._files()
        if files is None:
            self._tell(opening)
            return None
        if not resume:
            files.check_free()
        end = self._finished(files, opening)
        if end is not None:
            return end
        # What was read above may be of a process that has written since.
        files.open_for_writing(self.lock)
        if not resume:
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
        owner = owner_of(known, self.digest) if newest is None else read_state(newest).run
        if owner != self.digest:
            raise CheckpointError(
                f"{str(newest or files.records)!r} must belong to this run; its digest is "
                f"{owner!r}, not {self.digest!r}{self._reason(files.folder, known)}"
            )
        if not known or not isinstance(end := known[-1], EndRecord):
            return None
        files.load_student(self.run.student.module, end)
        self._notify(opening)
        self._notify(end)
        return end

    def _reason(self, folder: Path, known: Sequence[Record]) -> str:
        """Return what a refusal to go on adds: what has changed, and whether that can be helped."""
        changes = differences(folder, self.facts)
        is_finished = bool(known) and isinstance(known[-1], EndRecord)
        end = "; a finished run cannot be prolonged or changed, take another folder"
        return (f": {changes}" if changes else "") + (end if is_finished else "")

    def _go_on(self, files: RunFolder, opening: RunRecord) -> None:
        """Go on from the newest checkpoint, or begin if there is none."""
        self.resumed = files.newest()
        if self.resumed is None:
            files.begin()
            self.writer = RecordWriter(files.records)
            self._tell(opening)
            return
        state = read_state(self.resumed, planned=self.run.stages[-1].end)
        self.writer = RecordWriter(
            files.records, keep_bytes=state.records_bytes, head=state.records_head
        )
        load_checkpoint(self.resumed, self.run.student.module, self.optimizer)
        self.spent = state.spent
        # It is on disk already, but these observers have not seen it.
        self._notify(opening)

    def _tell(self, record: Record) -> None:
        if self.writer is not None:
            self.writer.write(record)
        self._notify(record)

    def _notify(self, record: Record) -> None:
        for observer in self.outputs.observers:
            observer(record)
