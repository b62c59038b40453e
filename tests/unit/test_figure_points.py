from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.errors import CheckpointError, SpecError
from curricle.figure_points import (
    PANELS,
    POINTS,
    RECIPE,
    Chart,
    Panel,
    Point,
    RecipeRecord,
    caution,
    read_points,
    read_recipe,
    where_runs_are,
    write_points,
    write_recipe,
)

RECORD = RecipeRecord(
    name="a",
    scale="smoke",
    title="b",
    source="c",
    known="d",
    panels=(Panel(name="d-8", x=8), Panel(name="words")),
    chart=Chart(kind="lines", of="examples", log_x=True),
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
points = st.builds(
    Point,
    panel=st.text(max_size=5),
    series=st.text(max_size=5),
    x=numbers | st.text(max_size=5),
    y=numbers,
    seed=st.integers(0, 99),
)


@given(written=st.lists(points, max_size=5))
def test_points_come_back_as_they_were(
    written: list[Point], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("points")
    write_points(folder, written)
    assert list(read_points(folder)) == written


def test_a_folder_without_points_has_none(tmp_path: Path) -> None:
    assert list(read_points(tmp_path)) == []


def test_a_recipe_comes_back_as_it_was(tmp_path: Path) -> None:
    write_recipe(tmp_path / "new", RECORD)
    assert read_recipe(tmp_path / "new") == RECORD


@pytest.mark.parametrize(("scale", "nothing"), [("smoke", True), ("small", False)])
def test_only_a_recipe_at_smoke_says_nothing(tmp_path: Path, scale: str, nothing: bool) -> None:
    write_recipe(tmp_path, replace(RECORD, scale=scale))
    assert bool(caution(tmp_path / PANELS / "d-8")) == nothing
    assert caution(tmp_path) == ""


def test_where_the_runs_of_a_recipe_are_is_told(tmp_path: Path) -> None:
    assert where_runs_are(tmp_path) == ""
    write_recipe(tmp_path, RECORD)
    assert where_runs_are(tmp_path) == "; it is a recipe's folder, with no runs"
    first, second = (tmp_path / PANELS / name for name in ("d-8", "words"))
    for panel in (second, first):
        panel.mkdir(parents=True)
    assert where_runs_are(tmp_path).endswith(f", with runs in '{first}', '{second}'")


def test_a_folder_without_a_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"recipe\.json' must describe .*; restore it, or"):
        read_recipe(tmp_path)


def test_a_recipe_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECIPE).write_text('{"topic": 1}')
    with pytest.raises(SpecError, match="'topic' is not a field"):
        read_recipe(tmp_path)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / POINTS).write_text('{"series": "a", "x": 1.0, "y": 2.0}\n{"ser')
    with pytest.raises(CheckpointError, match=r"line 2 of .*points\.jsonl' is .*; remove the file"):
        list(read_points(tmp_path))


def test_a_panel_whose_name_is_no_folder_is_refused() -> None:
    with pytest.raises(SpecError, match="name"):
        Panel(name="../up")
