import math
import struct
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.figure_points import Chart, Panel, Point
from curricle.reports.charts import (
    NOTHING,
    _errors,
    _limits,
    points_of,
    save_chart,
    slopes,
    statistics,
)
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import Summary, summarize

LINES = Chart(kind="lines", of="examples", slopes=True)


def summary(folder: Path, goal: float = 0.9) -> Summary:
    return summarize(load_runs([folder]), metric="accuracy", goal=goal)


def points(series: str, numbers: dict[float, list[float]], panel: str = "") -> list[Point]:
    return [
        Point(panel=panel, series=series, x=x, y=y, seed=seed)
        for x, ys in numbers.items()
        for seed, y in enumerate(ys)
    ]


def test_examples_to_the_target_stand_at_the_panel(comparison: Path) -> None:
    found = points_of(LINES, [(Panel(name="d-8", x=8.0), summary(comparison))])
    assert {(point.series, point.x) for point in found} == {("extraction", 8.0)}
    assert sorted(point.y for point in found) == [400, 600, 800]


def test_a_strategy_that_missed_the_target_has_no_point(comparison: Path) -> None:
    found = points_of(LINES, [(Panel(name="d-8"), summary(comparison, goal=0.965))])
    # One of three seeds reaches .97: a mean over that one would flatter.
    assert found == ()


def test_final_metrics_stand_at_the_panels_name(comparison: Path) -> None:
    chart = Chart(kind="lines", of="final")
    found = points_of(chart, [(Panel(name="all"), summary(comparison))])
    own = [point for point in found if point.series == "extraction"]
    assert {point.x for point in own} == {"all"}
    assert sorted(point.y for point in own) == pytest.approx([0.95, 0.96, 0.97])


def test_final_metrics_stand_at_the_flops_of_their_strategy(comparison: Path) -> None:
    chart = Chart(kind="lines", of="final", x_from="total_flops")
    numbers = summary(comparison)
    found = points_of(chart, [(Panel(name="d-8", x=8.0), numbers)])
    for name, method in numbers.methods.items():
        flops = [seed.usage["total_flops"] for seed in method.seeds]
        assert {point.x for point in found if point.series == name} == {sum(flops) / len(flops)}


def test_a_panel_of_the_figure_may_have_its_own_label(tmp_path: Path) -> None:
    chart = Chart(kind="lines", x="FLOPs", y="nats", log_x=True, x_from="total_flops")
    numbers = [*points("a", {1e6: [0.5]}), *points("a", {1e6: [0.5]}, panel="pairs")]
    _, svg = save_chart(chart, numbers, tmp_path / "figure", axes_labels={"pairs": "accuracy"})
    text = svg.read_text()
    assert "<!-- nats -->" in text
    assert "<!-- accuracy -->" in text


def test_bars_of_strategies_are_told_apart_by_names_below_them(comparison: Path) -> None:
    # Colors would repeat after seven.
    panels = [(Panel(name=name), summary(comparison)) for name in ("one", "two")]
    found = points_of(Chart(kind="bars", of="final"), panels)
    assert {(point.panel, point.series) for point in found} == {("one", ""), ("two", "")}
    own = [point.y for point in found if (point.panel, point.x) == ("two", "extraction")]
    assert sorted(own) == pytest.approx([0.95, 0.96, 0.97])


def test_a_panel_may_have_a_chart_of_its_own(comparison: Path, tmp_path: Path) -> None:
    whole = Chart(kind="bars", of="final", y="final accuracy")
    own = Chart(kind="bars", of="examples", y="examples to 90 %")
    panels = [
        (Panel(name="text"), summary(comparison)),
        (Panel(name="parity", chart=own), summary(comparison)),
    ]
    found = points_of(whole, panels)
    assert {point.x for point in found if point.panel == "text"} == {"extraction", "one_shot"}
    examples = [point.y for point in found if point.panel == "parity"]
    assert sorted(examples) == [400, 600, 800]
    _, svg = save_chart(whole, found, tmp_path / "figure", panels)
    drawn = svg.read_text()
    for words in ("final accuracy", "examples to 90 %", "not on every seed: one_shot"):
        assert f"<!-- {words} -->" in drawn


def test_a_comparison_without_numbers_keeps_its_panel(comparison: Path, tmp_path: Path) -> None:
    chart = Chart(kind="bars", of="examples")
    panels = [
        (Panel(name="text"), summary(comparison)),
        (Panel(name="transformer"), summary(comparison, goal=0.99)),
    ]
    _, svg = save_chart(chart, points_of(chart, panels), tmp_path / "figure", panels)
    drawn = svg.read_text()
    for words in ("text", "transformer", NOTHING, "not on every seed: extraction, one_shot"):
        assert f"<!-- {words} -->" in drawn


@pytest.mark.parametrize("kind", ["bars", "lines", "spread"])
def test_a_chart_without_points_says_so(
    kind: Literal["bars", "lines", "spread"], tmp_path: Path
) -> None:
    chart = Chart(kind=kind, of="examples", log_x=True, log_y=True)
    _, svg = save_chart(chart, (), tmp_path / "figure")
    assert f"<!-- {NOTHING} -->" in svg.read_text()


def test_a_statistic_is_the_mean_with_its_interval_over_repetitions() -> None:
    (one,) = statistics(points("a", {1.0: [0.95, 0.96, 0.97]}))
    assert one.mean == pytest.approx(0.96)
    assert one.count == 3
    assert one.ci95 == pytest.approx(0.024842, abs=1e-6)
    assert one.deviation == pytest.approx(math.sqrt(2 / 3) * 0.01)


@given(
    slope=st.floats(-4, 4),
    factor=st.floats(0.1, 10),
    xs=st.lists(st.integers(1, 50), min_size=3, max_size=8, unique=True),
)
def test_an_exact_power_law_has_its_slope_and_no_doubt(
    slope: float, factor: float, xs: list[int]
) -> None:
    (fit,) = slopes(points("a", {float(x): [factor * x**slope] for x in xs}))
    assert fit.slope == pytest.approx(slope, abs=1e-6)
    assert fit.factor == pytest.approx(factor, rel=1e-5)
    assert fit.ci95 == pytest.approx(0, abs=1e-5)


def test_the_interval_of_a_slope_is_that_of_a_regression() -> None:
    # log x = 0, 1, 2 and log y = 0, 1, 1: slope 1/2, residuals -1/6, 1/3, -1/6, one degree of
    # freedom, so the standard error is sqrt(1/6 / 2) and the quantile 12.7062.
    (fit,) = slopes(points("a", {1.0: [1.0], math.e: [math.e], math.e**2: [math.e]}))
    assert fit.slope == pytest.approx(0.5)
    assert fit.ci95 == pytest.approx(12.7062 * math.sqrt(1 / 12))


def test_a_fitted_line_is_drawn_with_its_power(tmp_path: Path) -> None:
    found = points("a", {1.0: [1.0], 10.0: [100.0], 100.0: [1e4]})
    chart = Chart(kind="lines", log_x=True, log_y=True, slopes=True)
    _, svg = save_chart(chart, found, tmp_path / "figure")
    assert "<!-- a ~ x^(2.00 ± 0.00) -->" in svg.read_text()


def test_repetitions_at_a_place_do_not_narrow_the_interval_of_a_slope() -> None:
    once = points("a", {1.0: [1.0], math.e: [math.e], math.e**2: [math.e]})
    thrice = points("a", {1.0: [1.0] * 3, math.e: [math.e] * 3, math.e**2: [math.e] * 3})
    assert slopes(thrice) == slopes(once)


def test_two_places_or_names_have_no_slope() -> None:
    named = [Point(series="a", x=name, y=1.0) for name in "abc"]
    assert slopes([*points("b", {1.0: [1.0, 2.0], 2.0: [3.0]}), *named]) == ()


@pytest.mark.parametrize("kind", ["bars", "lines", "spread"])
def test_a_chart_is_drawn_with_its_words_and_series(
    kind: Literal["bars", "lines", "spread"], tmp_path: Path
) -> None:
    chart = Chart(kind=kind, x="inputs d", y="examples", log_y=True, log_x=kind == "lines")
    numbers = {10.0: [1.0, 2.0, 4.0], 100.0: [10.0, 20.0]}
    given = [*points("first", numbers, "left"), *points("second", {10.0: [3.0]}, "left")]
    given += points("second", numbers, "right")
    png, svg = save_chart(chart, given, tmp_path / "new" / "figure")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    # Each letter is drawn; matplotlib keeps the words as comments.
    for word in ("inputs d", "examples", "first", "second", "left", "right"):
        assert f"<!-- {word} -->" in text


def test_logarithmic_axes_are_told_in_plain_numbers(tmp_path: Path) -> None:
    given = points("a", {25.0: [44e3], 70.0: [135e3], 100.0: [1.8e6]})
    chart = Chart(kind="lines", log_x=True, log_y=True)
    text = save_chart(chart, given, tmp_path / "figure")[1].read_text()
    for told in ("25", "70", "100", "50k", "200k", "1M"):
        assert f"<!-- {told} -->" in text
    # As matplotlib writes powers of ten.
    assert "mathdefault" not in text


def test_more_than_four_panels_stand_in_rows(tmp_path: Path) -> None:
    several = [
        point for number in range(5) for point in points("a", {1.0: [0.5]}, panel=f"p{number}")
    ]
    png, svg = save_chart(Chart(kind="lines"), several, tmp_path / "rows")
    row, _ = save_chart(Chart(kind="lines"), several[:4], tmp_path / "row")
    # Width and height in the header of a PNG file.
    sizes = [tuple(map(int, struct.unpack(">II", path.read_bytes()[16:24]))) for path in (png, row)]
    (width, height), (row_width, row_height) = sizes
    assert (width, height) == (row_width, 2 * row_height)
    assert all(f"p{number}" in svg.read_text() for number in range(5))


def test_names_stand_under_bars(tmp_path: Path) -> None:
    given = [Point(series="a", x=name, y=1.0) for name in ("gaussian", "sign")]
    _, svg = save_chart(Chart(kind="bars"), given, tmp_path / "figure")
    assert "<!-- gaussian -->" in svg.read_text()


def test_the_same_points_give_the_same_bytes(tmp_path: Path) -> None:
    given = points("a", {1.0: [1.0, 2.0], 3.0: [2.0]})
    first, second = (save_chart(LINES, given, tmp_path / name / "figure") for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_intervals_of_final_shares_end_at_what_a_share_can_be(comparison: Path) -> None:
    found = statistics(points("a", {1.0: [0.4, 0.6]}))
    panels = [(Panel(name="p"), summary(comparison))]
    shares = _limits(Chart(kind="bars", of="final"), panels)
    # Half of the interval is 12.7062 times .1, around .5.
    assert _errors(found, shares) == [[0.5], [0.5]]
    costs = _limits(Chart(kind="bars", of="examples"), panels)
    assert _errors(found, costs) == [pytest.approx([1.27062]), pytest.approx([1.27062])]


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    chart = Chart(kind="bars")
    save_chart(chart, points("$a_{$", {1.0: [0.4, 0.6]}), tmp_path / "chart")
    assert (tmp_path / "chart.svg").is_file()
