"""The demos are ordinary specs that can be stored, changed and planned."""

import pytest

from curricle.errors import SpecError
from curricle.runs.demo import DEMOS, demo_spec
from curricle.runs.spec import RunSpec, changed
from curricle.runs.train import planned_student, student_runs
from curricle.values import parse, plain

EVERY_DEMO = pytest.mark.parametrize("name", sorted(DEMOS))


@EVERY_DEMO
def test_a_demo_compares_the_usual_strategies(name: str) -> None:
    kinds = {
        strategy.curriculum["kind"] for strategy in demo_spec(name, "there").strategies.values()
    }
    assert kinds - {"auto"} == {"extraction", "from_labels", "one_shot", "progressive"}


def test_the_demo_on_parity_has_the_strategy_without_settings() -> None:
    assert demo_spec("parity", "there").strategies["auto"].curriculum == {"kind": "auto"}


@EVERY_DEMO
def test_a_demo_is_equal_when_stored_and_read(name: str) -> None:
    spec = demo_spec(name, "there")
    assert parse(RunSpec, plain(spec)) == spec


@EVERY_DEMO
def test_a_demo_can_be_changed(name: str) -> None:
    assert changed(demo_spec(name, "there"), ["seeds=[8]"]).seeds == (8,)


@EVERY_DEMO
def test_a_demos_teacher_is_larger_than_its_student(name: str) -> None:
    spec = demo_spec(name, "there")
    widths = [
        getattr(model, "widths", None) or (model.config["hidden_size"],)  # type: ignore[union-attr]
        for model in (spec.student, spec.teacher.model)
    ]
    assert widths[0] < widths[1]


def test_parity_students_run_on_equal_budgets() -> None:
    spec = demo_spec("parity", "there")
    lengths = {planned_student(spec, run).num_steps for run in student_runs(spec)[:4]}
    assert lengths == {60_000}


def test_another_name_is_refused_with_near_ones() -> None:
    with pytest.raises(SpecError, match="'parety' is not a demo; did you mean 'parity'"):
        demo_spec("parety", "there")
