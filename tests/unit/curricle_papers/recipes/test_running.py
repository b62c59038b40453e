from dataclasses import replace
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, SpecError
from curricle.figure_points import Chart, Point, read_points
from curricle.models.mlp import MLPSpec
from curricle.records import EndRecord, Record
from curricle.runs.folder import TEACHER
from curricle_papers.recipes.recipe import Comparison, Recipe, Scale
from curricle_papers.recipes.running import claim, measure, panels, run
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
    with pytest.raises(SpecError, match=r"'secnd' is not a panel.*second"):
        panels(TWICE, "smoke", tmp_path, ["secnd:student.widths=[8]"])


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
