"""Tables of methods with chosen rates; numbers by hand."""

from curricle.figure_points import Panel
from curricle.reports.gaps import GapClosed
from curricle.reports.method_tables import (
    OVERVIEW,
    TunedPanel,
    methods_markdown,
    overview_grid,
    panel_grid,
)
from curricle.reports.summary import Costs, Final, MethodSummary, SeedSummary, Summary

LIMIT = 1000.0


def seed(number: int, accuracy: float, *, is_complete: bool = True) -> SeedSummary:
    return SeedSummary(
        seed=number,
        final={"accuracy": accuracy},
        to_goal=None,
        usage={"seconds": 1.0},
        complete=is_complete,
    )


def method(
    accuracies: list[float],
    flops: float | None = None,
    *,
    cut: int = 0,
    gap: float | None = None,
) -> MethodSummary:
    """Return a method with a complete run an accuracy, and some that were cut off."""
    ends = [seed(number, accuracy) for number, accuracy in enumerate(accuracies)]
    cuts = [seed(10 + number, 0.0, is_complete=False) for number in range(cut)]
    mean = sum(accuracies) / len(accuracies) if accuracies else None
    return MethodSummary(
        final=Final(metric="accuracy", mean=mean, ci95=None),
        to_goal=Costs() if flops is None else Costs(examples=1, total_flops=flops, seconds=3.0),
        to_goal_ci95=Costs(),
        reached="1/1",
        seeds=(*ends, *cuts),
        gap_closed=None if gap is None else GapClosed(mean=gap, ci95=None),
    )


SUMMARY = Summary(
    task="text",
    metric="accuracy",
    goal=0.6,
    goal_of="one_shot",
    budget={"number": LIMIT, "unit": "flops"},
    methods={
        "extraction": method([0.75], flops=250.0),
        "labels": method([0.4], gap=0.0),
        "one_shot": method([0.6], flops=1000.0, cut=1, gap=0.5),
    },
    teacher=seed(0, 0.8),
)
PANEL = Panel(
    name="text",
    rates="text-rates",
    methods={
        "labels": "",
        "one_shot": "",
        "extraction": "",
        "progressive": "",
        "principal": "no token table",
    },
    note="The rule.",
)
TEXT = TunedPanel(panel=PANEL, summary=SUMMARY, rates={"one_shot": 0.003, "progressive": 0.1})
EMPTY = TunedPanel(
    panel=Panel(name="next", rates="next-rates", methods={"labels": ""}), summary=None, rates={}
)


def test_the_overview_has_a_row_a_method_and_a_column_a_task() -> None:
    grid = overview_grid([TEXT, EMPTY])
    assert grid.columns == ("method", "text", "next")
    assert grid.rows == (
        ("labels", "40.00 %", "missing"),
        ("one_shot", "60.00 % (1.00)", "–"),
        ("extraction", "75.00 % (0.25)", "–"),
        ("progressive", "missing", "–"),
        ("principal", "left out", "–"),
    )


def test_a_panel_has_rates_costs_and_reasons() -> None:
    grid = panel_grid(TEXT)
    assert grid.title == "text: to one_shot's final accuracy (60.00 %)"
    rows = {row[0]: row[1:] for row in grid.rows}
    assert rows["labels"] == ("–", "40.00 %", "0.00", "not reached", "not reached", "1", "")
    assert rows["one_shot"] == (
        "0.003", "60.00 %", "0.50", "1k", "3", "1", "1 without an end",
    )  # fmt: skip
    assert rows["progressive"] == ("0.1", "–", "–", "–", "–", "–", "missing")
    assert rows["principal"] == ("–", "–", "–", "–", "–", "–", "no token table")


def test_the_tables_are_written_in_markdown_with_their_rules() -> None:
    text = methods_markdown([TEXT, EMPTY], {"polarity": "no data"})
    first, rule, absent, *_ = text.split("\n\n")
    assert first.splitlines()[0] == "| method | text | next |"
    assert rule == OVERVIEW
    assert absent == "polarity: left out, no data"
    assert "The rule." in text
    assert text.endswith("|\n")
    assert "\n\n\n" not in text
