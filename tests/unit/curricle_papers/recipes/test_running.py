from dataclasses import replace
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, SpecError
from curricle.figure_points import Chart, Point, read_points, read_recipe
from curricle.models.mlp import MLPSpec
from curricle.records import EndRecord, Record
from curricle.reports.summary import Summary
from curricle.runs.folder import TEACHER, stored_spec
from curricle.runs.spec import Goal
from curricle_papers.recipes.methods import METHODS_RECIPE
from curricle_papers.recipes.recipe import Comparison, FirstPass, Recipe, Scale, steps
from curricle_papers.recipes.running import claim, measure, panels, run, tuned_spec
from curricle_papers.recipes.sparse_parity import PARITY_MLP
from curricle_papers.recipes.theorems import THEOREM_CHECK
from curricle_papers.recipes.warm_start import WARM_START


def two_panels(scale: Scale) -> dict[str, Comparison]:
    (one,) = PARITY_MLP.panels(scale).values()
    other = replace(one, spec=replace(one.spec, seed=1))
    short = {name: one.spec.strategies[name] for name in ("from_labels", "one_shot")}
    return {
        name: replace(comparison, spec=replace(comparison.spec, strategies=short))
        for name, comparison in {"first": one, "second": one, "other": other}.items()
    }


TWICE = replace(PARITY_MLP, name="twice", panels=two_panels)


def run_all(recipe: Recipe, folder: Path, *assignments: str) -> list[str]:
    """Run a recipe; return the names of the runs that had records, in order of their ends."""
    ended = []

    def watch(name: str, record: Record) -> None:
        if isinstance(record, EndRecord):
            ended.append(name)

    line = "curricle reproduce it"
    claim(recipe, "smoke", folder, line, assignments=assignments)
    run(recipe, "smoke", folder, assignments=assignments, jobs=1, line=line, watch=watch)
    return ended


def test_panels_share_a_teacher_that_is_the_same(tmp_path: Path) -> None:
    ended = run_all(TWICE, tmp_path / "run")
    assert [name for name in ended if name.endswith("teacher")] == [
        "first: teacher",
        "other: teacher",
    ]
    first, second, other = (
        (tmp_path / "run" / "panels" / name / TEACHER / "model.safetensors").read_bytes()
        for name in ("first", "second", "other")
    )
    assert first == second != other
    assert run_all(TWICE, tmp_path / "run") == []


def tuned_panel(scale: Scale) -> dict[str, Comparison]:
    (comparison,) = PARITY_MLP.panels(scale).values()
    strategies = {name: comparison.spec.strategies[name] for name in ("from_labels", "one_shot")}
    spec = replace(
        comparison.spec,
        strategies=strategies,
        seeds=(0, 1),
        goal=Goal(final_of="one_shot"),
        budget=steps(20),
    )
    # At a rate of 1e30 every student diverges.
    first_pass = FirstPass(rates=(0.1, 1e30), seconds=1000.0)
    return {"tuned": replace(comparison, spec=spec, first_pass=first_pass, left_out={"x": "why"})}


TUNED = replace(PARITY_MLP, name="tuned", panels=tuned_panel)


def test_a_first_pass_sets_the_rates_of_a_panel(tmp_path: Path) -> None:
    ended = run_all(TUNED, tmp_path / "run")
    assert ended == [
        "tuned-rates: teacher",
        "tuned-rates: from_labels+0.1 seed 100",
        "tuned-rates: one_shot+0.1 seed 100",
        *(f"tuned: {name} seed {seed}" for seed in (0, 1) for name in ("from_labels", "one_shot")),
    ]
    spec = stored_spec(tmp_path / "run" / "panels" / "tuned")
    rates = {name: strategy.optimizer for name, strategy in spec.strategies.items()}
    assert {name: rate and rate.learning_rate for name, rate in rates.items()} == {
        "from_labels": 0.1,
        "one_shot": 0.1,
    }
    assert "x" in (tmp_path / "run" / "recipe.json").read_text()


def test_a_recipe_goes_on_after_an_interrupt_in_its_first_pass(tmp_path: Path) -> None:
    def interrupt(name: str, record: Record) -> None:
        if isinstance(record, EndRecord) and "from_labels" in name:
            raise KeyboardInterrupt

    line = "curricle reproduce it"
    claim(TUNED, "smoke", tmp_path / "run", line)
    with pytest.raises(KeyboardInterrupt):
        run(TUNED, "smoke", tmp_path / "run", jobs=1, line=line, watch=interrupt)
    ended = run_all(TUNED, tmp_path / "run")
    assert "tuned-rates: teacher" not in ended
    assert ended[-1] == "tuned: one_shot seed 1"


def test_a_panel_whose_rates_have_all_diverged_is_refused() -> None:
    panel = tuned_panel("smoke")["tuned"]
    nothing = Summary(task="", metric="accuracy", goal=None, budget={}, methods={})
    assert panel.first_pass is not None
    with pytest.raises(SpecError, match="must let a strategy end; all have diverged"):
        tuned_spec(panel.spec, panel.first_pass, nothing)


def test_rows_that_are_not_there_leave_their_panel_out(tmp_path: Path) -> None:
    claim(METHODS_RECIPE, "smoke", tmp_path / "run", "line")
    record = read_recipe(tmp_path / "run")
    assert "polarity" not in [panel.name for panel in record.panels]
    assert record.left_out["polarity"].startswith("no data at 'sentence-polarity'; '--set polarity")


def test_a_folder_is_gone_on_with_only_by_its_own_command(tmp_path: Path) -> None:
    claim(PARITY_MLP, "smoke", tmp_path / "run", "one line")
    claim(PARITY_MLP, "smoke", tmp_path / "run", "one line")
    with pytest.raises(CheckpointError, match="what 'other' makes; it holds what 'one line' made"):
        claim(PARITY_MLP, "smoke", tmp_path / "run", "other")


def test_a_field_can_be_changed_in_every_panel(tmp_path: Path) -> None:
    claim(TWICE, "smoke", tmp_path, "line")
    specs = panels(TWICE, "smoke", tmp_path, ["student.widths=[8]"])
    assert {spec.student for spec in specs.values()} == {MLPSpec(widths=(8,))}


def test_a_field_can_be_changed_in_one_panel(tmp_path: Path) -> None:
    specs = panels(TWICE, "smoke", tmp_path, ["second:student.widths=[8]"])
    assert {name for name, spec in specs.items() if spec.student == MLPSpec(widths=(8,))} == {
        "second"
    }


def test_a_panel_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'thrice' is not a panel"):
        panels(TWICE, "smoke", tmp_path, ["thrice:student.widths=[8]"])


def test_a_field_of_some_panels_is_changed_in_these(tmp_path: Path) -> None:
    specs = panels(WARM_START, "smoke", tmp_path, ["task.corpus=own.txt"])
    corpora = {name: getattr(spec.task, "corpus", None) for name, spec in specs.items()}
    assert corpora == {"text": "own.txt", "grammar": None, "parity": None, "transformer": None}


@pytest.mark.parametrize(
    ("recipe", "assignment", "told"),
    [
        (PARITY_MLP, "student.depth=3", "'student'.*depth"),
        (PARITY_MLP, "output_dir=elsewhere", "must be given by '--output-dir'.*got 'elsewhere'"),
        (THEOREM_CHECK, "seed=1", "must be left out for 'theorem-check', which has no spec"),
    ],
)
def test_a_change_that_cannot_be_made_claims_no_folder(
    recipe: Recipe, assignment: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=told):
        claim(recipe, "smoke", tmp_path / "run", "line", assignments=[assignment])
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="it holds something else"):
        claim(PARITY_MLP, "smoke", tmp_path, "line")


def test_points_are_measured_once(tmp_path: Path) -> None:
    calls = []

    def measured(scale: Scale, folder: Path) -> list[Point]:
        calls.append((scale, folder))
        return [Point(series="a", x=1.0, y=2.0)]

    recipe = Recipe(
        name="a",
        title="b",
        source="c",
        known="d",
        costs={},
        chart=Chart(kind="bars"),
        measure=measured,
    )
    for _ in range(2):
        measure(recipe, "smoke", tmp_path)
    assert calls == [("smoke", tmp_path)]
    assert [point.y for point in read_points(tmp_path)] == [2.0]
