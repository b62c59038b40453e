"""Comparisons: every run once, in this process or in several."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, DivergenceError
from curricle.records import EndRecord, EvaluationRecord, Record, Usage
from curricle.runs import pool
from curricle.runs.folder import Origin, end_of, start
from curricle.runs.pool import compare, work_off
from curricle.runs.spec import RunSpec
from curricle.runs.train import StudentRun, student_runs, teach
from curricle.runs.workers import LocalWorkers, RecordWatcher, local_workers

MakeSpec = Callable[..., RunSpec]


def finished(told: list[tuple[StudentRun, Record]]) -> list[str]:
    return [str(run) for run, record in told if isinstance(record, EndRecord)]


def collect(told: list[tuple[StudentRun, Record]]) -> Callable[[StudentRun, Record], None]:
    return lambda run, record: told.append((run, record))


def test_every_run_is_trained_and_told_of(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    told: list[tuple[StudentRun, Record]] = []
    compare(spec, watch=collect(told))
    assert finished(told) == [str(run) for run in student_runs(spec)]


def test_finished_runs_are_left_alone(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    compare(make_spec("seeds=[1]"), watch=lambda run, record: None)
    told: list[tuple[StudentRun, Record]] = []
    compare(spec, watch=collect(told))
    assert finished(told) == ["one_shot seed 0", "progressive seed 0"]


def test_classes_are_trained_and_told_of(make_spec: MakeSpec) -> None:
    spec = make_spec("share_teacher=true")
    teach(spec)
    told: list[tuple[StudentRun, Record]] = []
    compare(spec, watch=collect(told))
    assert sorted(finished(told)) == sorted(str(run) for run in student_runs(spec))


def count_down(number: int, watch: RecordWatcher) -> None:
    watch(f"job {number}", PROBE)


def below(number: int) -> list[int]:
    return [number - 1] if number else []


PROBE = EvaluationRecord(stage="s", usage=Usage(), metrics={})


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.integration)])
def test_jobs_that_follow_are_done_too(jobs: int) -> None:
    told: list[str] = []
    work_off(
        [2, 0],
        count_down,
        workers=local_workers(jobs),
        watch=lambda name, record: told.append(name),
        again="x",
        following=below,
    )
    assert sorted(told) == ["job 0", "job 0", "job 1", "job 2"]


@pytest.mark.integration
def test_classes_are_trained_in_several_processes(make_spec: MakeSpec) -> None:
    spec = make_spec("share_teacher=true")
    teach(spec)
    told: list[tuple[StudentRun, Record]] = []
    compare(spec, workers=LocalWorkers(2), watch=collect(told))
    assert sorted(finished(told)) == sorted(str(run) for run in student_runs(spec))


@pytest.mark.integration
def test_a_failure_in_a_process_ends_the_comparison(make_spec: MakeSpec) -> None:
    spec = make_spec(
        "strategies.one_shot.optimizer={kind: sgd, learning_rate: 1.0e+30}",
        "strategies.progressive.curriculum.refresh=1000000",
        "budget=5000000 steps",
        "seeds=[3]",
    )
    teach(spec)
    with pytest.raises(DivergenceError, match=r"stage 'logits' .*seed 3"):
        compare(spec, workers=LocalWorkers(2), watch=lambda run, record: None)
    # The other one would go on for minutes; it was asked to stop.
    assert end_of(student_runs(spec)[1].folder) is None


class Unstarted:
    """Workers of which every job waits, and one of which is lost at the first look for records."""

    threads = 1
    room = 2

    def __init__(self, error: BaseException) -> None:
        self.submitted = 0
        self.is_closed = False
        self.error = error

    def submit(self, work: object, job: object) -> Future[None]:
        self.submitted += 1
        return Future()

    def receive(self, seconds: float) -> None:
        raise self.error

    def loss(self, error: Exception) -> str:
        return "a worker was lost" if isinstance(error, BrokenProcessPool) else ""

    def close(self) -> None:
        # A second interrupt, while the workers are being ended.
        signal.raise_signal(signal.SIGINT)
        self.is_closed = True


@pytest.fixture
def raising_interrupts() -> Iterator[None]:
    """Raise on ctrl-C, also if a shell in the background has the tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.usefixtures("raising_interrupts")
def test_a_worker_that_is_lost_is_told(make_spec: MakeSpec) -> None:
    workers = Unstarted(BrokenProcessPool())
    with pytest.raises(CheckpointError, match=r"a worker was lost; 'curricle resume .*run' goes"):
        compare(make_spec(), workers=workers, watch=lambda run, record: None)
    assert (workers.submitted, workers.is_closed) == (4, True)


@pytest.mark.usefixtures("raising_interrupts")
def test_a_second_interrupt_does_not_tear_the_end_apart(make_spec: MakeSpec) -> None:
    workers = Unstarted(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as first:
        compare(make_spec(), workers=workers, watch=lambda run, record: None)
    assert first.value.__context__ is None
    assert workers.is_closed


@pytest.mark.usefixtures("raising_interrupts")
def test_an_interrupt_waits_until_the_locks_of_futures_are_released(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Raised within `wait`, it left the lock of a future acquired, and the pool never ended.
    released: list[bool] = []

    def interrupted(
        futures: set[Future[None]], **_: object
    ) -> tuple[set[Future[None]], set[Future[None]]]:
        signal.raise_signal(signal.SIGINT)
        released.append(True)
        return set(), futures

    monkeypatch.setattr(pool, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(
            make_spec(), workers=Unstarted(ValueError("unread")), watch=lambda run, record: None
        )
    assert released == [True]


PARENT = """
import signal
import sys
from pathlib import Path

from curricle.runs.pool import compare
from curricle.runs.workers import LocalWorkers
from curricle.runs.folder import stored_spec
from curricle.training.setup.interrupts import interruptible


def watch(run, record):
    if record.kind == "run":
        print(run, flush=True)


if __name__ == "__main__":
    # A shell that starts the tests in the background has them ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible():
            compare(stored_spec(Path(sys.argv[1])), workers=LocalWorkers(2), watch=watch)
    except KeyboardInterrupt:
        print("interrupted")
"""


@contextmanager
def long_comparison(spec: RunSpec, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a comparison in a group of processes of its own, until both of its students train."""
    script = folder / "parent.py"
    script.write_text(PARENT)
    teach(spec)
    start(spec, Origin(command="compare", title="long", line=""))
    with subprocess.Popen(
        [sys.executable, str(script), str(spec.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            begun = {parent.stdout.readline().strip() for _ in student_runs(spec)}
            assert begun == {str(run) for run in student_runs(spec)}
            yield parent
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


@pytest.fixture
def make_long(make_spec: MakeSpec) -> MakeSpec:
    """Return a function from overrides to a comparison of two students that takes hours."""
    refresh = "strategies.progressive.curriculum.refresh=50000000"
    return partial(make_spec, "seeds=[3]", "budget=500000000 steps", refresh)


@pytest.mark.integration
def test_workers_end_with_a_parent_that_is_killed(make_long: MakeSpec, tmp_path: Path) -> None:
    with long_comparison(make_long(), tmp_path) as parent:
        parent.kill()
        # What they print into stays open as long as one of them lives.
        parent.communicate(timeout=120)
    assert parent.returncode == -signal.SIGKILL


# A worker takes seconds to start, and two of them once show that each ends.
@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, ["strategies={one_shot: {curriculum: {kind: one_shot}}}"]),
        (signal.SIGHUP, ["strategies={one_shot: {curriculum: {kind: one_shot}}}"]),
    ],
)
def test_an_interrupt_of_all_processes_ends_them_without_a_traceback(
    make_long: MakeSpec, tmp_path: Path, number: signal.Signals, changes: list[str]
) -> None:
    with long_comparison(make_long(*changes), tmp_path) as parent:
        # As a terminal or a scheduler does it: parent and workers are told.
        os.killpg(parent.pid, number)
        shown = parent.communicate(timeout=120)
    assert shown == ("interrupted\n", "")
    assert parent.returncode == 0
