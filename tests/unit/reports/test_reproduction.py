import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from curricle.figure_points import Chart, Panel, Point, RecipeRecord, write_points, write_recipe
from curricle.records import Score, write_score
from curricle.reports.charts import statistics
from curricle.reports.reproduction import (
    points_grid,
    points_tables,
    recipe_table,
    write_recipe_report,
)
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import Summary, summarize


def record(chart: Chart, *names: str) -> RecipeRecord:
    return RecipeRecord(
        name="some-figure",
        scale="small",
        title="Some <figure>",
        source="arXiv 1, Fig 2",
        known="ten times fewer",
        panels=tuple(Panel(name=name, x=float(number + 1)) for number, name in enumerate(names)),
        chart=chart,
        line="curricle reproduce some-figure",
    )


def summary(folder: Path) -> Summary:
    return summarize(load_runs([folder]), metric="accuracy", goal=0.9)


@pytest.fixture
def folder(comparison: Path, tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        shutil.copytree(comparison, tmp_path / "recipe" / "panels" / name)
    return tmp_path / "recipe"


def test_curves_of_several_panels_are_drawn_one_below_the_other(folder: Path) -> None:
    write_recipe(folder, record(Chart(kind="curves"), "one", "two"))
    panels = [summary(folder / "panels" / name) for name in ("one", "two")]
    leftover = folder / ".figure.png.123.tmp"
    leftover.touch()
    lines = write_recipe_report(folder, panels)
    assert not leftover.exists()
    assert [line.partition(":")[0] for line in lines] == ["one", "two"]
    assert "extraction reached" in lines[0]
    assert "<!-- two -->" in (folder / "figure.svg").read_text()
    assert (folder / "figure.png").stat().st_size > 1000
    told = json.loads((folder / "summary.json").read_text())
    assert set(told["panels"]) == {"one", "two"}
    assert (told["recipe"], told["scale"], told["points"]) == ("some-figure", "small", [])


def test_costs_against_a_size_are_told_with_their_slope(folder: Path) -> None:
    chart = Chart(kind="lines", of="examples", log_x=True, log_y=True, slopes=True)
    names = ("one", "two", "three")
    write_recipe(folder, record(chart, *names))
    lines = write_recipe_report(folder, [summary(folder / "panels" / name) for name in names])
    # The same numbers at every size.
    assert any(line.startswith("extraction: slope 0.00") for line in lines) or any(
        line.startswith("extraction: slope -0.00") for line in lines
    )
    told = json.loads((folder / "summary.json").read_text())
    assert [one["mean"] for one in told["points"]] == [600, 600, 600]
    assert told["slopes"][0]["series"] == "extraction"


def test_gains_over_a_baseline_have_a_table_and_an_end(folder: Path) -> None:
    chart = Chart(kind="lines", of="final", x_from="total_flops", baseline="one_shot")
    names = ("one", "two", "three")
    write_recipe(folder, record(chart, *names))
    for panel in names:
        for seed, share in enumerate((0.5, 0.5, 0.5)):
            for method, gain in (("one_shot", 0.0), ("extraction", 0.25 if panel == "one" else 0)):
                model = folder / "panels" / panel / "students" / method / f"seed-{seed}"
                if model.is_dir():
                    score = Score(name="pairs", accuracy=share + gain, settings={}, details={})
                    write_score(model, score)
    lines = write_recipe_report(folder, [summary(folder / "panels" / name) for name in names])
    assert any(line.startswith("end of the gain over one_shot in accuracy: ") for line in lines)
    # Equal gains of all seeds have an interval of width zero; at the second budget there is none.
    expected = "end of the gain over one_shot in pairs accuracy: extraction: 2 "
    assert any(line.startswith(expected) for line in lines)
    page = (folder / "report.html").read_text()
    assert "<th>gain ends at</th>" in page
    assert "+25.00 ± 0.00" in page
    tables = (folder / "gains.md").read_text()
    assert "**Gain over one_shot in pairs accuracy (percentage points)**" in tables
    assert "| extraction | +25.00 ± 0.00 | +0.00 ± 0.00 | +0.00 ± 0.00 | 2 " in tables
    gains = json.loads((folder / "summary.json").read_text())["gains"]
    assert [metric["metric"] for metric in gains] == ["accuracy", "pairs_accuracy"]


def test_measured_points_make_the_figure_alone(tmp_path: Path) -> None:
    write_recipe(tmp_path, record(Chart(kind="bars", y="accuracy")))
    write_points(tmp_path, [Point(series="a", x="gaussian", y=0.5, seed=s) for s in (0, 1)])
    assert write_recipe_report(tmp_path, []) == ()
    page = (tmp_path / "report.html").read_text()
    assert "Some &lt;figure&gt;" in page
    assert "The original: ten times fewer." in page
    assert "gaussian" in page
    # Of a single figure, whose panels have no names.
    assert "<th>series</th><th>x</th>" in page
    assert "<th>panel</th>" not in page
    assert "curricle reproduce some-figure" in page
    assert "data:image/svg+xml;base64," in page


def test_measured_points_are_told_with_series_side_by_side() -> None:
    points = [
        Point(panel=panel, series=series, x=x, y=float(len(panel)), seed=seed)
        for x in (500.0, 2000.0)
        for panel in ("bb", "a")
        for series in ("one", "two")[: 2 if x == 500 else 1]
        for seed in (0, 1)
    ]
    grid = points_grid(Chart(kind="lines", x="examples"), statistics(points))
    assert grid.title == "mean over repetitions"
    assert grid.columns == ("panel", "examples", "one", "two")
    assert grid.rows == (
        ("bb", "500", "2 ± 0", "2 ± 0"),
        ("bb", "2k", "2 ± 0", "–"),
        ("a", "500", "1 ± 0", "1 ± 0"),
        ("a", "2k", "1 ± 0", "–"),
    )


def test_of_a_spread_the_deviations_are_told() -> None:
    points = [Point(series="a", x=f"step {x}", y=x * s) for x in (20, 3) for s in (-1.0, 1.0)]
    grid = points_grid(Chart(kind="spread", y="correlation"), statistics(points))
    assert grid.title == "correlation: deviation over repetitions"
    assert grid.columns == ("x", "a")
    assert grid.rows == (("step 20", "20"), ("step 3", "3"))


def test_a_recipe_that_measures_nothing_besides_has_no_table(tmp_path: Path) -> None:
    write_recipe(tmp_path, record(Chart(kind="curves"), "one"))
    assert points_tables(tmp_path) == []


def test_the_list_has_a_row_a_recipe() -> None:
    rows = [("a", "b", "c", "d", "e"), ("f", "g", "h", "i", "j")]
    assert recipe_table(rows).row_count == 2


def test_a_panel_without_runs_is_left_out_of_the_report(folder: Path) -> None:
    write_recipe(folder, record(Chart(kind="curves"), "one", "two"))
    lines = write_recipe_report(folder, [summary(folder / "panels" / "one"), None])
    assert [line.partition(":")[0] for line in lines] == ["one"]
    assert set(json.loads((folder / "summary.json").read_text())["panels"]) == {"one"}
    assert not (folder / "methods.md").exists()


def test_the_page_names_the_panels_that_are_left_out(folder: Path) -> None:
    base = record(Chart(kind="curves"), "one")
    write_recipe(folder, replace(base, left_out={"two": "not among the panels of '--panels'"}))
    write_recipe_report(folder, [summary(folder / "panels" / "one")])
    page = (folder / "report.html").read_text()
    assert "two: left out, not among the panels of &#x27;--panels&#x27;" in page


def test_methods_with_rates_have_tables_on_the_page_and_in_markdown(folder: Path) -> None:
    panel = Panel(
        name="one",
        rates="one-rates",
        methods={"extraction": "", "one_shot": "", "principal": "no <table>"},
        note="The rule.",
    )
    base = record(Chart(kind="bars", of="final"))
    write_recipe(folder, replace(base, panels=(panel,), left_out={"two": "no data"}))
    numbers = summary(folder / "panels" / "one")
    write_recipe_report(folder, [numbers], {"one": {"extraction": 0.125}})
    page, tables = (folder / "report.html").read_text(), (folder / "methods.md").read_text()
    for words in ("All methods", "rates and costs of one", "The rule.", "two: left out, no data"):
        assert words in page
    assert "no &lt;table&gt;" in page
    assert "| extraction | 0.125 |" in tables
    assert "two: left out, no data" in tables
