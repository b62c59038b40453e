"""Times of a spec's runs by a pilot, with a clock of the test for steps and evaluations."""

import pytest

from curricle.runs import pilot
from curricle.runs.pilot import student_seconds, teacher_seconds
from curricle.runs.spec import RunSpec
from curricle.runs.train import student_runs
from curricle.training.binding.bound_run import BoundRun
from curricle.values import parse
from tests.runs import tiny_comparison

STEP, EVALUATION = 2.0, 100.0


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    """Return a comparison whose steps and evaluations take fixed times."""

    def steps(run: BoundRun) -> list[float]:
        return [STEP for _ in run.stages]

    monkeypatch.setattr(pilot, "seconds_per_step", steps)
    monkeypatch.setattr(pilot, "_evaluation_seconds", lambda *_: EVALUATION)
    return parse(RunSpec, tiny_comparison())


def test_a_student_takes_all_its_steps_and_evaluations(spec: RunSpec) -> None:
    assert spec.budget is not None
    steps = int(spec.budget.duration().number)
    evaluations = -(-steps // spec.engine.eval_every)
    expected = STEP * steps + EVALUATION * evaluations
    assert [student_seconds(spec, run) for run in student_runs(spec)[:1]] == [expected]


def test_a_teacher_takes_the_steps_of_its_total(spec: RunSpec) -> None:
    assert spec.teacher.total is not None
    steps = int(spec.teacher.total.number)
    evaluations = -(-steps // spec.engine.eval_every)
    assert teacher_seconds(spec) == STEP * steps + EVALUATION * evaluations
