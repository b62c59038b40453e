"""Every method binds on every task, or is left out with a reason that binding confirms."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from curricle.errors import BindError, SpecError
from curricle.example_tasks import ExamplesTask
from curricle.runs.spec import RunSpec, StrategySpec
from curricle.runs.train import planned_student, student_runs
from curricle.training.binding.bound_run import BoundRun
from curricle_papers.recipes.method_table import METHODS
from curricle_papers.recipes.methods import METHODS_RECIPE, SETTINGS, setting_comparison
from curricle_papers.recipes.recipe import SCALES, Scale, steps

PANEL = pytest.mark.parametrize("panel", SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with rows of sentences and a cache."""
    folder = tmp_path_factory.mktemp("methods")
    rows = [
        {"text": f"a {'good' if number % 2 else 'bad'} film {number}", "label": number % 2}
        for number in range(80)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def spec_of(panel: str, folder: Path, scale: Scale = "small") -> RunSpec:
    """Return the spec of a panel with data and folders of this test."""
    spec = setting_comparison(panel, scale).spec
    task = spec.task
    if isinstance(task, ExamplesTask):
        task = replace(task, data=str(folder / "rows.jsonl"))
    return replace(spec, task=task, output_dir=str(folder / panel), cache_dir=str(folder / "cache"))


@PANEL
def test_a_method_binds_exactly_if_it_is_not_left_out(panel: str, folder: Path) -> None:
    setting, spec = SETTINGS[panel], spec_of(panel, folder)
    for method in METHODS:
        call = StrategySpec(curriculum=method.call(setting.layers))
        if method.reason(setting.traits):
            # A budget of FLOPs applies the start.
            with pytest.raises((BindError, SpecError)):
                bound(spec, method.name, call)
        else:
            short = replace(spec, budget=steps(200))
            assert bound(short, method.name, call).num_steps == 200


def bound(spec: RunSpec, name: str, call: StrategySpec) -> BoundRun:
    """Return a run by one strategy of a panel."""
    lone = replace(spec, strategies={name: call}, goal=replace(spec.goal, final_of=None))
    return planned_student(lone, student_runs(lone)[0])


@PANEL
def test_the_budget_is_that_of_the_steps_of_one_shot(panel: str, folder: Path) -> None:
    setting, spec = SETTINGS[panel], spec_of(panel, folder)
    if isinstance(spec.task, ExamplesTask):
        # Its vocabulary, which the FLOPs of a step do not depend on, is smaller here.
        assert setting.task == setting_comparison(panel, "small").spec.task
    lone = replace(
        spec,
        strategies={"one_shot": spec.strategies["one_shot"]},
        goal=replace(spec.goal, final_of=None),
    )
    (run, *_) = student_runs(lone)
    one_shot = planned_student(lone, run)
    (plan,) = one_shot.plans
    assert plan.student_flops + plan.teacher_flops == setting.step_flops
    assert one_shot.num_steps == setting.steps


@pytest.mark.parametrize("scale", SCALES)
def test_every_method_runs_or_is_left_out_with_a_reason(scale: Scale) -> None:
    for panel in SETTINGS:
        comparison = setting_comparison(panel, scale)
        names = {*comparison.spec.strategies} ^ {*comparison.left_out}
        assert names == {method.name for method in METHODS}
        assert all(comparison.left_out.values())


def test_all_tasks_and_seeds_are_compared_at_small_scale() -> None:
    panels = METHODS_RECIPE.panels("small")
    assert set(panels) == set(SETTINGS)
    for name, comparison in panels.items():
        first_pass = comparison.first_pass
        assert first_pass is not None
        assert len(set(first_pass.rates)) == 3
        assert first_pass.seed not in (comparison.spec.seeds or ())
        assert len(comparison.spec.seeds or ()) == (5 if name.startswith("parity") else 3)
        assert comparison.spec.budget is not None
        assert comparison.spec.budget.unit == "flops"
