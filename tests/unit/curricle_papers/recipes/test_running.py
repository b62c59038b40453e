from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, SpecError
from curricle.figure_points import (
    Chart,
    Point,
    line_again,
    read_points,
    read_recipe,
    usual_folder,
)
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


def run_all(
    recipe: Recipe, folder: Path, *assignments: str, selected: Sequence[str] = ()
) -> list[str]:
    """Run a recipe; return the names of the runs that had records, in order of their ends."""
    ended = []

    def watch(name: str, record: Record) -> None:
        if isinstance(record, EndRecord):
            ended.append(name)

    line = "curricle reproduce it"
    specs = claim(recipe, "smoke", folder, line, assignments=assignments, selected=selected)
    run(recipe, "smoke", specs, jobs=1, line=line, watch=watch)
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
    specs = claim(TUNED, "smoke", tmp_path / "run", line)
    with pytest.raises(KeyboardInterrupt):
        run(TUNED, "smoke", specs, jobs=1, line=line, watch=interrupt)
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


def test_selected_panels_alone_are_run_and_a_second_call_adds_others(tmp_path: Path) -> None:
    assert {name.partition(":")[0] for name in run_all(TWICE, tmp_path, selected=["other"])} == {
        "other"
    }
    record = read_recipe(tmp_path)
    assert [panel.name for panel in record.panels] == ["other"]
    reason = "not among the panels of '--panels'"
    assert record.left_out == {"first": reason, "second": reason}
    assert line_again(record, usual_folder("twice", "smoke")).endswith(" it --panels other")
    run_all(TWICE, tmp_path, selected=["first"])
    record = read_recipe(tmp_path)
    assert [panel.name for panel in record.panels] == ["first", "other"]
    assert record.left_out == {"second": reason}


@pytest.mark.parametrize("last", [[], ["first", "second"]])
def test_a_call_for_the_rest_of_the_panels_leaves_none_out(tmp_path: Path, last: list[str]) -> None:
    for selected in (["other"], last):
        claim(TWICE, "smoke", tmp_path, "line", selected=selected)
    record = read_recipe(tmp_path)
    assert [panel.name for panel in record.panels] == ["first", "second", "other"]
    assert (record.left_out, record.selected) == ({}, ())


def test_panels_of_an_earlier_call_without_a_selection_stay(tmp_path: Path) -> None:
    for selected in ([], ["other"]):
        claim(TWICE, "smoke", tmp_path, "line", selected=selected)
    assert read_recipe(tmp_path).left_out == {}


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            TWICE,
            r"'--panels' must name panels of 'twice'; got 'first_'; did you mean 'first'\? avail.*",
        ),
        (THEOREM_CHECK, "'--panels' must be left out for 'theorem-check', which has no panels"),
    ],
)
def test_a_selected_panel_that_does_not_exist_claims_no_folder(
    recipe: Recipe, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=sentence):
        claim(recipe, "smoke", tmp_path / "run", "line", selected=["first_"])
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
