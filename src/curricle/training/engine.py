"""How is a bound curriculum executed?

One loop runs every curriculum: stage by stage, step by step, with evaluations, records and
checkpoints at their intervals. It knows objectives and durations, not strategies.

Design: observers receive the immutable records of `curricle.records`, the same values that go
to disk. Training time stands still while the student is evaluated or saved. While it trains, every
submodule of the student is in training mode, also one that its owner had put in evaluation mode (a
part that must stay there overrides its `train`); after the run all modes are as they were.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, final

import torch
from torch import nn

from curricle.errors import BindError, CheckpointError, DivergenceError
from curricle.models.restoring import modes_kept
from curricle.models.weights import architecture, load_weights, save_weights
from curricle.records import (
    EndRecord,
    EvaluationRecord,
    Record,
    RecordWriter,
    RunRecord,
    Spent,
    StageRecord,
    read_records,
)
from curricle.specs import fingerprint, plain
from curricle.teachers.stored import StoredTeacher
from curricle.teachers.trajectory import TrajectoryWriter
from curricle.training.binding import BoundRun, BoundStage
from curricle.training.checkpoints import (
    RunState,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from curricle.training.costs import now
from curricle.training.evaluation import LOSS, Evaluator
from curricle.training.interrupts import Interrupted, Interrupts
from curricle.training.recording import run_record, spend, step_record
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
SAMPLED_WEIGHTS = 16
"""Numbers of each teacher tensor that go into the digest of a run."""


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
    optimizer: torch.optim.Optimizer = field(init=False)
    digest: str = field(init=False)

    def run_all(self, *, resume: bool) -> Steps:
        run = self.run
        self.optimizer = run.optimizer.build(run.student.module.parameters())
        self.digest = run_fingerprint(run)
        try:
            end = self._open(resume=resume)
            if end is not None:
                return end
            run.student.module.train()
            teacher, settings = run.teacher, run.settings
            with nullcontext() if teacher is None else teacher.teaching(settings.teacher_inference):
                return (yield from self._stages())
        finally:
            if self.writer is not None:
                self.writer.close()

    def _stages(self) -> Steps:
        self.spent = begun(self.run.start, self.spent, self.run.settings.torch_device())
        for stage in self.run.stages:
            if self.spent.steps < stage.end and not self.has_ended:
                yield from self._stage(stage)
        metrics = self._metrics(self.run.stages[-1])
        end = EndRecord(metrics=metrics, spent=self.spent)
        if self.outputs.folder is not None:
            save_weights(self.run.student.module, self.outputs.folder / FINISHED)
        self._tell(end)
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
                        return
                    started += self._now() - paused
                if self.interrupts.requested is not None and not stepper.ahead():
                    seconds = before.seconds + self._now() - started
                    self.spent = spend(self.run, before, stage, done=step + 1, seconds=seconds)
                    self._interrupt(self.interrupts.requested, stepper, outcome, step)
                started += yield step + 1
            seconds = before.seconds + self._now() - started
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
        metrics = self._metrics(stage) if is_due or is_kept else {}
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
        folder = self.outputs.folder
        saved = None if folder is None else latest_checkpoint(folder / CHECKPOINTS)
        raise Interrupted(signal_number, saved)

    def _save(self, stepper: Stepper, outcome: StepOutcome, step: int) -> None:
        if self.outputs.folder is None or self.writer is None:
            return
        # A run that has diverged must not replace its last good checkpoint.
        stepper.check(outcome, step)
        stepper.check_weights(step)
        # Not even a crash of the machine may leave a checkpoint whose records are lost.
        self.writer.sync()
        state = RunState(spent=self.spent, records_bytes=self.writer.size, run=self.digest)
        folder, module = self.outputs.folder / CHECKPOINTS, self.run.student.module
        save_checkpoint(folder, state, module, self.optimizer, adapters=stepper.adapters)

    def _metrics(self, stage: BoundStage) -> dict[str, float]:
        """Return the student's metrics.

        Raises:
            BindError: If the one by which the run is judged is not among them.
            DivergenceError: If one is not finite.
        """
        module = self.run.student.module
        module.eval()
        with torch.no_grad(), self.run.settings.autocast():
            metrics = self.evaluate(self.run.student)
        module.train()
        if self.metric not in metrics:
            raise BindError(
                f"'metric' must be one of the evaluator's {sorted(metrics)}; got {self.metric!r}"
            )
        for name, number in metrics.items():
            if not math.isfinite(number):
                raise DivergenceError(
                    f"{name!r} must be finite; got {number} in stage {stage.declared.name!r} "
                    f"after step {self.spent.steps - 1} with seed {self.run.seed}"
                )
        return metrics

    def _open(self, *, resume: bool) -> EndRecord | None:
        """Open the records at the newest checkpoint.

        Returns:
            The end of the run if it is complete; nothing is open then.

        Raises:
            CheckpointError: If the folder holds a run that is not to be resumed, or another one.
        """
        opening = run_record(self.run, self.metric, self.outputs.task, self.digest)
        opening = replace(opening, better=self.outputs.better)
        folder = self.outputs.folder
        if folder is None:
            self._tell(opening)
            return None
        records = folder / RECORDS
        if records.exists() and not resume:
            raise CheckpointError(
                f"{str(folder)!r} must not hold a run already; resume it or choose another folder"
            )
        known = list(read_records(records)) if records.exists() else []
        found = latest_checkpoint(folder / CHECKPOINTS) if resume else None
        owner = _owner(known, self.digest) if found is None else read_state(found).run
        if owner != self.digest:
            raise CheckpointError(
                f"{str(found or records)!r} must belong to this run; its digest is {owner!r}, not "
                f"{self.digest!r}"
            )
        if known and isinstance(end := known[-1], EndRecord):
            load_weights(self.run.student.module, folder / FINISHED)
            self._notify(opening)
            self._notify(end)
            return end
        if found is None:
            self.writer = RecordWriter(records)
            self._tell(opening)
            return None
        self._go_on(found, opening, records)
        return None

    def _go_on(self, checkpoint: Path, opening: RunRecord, records: Path) -> None:
        state, self.resumed = read_state(checkpoint), checkpoint
        load_checkpoint(checkpoint, self.run.student.module, self.optimizer)
        self.spent = state.spent
        self.writer = RecordWriter(records, keep_bytes=state.records_bytes)
        # It is on disk already, but these observers have not seen it.
        self._notify(opening)

    def _tell(self, record: Record) -> None:
        if self.writer is not None:
            self.writer.write(record)
        self._notify(record)

    def _notify(self, record: Record) -> None:
        for observer in self.outputs.observers:
            observer(record)


def run_fingerprint(run: BoundRun) -> str:
    """Return a digest of everything on which the result of a run depends.

    Of the teacher's weights a sample stands for all: another training changes every tensor.
    """
    teacher: list[Any] = []
    if isinstance(run.teacher, StoredTeacher):
        each = (term.stored for stage in run.stages for term in stage.terms)
        teacher = [run.teacher.fingerprint(each)]
    elif run.teacher is not None and run.teachers:
        teacher = _sample(run.teacher.model.module)
    start = [] if run.start is None else [plain(run.start.declared)]
    return fingerprint(
        [
            [*start, *(plain(stage.declared) for stage in run.stages)],
            plain(run.optimizer),
            [*run.settings.precisions, run.settings.accumulation, run.settings.clip_norm or 0],
            run.stream.fingerprint,
            architecture(run.student.module),
            teacher,
            run.seed,
        ]
    )


def _sample(module: nn.Module) -> list[list[float]]:
    """Return the first numbers of every floating-point tensor of a module."""
    tensors = [one for one in module.state_dict().values() if one.is_floating_point()]
    return [one.flatten()[:SAMPLED_WEIGHTS].double().tolist() for one in tensors]


def _owner(known: Sequence[Record], digest: str) -> str:
    """Return the digest of the run that wrote some records; without any they may be anyone's."""
    if not known:
        return digest
    return known[0].run if isinstance(known[0], RunRecord) else ""
