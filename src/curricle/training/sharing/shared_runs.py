"""Students of one teacher, trained in turns.

Students that read the same batches need the same targets. Trained step by step beside each other
they need one forward pass of the teacher for each batch, as deep as the deepest of them reads, so a
comparison of n students costs little more than one student where the teacher dominates the cost.

Every student runs as it would alone: with its own stages, optimizer, noise, records and
checkpoints, from which it can be resumed here or alone. Results are equal, on a CPU bit-equal: the
pass of the teacher is the same computation except for its depth, and a prefix does not depend on
the layers after it. Exception: if one student has a tap inside the head of the teacher, which then
runs at all positions, logits of the others may differ in the last digits.

Seconds are counted for each student. The first student at a batch also waits for the teacher, so
the order rotates and each student gets an equal part of that time; on a GPU, which works
asynchronously, only the sum over students is right. FLOPs are those of the plan of a run alone.

Design: there is no second engine. The runs with the fewest steps advance next, by one step each.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import final

from curricle.data.batch import Batch
from curricle.data.loader_workers import end_workers
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.models.aliasing import check_apart
from curricle.records import EndRecord
from curricle.teachers.live import LiveTeacher
from curricle.teachers.shared import SharedTeacher
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.batches import relative_tokens
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.speed import check_speed
from curricle.training.loop.engine import TrainingRun, single_steps
from curricle.training.loop.evaluation import Evaluator
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.setup.compatibility import check_compatible
from curricle.training.setup.interrupts import Interrupted, Interrupts
from curricle.training.setup.torch_state import standard_state
from curricle.training.sharing.grouping import StudentGroups

SHARED = (
    "device",
    "precision",
    "teacher_precision",
    "gradient_accumulation_steps",
    "threads",
    "compiled_steps",
    "compile",
    "prefetch",
)
"""Settings that students of one teacher have in common."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRun:
    """One student of a shared teacher."""

    run: BoundRun
    """The bound run; its student is trained in place."""
    evaluate: Evaluator
    """Gives the student's metrics."""
    outputs: Outputs
    """Where to write."""


@standard_state()
def execute_shared(
    members: Sequence[SharedRun],
    *,
    metric: str,
    resume: bool = False,
    until: Callable[[Mapping[str, float]], bool] | None = None,
    batch_students: bool = False,
) -> list[EndRecord]:
    """Run several bound curricula to their ends with one pass of the teacher a batch.

    Args:
        members: The students; those that have a teacher have the same one.
        metric: The metric by which the runs are judged.
        resume: Whether each goes on from the newest checkpoint in its run folder.
        until: Function from the metrics of an evaluation to whether a run may end there.
        batch_students: Whether students of one architecture and method take their steps as one
            batched model; results then agree with those of separate runs within rounding.

    Returns:
        The last record of each, in the order of the members.

    Raises:
        Interrupted: If a signal has ended the runs, after each has saved where it stands.
        BindError: If the students do not share data, teacher, device, precision and accumulation,
            or steps that are to be compiled cannot be.
    """
    if not members:
        return []
    _check(members, batch_students=batch_students)
    teachers = [member.run.teacher for member in members]
    live = next((teacher for teacher in teachers if isinstance(teacher, LiveTeacher)), None)
    shared = None if live is None else SharedTeacher(live)
    stream = _SharedStream(members[0].run)
    if live is not None:
        # Before the first student moves, also for the last.
        live.check(step for member in members for step in member.run.teachers)
    groups = StudentGroups(members[0].run.settings.compiled_steps) if batch_students else None
    with ExitStack() as stack:
        stack.enter_context(members[0].run.settings.stated_threads())
        # One for all: each run sees the signal after its step, and saves before the process ends.
        interrupts = stack.enter_context(
            Interrupts(saves=any(member.outputs.folder is not None for member in members))
        )
        # Around all students: if each did so, the first that ends would restore the teacher's own
        # modes while others still read it.
        if live is not None:
            stack.enter_context(live.teaching(members[0].run.settings.teacher_inference))
        runs = [
            stack.enter_context(
                TrainingRun(
                    # The stream keeps its digest, so a run that was interrupted here can be resumed
                    # alone.
                    replace(member.run, stream=stream, teacher=_teacher_of(member.run, shared)),
                    member.evaluate,
                    metric=metric,
                    outputs=member.outputs,
                    resume=resume,
                    until=until,
                    stage_steps=single_steps if groups is None else groups.joining,
                    interrupts=interrupts,
                )
            )
            for member in members
        ]
        return _finished(runs, groups)


def _teacher_of(
    run: BoundRun, shared: SharedTeacher | None
) -> SharedTeacher | StoredTeacher | None:
    """Return the teacher of one of the students."""
    return run.teacher if isinstance(run.teacher, StoredTeacher) else run.teacher and shared


def _finished(runs: Sequence[TrainingRun], groups: StudentGroups | None) -> list[EndRecord]:
    """Return the last records of some runs after advancing each to its end.

    Raises:
        Interrupted: If a signal has ended them.
    """
    turn = _Turn(runs)
    while active := turn.next_round():
        # Runs that were resumed at other steps catch up, since one pass serves students at one
        # step.
        behind = min(run.num_steps for run in active)
        waiting = [run for run in active if run.num_steps == behind]
        if groups is None:
            for run in waiting:
                turn.advance(run)
        else:
            groups.advance(waiting, turn.advance)
    turn.check_uninterrupted()
    return [run.end for run in runs if run.end is not None]


@final
class _Turn:
    """Runs that take turns, each with the seconds of its own training."""

    def __init__(self, runs: Sequence[TrainingRun]) -> None:
        self._runs, self._number = list(runs), 0
        # The clock of the process, not that of the placement, which would wait for a GPU in every
        # turn.
        self._paused_at = {id(run): time.perf_counter() for run in runs}
        self._interrupted: dict[int, Interrupted] = {}

    def next_round(self) -> list[TrainingRun]:
        """Return the runs that go on, each time beginning with another."""
        active = [run for run in self._runs if run.end is None and id(run) not in self._interrupted]
        # The first at a batch waits for the teacher, so its place rotates.
        self._number += 1
        turn = self._number % len(active) if active else 0
        return active[turn:] + active[:turn]

    def advance(
        self, run: TrainingRun, losses: Sequence[StepLoss] | None = None, seconds: float = 0.0
    ) -> None:
        """Advance a run.

        Args:
            run: The run.
            losses: Losses of steps that were taken in a group.
            seconds: The run's share of the seconds of these steps.

        Raises:
            Interrupted: If a signal has ended the run and nothing is saved.
        """
        run.skip(time.perf_counter() - self._paused_at[id(run)] - seconds)
        try:
            run.advance(losses)
        except Interrupted as error:
            # Without any folder no other run has something to save.
            if all(run_.outputs.folder is None for run_ in self._runs):
                raise
            self._interrupted[id(run)] = error
        self._paused_at[id(run)] = time.perf_counter()

    def check_uninterrupted(self) -> None:
        """Check that no signal has ended a run; by now every run has saved a checkpoint.

        Raises:
            Interrupted: If one has.
        """
        # A run without a folder has no checkpoint to name, so it comes last.
        for error in sorted(self._interrupted.values(), key=lambda error: not error.checkpoint):
            raise error


@final
class _SharedStream:
    """Stream of several runs; each batch is read and moved once."""

    def __init__(self, run: BoundRun) -> None:
        self._stream: Stream = run.stream
        self._placement = run.settings.placement
        self._batch: tuple[int, Batch] | None = None

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self._stream.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of every batch."""
        return self._stream.tokens_per_batch

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything the batches depend on."""
        return self._stream.fingerprint

    def relative_tokens(self, start: int, stop: int) -> tuple[int, int]:
        """Return the positions of some steps, and those that as many first batches would have."""
        return relative_tokens(self._stream, start, stop)

    def end_workers(self) -> None:
        """End the workers of the stream, if it has any."""
        end_workers(self._stream)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step where the models lie, the same tensors for every run."""
        if self._batch is None or self._batch[0] != step:
            # Of one step only: runs that are at the same step read it one after another.
            self._batch = step, self._placement.part_of(self._stream.batch(step))
        return self._batch[1]


def _check(members: Sequence[SharedRun], *, batch_students: bool) -> None:
    """Check that students can be taught together.

    Raises:
        BindError: If not.
    """
    first = members[0].run
    way = "batch_students" if batch_students else "share_teacher"
    check_compatible(first.settings.features() | {way: f"{way!r}"}, BindError)
    teachers = [member.run.teacher for member in members if member.run.teacher is not None]
    if any(teacher is not teachers[0] for teacher in teachers):
        raise BindError("students that are trained together must have one 'teacher'; got several")
    for run in (member.run for member in members):
        if run.stream.fingerprint != first.stream.fingerprint:
            raise BindError(
                f"students of one teacher must read the same 'stream'; {run.name!r} with seed "
                f"{run.seed} and {first.name!r} with seed {first.seed} do not"
            )
        check_speed(run)
        for name in SHARED:
            setting, shared = getattr(run.settings, name), getattr(first.settings, name)
            if setting != shared:
                raise BindError(
                    f"students of one teacher must have the same {name!r}; got {shared} and "
                    f"{setting}"
                )
    if len({id(member.run.student.module) for member in members}) < len(members):
        raise BindError(
            "each 'student' of a shared teacher must be a module of its own; got one twice"
        )
    # A layer of two students would be moved twice a step.
    for member, second in itertools.combinations(members, 2):
        names = f"student with seed {member.run.seed}", f"student with seed {second.run.seed}"
        check_apart(member.run.student.module, second.run.student.module, names=names)
