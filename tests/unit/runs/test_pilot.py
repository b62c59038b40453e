"""Times of a spec's runs by a pilot, with a clock of the test for steps and evaluations."""

from dataclasses import replace

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
    evaluations = steps // spec.engine.eval_every + 1
    expected = STEP * steps + EVALUATION * evaluations
    assert [student_seconds(spec, run) for run in student_runs(spec)[:1]] == [expected]


def test_a_run_that_ends_at_an_evaluation_is_evaluated_once_more(spec: RunSpec) -> None:
    assert spec.budget is not None
    steps = int(spec.budget.duration().number)
    whole = replace(spec, engine=replace(spec.engine, eval_every=steps))
    run = student_runs(whole)[0]
    assert student_seconds(whole, run) == STEP * steps + EVALUATION * 2


def test_a_teacher_is_evaluated_at_the_steps_of_its_checkpoints_too(spec: RunSpec) -> None:
    assert spec.teacher.total is not None
    steps = int(spec.teacher.total.number)
    every = steps // 3
    fixed = replace(spec, engine=replace(spec.engine, eval_every=every))
    kept = [step for step in fixed.trajectory_steps() if step % every]
    assert kept
    evaluations = steps // every + len(kept) + 1
    assert teacher_seconds(fixed) == STEP * steps + EVALUATION * evaluations
