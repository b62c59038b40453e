"""How are several students taught at once by one teacher?

Students that read the same batches ask the same teacher about them. Taught side by side, step by
step, they need one forward pass of the teacher a batch, as deep as the deepest of them reads, and a
comparison of n students costs little more than one where the teacher is what costs.

Every student runs as it would by itself: with its own stages, optimizer, noise, records and
checkpoints, which may be resumed here or alone. Results are equal, and on a CPU bit-equal: the
teacher's pass is the same computation, only its depth may be greater, and a prefix does not depend
on what comes after it. There is one exception: if one student reads a tap inside the teacher's
head, which then runs at all positions, the logits of the others may differ in the last digits.

Seconds are each student's own. Who comes first at a batch also waits for the teacher, so they take
turns at that, and each is told an equal part of the teacher's time; on a GPU, which works behind
the program's back, seconds are only right for all students together. FLOPs are those of the plan,
as if each had been taught alone.

Design: no second engine. The runs with the fewest steps advance next, by a step each.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import final

from curricle.data.streams import Batch, Stream
from curricle.errors import BindError
from curricle.models.aliasing import check_apart
from curricle.protocols import conforms
from curricle.records import EndRecord
from curricle.teachers.live import LiveTeacher
from curricle.teachers.shared import SharedTeacher
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.batches import CountsTokens
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.speed import check_speed
from curricle.training.loop.engine import Outputs, TrainingRun, single_steps
from curricle.training.loop.evaluation import Evaluator
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.process.ambient import standard_state
from curricle.training.process.interrupts import Interrupted, Interrupts
from curricle.training.settings import EngineSettings
from curricle.training.sharing.grouping import StudentGroups

SHARED = (
    "device",
    "precision",
    "teacher_precision",
    "accumulation",
    "threads",
    "compiled_steps",
    "compiled_teacher",
    "prefetch",
)
"""Settings that students of a classroom have in common."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One student of a classroom."""

    run: BoundRun
    """What to run; the student is trained in place."""
    evaluate: Evaluator
    """Gives the student's metrics."""
    outputs: Outputs
    """Where to write."""


@standard_state()
def execute_together(
    seats: Sequence[Seat],
    *,
    metric: str,
    resume: bool = False,
    until: Callable[[Mapping[str, float]], bool] | None = None,
    stacked: bool = False,
) -> list[EndRecord]:
    """Run several bound curricula to their ends with one pass of the teacher a batch.

    Args:
        seats: The students; those that have a teacher have the same one.
        metric: The metric by which the runs are judged.
        resume: Whether each goes on from the newest checkpoint in its run folder.
        until: Says of the metrics of an evaluation whether a run may end there.
        stacked: Whether students that can be are stepped as one model, by `stacking`; results then
            agree with those of separate runs within rounding.

    Returns:
        The last record of each, in the order of the seats.

    Raises:
        Interrupted: If a signal has ended the runs, after each has saved where it stands.
        BindError: If the students do not share data, teacher, device, precision and accumulation,
            or steps that are to be compiled cannot be.
    """
    if not seats:
        return []
    _check(seats, stacked=stacked)
    teachers = [one.run.teacher for one in seats]
    live = next((one for one in teachers if isinstance(one, LiveTeacher)), None)
    shared = None if live is None else SharedTeacher(live)
    stream = _SharedStream(seats[0].run)
    if live is not None:
        # Before the first student moves, also for the last.
        live.check(step for one in seats for step in one.run.teachers)
    groups = StudentGroups(seats[0].run.settings.compiled_steps) if stacked else None
    with ExitStack() as stack:
        stack.enter_context(seats[0].run.settings.stated_threads())
        interrupts = stack.enter_context(
            Interrupts(saves=any(seat.outputs.folder is not None for seat in seats))
        )
        if live is not None:
            stack.enter_context(live.teaching(seats[0].run.settings.teacher_inference))
        runs = [
            stack.enter_context(
                TrainingRun(
                    replace(seat.run, stream=stream, teacher=_seated(seat.run, shared)),
                    seat.evaluate,
                    metric=metric,
                    outputs=seat.outputs,
                    resume=resume,
                    until=until,
                    stage_steps=single_steps if groups is None else groups.joining,
                    interrupts=interrupts,
                )
            )
            for seat in seats
        ]
        return _finished(runs, groups)


def _seated(run: BoundRun, shared: SharedTeacher | None) -> SharedTeacher | StoredTeacher | None:
    """Return who teaches a student of a classroom."""
    return run.teacher if isinstance(run.teacher, StoredTeacher) else run.teacher and shared


def _finished(runs: Sequence[TrainingRun], groups: StudentGroups | None) -> list[EndRecord]:
    """Return the last records of some runs after advancing each to its end.

    Raises:
        Interrupted: If a signal has ended them.
    """
    turn = _Turn(runs)
    while active := turn.next_round():
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
            # Without a folder there is nothing that the others should save.
            if all(other.outputs.folder is None for other in self._runs):
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
    """Stream of several runs, each of whose batches is read and moved once."""

    def __init__(self, run: BoundRun) -> None:
        self._stream: Stream = run.stream
        self._device = run.settings.torch_device()
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
        if conforms(self._stream, CountsTokens):
            return self._stream.relative_tokens(start, stop)
        expected = (stop - start) * self.tokens_per_batch
        return expected, expected

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, on the device of the runs; the same for all of them."""
        if self._batch is None or self._batch[0] != step:
            self._batch = step, self._stream.batch(step).to(self._device)
        return self._batch[1]


def _check_steps(settings: EngineSettings, *, stacked: bool) -> None:
    if settings.compiled_steps > 1 and not stacked:
        raise BindError(
            f"'compiled_steps' must be 1 in a classroom that is not stacked, where students wait "
            f"for each other at every step; got {settings.compiled_steps}"
        )
    if settings.prefetch != "none":
        raise BindError(
            f"'prefetch' must be 'none' in a classroom, where students ask for the same batch in "
            f"turns; got {settings.prefetch!r}"
        )


def _check(seats: Sequence[Seat], *, stacked: bool) -> None:
    """Check that students can be taught together.

    Raises:
        BindError: If not.
    """
    first = seats[0].run
    _check_steps(first.settings, stacked=stacked)
    teachers = [one.run.teacher for one in seats if one.run.teacher is not None]
    if any(one is not teachers[0] for one in teachers):
        raise BindError("students of a classroom must have one 'teacher'; got several")
    for run in (one.run for one in seats):
        if run.stream.fingerprint != first.stream.fingerprint:
            raise BindError(
                f"students of a classroom must read the same 'stream'; {run.name!r} with seed "
                f"{run.seed} and {first.name!r} with seed {first.seed} do not"
            )
        check_speed(run)
        for name in SHARED:
            one, other = getattr(run.settings, name), getattr(first.settings, name)
            if one != other:
                raise BindError(
                    f"students of a classroom must have the same {name!r}; got {other} and {one}"
                )
    if len({id(one.run.student.module) for one in seats}) < len(seats):
        raise BindError("each 'student' of a classroom must be a module of its own; got one twice")
    for seat, other in itertools.combinations(seats, 2):
        names = f"student with seed {seat.run.seed}", f"student with seed {other.run.seed}"
        check_apart(seat.run.student.module, other.run.student.module, names=names)
