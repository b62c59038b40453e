"""Comparisons: every run once, in this process or in several."""

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import pytest

from curricle.errors import CheckpointError, DivergenceError
from curricle.experiments import comparison
from curricle.experiments.comparison import compare
from curricle.experiments.folders import end_of
from curricle.experiments.runner import StudentRun, student_runs, teach
from curricle.experiments.spec import RunSpec
from curricle.records import EndRecord, Record

MakeSpec = Callable[..., RunSpec]


def finished(told: list[tuple[StudentRun, Record]]) -> list[str]:
    return [str(run) for run, record in told if isinstance(record, EndRecord)]


def collect(told: list[tuple[StudentRun, Record]]) -> Callable[[StudentRun, Record], None]:
    return lambda run, record: told.append((run, record))


def test_every_run_is_trained_and_told_of(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    told: list[tuple[StudentRun, Record]] = []
    compare(spec, jobs=1, watch=collect(told))
    assert finished(told) == [str(run) for run in student_runs(spec)]


def test_finished_runs_are_left_alone(make_spec: MakeSpec) -> None:
    spec = make_spec()
    teach(spec)
    compare(make_spec("seeds=[1]"), jobs=1, watch=lambda run, record: None)
    told: list[tuple[StudentRun, Record]] = []
    compare(spec, jobs=1, watch=collect(told))
    assert finished(told) == ["one_shot seed 0", "progressive seed 0"]


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
        compare(spec, jobs=2, watch=lambda run, record: None)
    # The other one would go on for minutes; it was asked to stop.
    assert end_of(student_runs(spec)[1].folder) is None


def test_a_process_that_is_killed_is_told(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(comparison, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(comparison, "_listen", listen)
    with pytest.raises(
        CheckpointError, match=r"'jobs' 2 must be .*'curricle resume .*run' goes on"
    ):
        compare(make_spec(), jobs=2, watch=lambda run, record: None)


class Pool:
    """A pool without processes."""

    def __init__(self, *_: object, **__: object) -> None:
        self.submitted = 0

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.submitted == 4

    def submit(self, *_: object) -> None:
        self.submitted += 1

    def shutdown(self, **_: object) -> None:
        """Do nothing."""
