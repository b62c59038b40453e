import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from curricle.records import StagePlan
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import Summary, summarize
from curricle.reports.tables import (
    Grid,
    plan_grid,
    plan_table,
    seed_grid,
    summary_grid,
    summary_markdown,
    summary_table,
    to_markdown,
    to_rich,
    without_empty,
)

WriteRun = Callable[..., Path]


@pytest.fixture
def summary(comparison: Path) -> Summary:
    runs = load_runs([comparison])
    return summarize(runs, goal=0.9)


@pytest.fixture
def stages() -> tuple[StagePlan, ...]:
    shared: dict[str, Any] = {
        "teacher": "final",
        "taps": "1 <- 1",
        "objective": "1 hidden",
        "projection": "gaussian 8 x 32",
        "widths": "8 <- 32",
        "trained_parameters": 64,
    }
    return (
        StagePlan(
            name="first",
            steps=1_000,
            student_flops=1_000_000,
            teacher_flops=2_000_000,
            memory_bytes=4_000_000,
            **shared,
        ),
        StagePlan(
            name="[bold]second",
            steps=3_000,
            student_flops=1_000_000,
            teacher_flops=0,
            memory_bytes=1_500,
            **shared,
        ),
    )


def _shown(table: Table, width: int = 200) -> str:
    file = io.StringIO()
    Console(width=width, file=file, color_system=None).print(table)
    return file.getvalue()


def test_each_strategy_has_a_row_with_its_costs(summary: Summary) -> None:
    grid = summary_grid(summary)
    assert grid.title == "parity: to 90 % accuracy"
    assert grid.rows[0] == (
        "extraction",
        # The other strategy has two seeds, whose interval no share can have.
        "96.00 % (3 seeds: 95.00, 96.00, 97.00 %)",
        "600 ± 497",
        "6k ± 4.97k",
        "24k ± 19.9k",
        "30 ± 24.8 s",
        "3/3",
    )


def test_costs_of_a_strategy_that_fell_short_are_not_reached(summary: Summary) -> None:
    row = summary_grid(summary).rows[1]
    assert row[2:] == (*["not reached"] * 4, "0/2")


def test_without_a_target_there_are_no_columns_for_it(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]))
    grid, runs = summary_grid(summary), seed_grid(summary)
    assert grid.columns == ("strategy", "final accuracy")
    assert grid.rows[0] == ("extraction", "96.00 % (3 seeds: 95.00, 96.00, 97.00 %)")
    assert runs.columns[3:] == ("examples", "total FLOPs", "seconds", "state")
    assert runs.rows[0][3:] == ("1k", "40k", "50 s", "complete")
    assert len(runs.numeric) == len(runs.columns)


def test_a_strategy_without_complete_run_says_so(tmp_path: Path, write_run: WriteRun) -> None:
    runs = load_runs([write_run(tmp_path, {10: 0.5}, finished=False)])
    summary = summarize(runs, goal=0.9)
    assert summary_grid(summary).rows[0][1] == "no complete run"
    assert seed_grid(summary).rows[0][-1] == "incomplete"


def test_each_run_has_a_row_and_the_teacher_comes_last(summary: Summary) -> None:
    rows = seed_grid(summary).rows
    assert len(rows) == 6
    assert rows[0] == (
        "extraction",
        "0",
        "accuracy 95.00 %",
        "400",
        "16k",
        "1k",
        "40k",
        "50 s",
        "complete",
    )
    assert rows[-1][0] == "teacher's own training"


def test_shares_are_of_the_flops_of_the_whole_run(stages: tuple[StagePlan, ...]) -> None:
    grid = plan_grid(stages)
    assert grid.columns[9] == "share of FLOPs"
    # 1000 * 3M = 3G and 3000 * 1M = 3G: half each.
    assert [row[9] for row in grid.rows] == ["50.0 %", "50.0 %", "100.0 %"]


def test_the_plan_says_how_many_parameters_the_objectives_train(
    stages: tuple[StagePlan, ...],
) -> None:
    shown = [replace(stages[0], adapter_parameters=2_000), stages[1]]
    column = plan_grid(shown).columns.index("objective")
    assert [row[column] for row in plan_grid(shown).rows[:2]] == [
        "1 hidden; 2k own parameters",
        "1 hidden",
    ]


def test_the_last_row_of_a_plan_sums_up(stages: tuple[StagePlan, ...]) -> None:
    last = plan_grid(stages).rows[-1]
    assert last[6:] == ("4,000", "4G in all", "2G in all", "100.0 %", "4 MB")


def test_a_plan_without_costs_has_no_shares() -> None:
    assert plan_grid([]).rows[-1][6:] == ("0", "0 in all", "0 in all", "–", "0 B")


def test_markdown_is_a_table_with_aligned_numbers() -> None:
    grid = Grid(title="", columns=("a", "b"), rows=(("x", "1"),), numeric=(False, True))
    assert to_markdown(grid) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_markdown_cells_stay_inside_their_cell() -> None:
    grid = Grid(title="", columns=("a",), rows=(("x|y\n<b>\\",),), numeric=(False,))
    assert to_markdown(grid).splitlines()[-1] == "| x\\|y &lt;b>\\\\ |"


def test_texts_of_records_are_never_read_as_markup(stages: tuple[StagePlan, ...]) -> None:
    assert "[bold]second" in _shown(plan_table(stages))


def test_terminal_and_markdown_tell_the_same(summary: Summary) -> None:
    shown = _shown(summary_table(summary))
    for cell in summary_grid(summary).rows[0]:
        assert cell in shown
        assert cell in summary_markdown(summary)


def test_a_plan_fits_a_terminal_of_80_columns(stages: tuple[StagePlan, ...]) -> None:
    lines = [line.split() for line in _shown(plan_table(stages), width=80).splitlines()]
    # Each cell whole on its line, and below it the one that it is stacked upon.
    at = lines.index(["first", "1", "<-", "1", "1", "hidden", "1,000", "1M", "50.0", "%"])
    assert lines[at + 1] == ["final", "8", "<-", "32", "gaussian", "8", "x", "32", "2M", "4", "MB"]
    assert lines[at + 2] == []
    assert max(map(len, _shown(plan_table(stages), width=80).splitlines())) <= 80


def test_headings_are_not_broken_inside_words(stages: tuple[StagePlan, ...]) -> None:
    shown = _shown(plan_table(stages, title="Plan"), width=60)
    assert "projection" in shown
    assert "objective" in shown


def test_names_are_not_broken_where_a_terminal_is_narrow(summary: Summary) -> None:
    assert "  extraction  " in _shown(summary_table(summary), width=70)


def test_a_name_longer_than_a_terminal_is_broken() -> None:
    grid = Grid(title="", columns=("a",), rows=(("x" * 90,),), numeric=(False,))
    assert _shown(to_rich(grid), width=60).count("x") == 90


def test_a_grid_without_title_has_none() -> None:
    grid = Grid(title="", columns=("a",), rows=(("x",),), numeric=(False,))
    assert to_rich(grid).title is None


def test_a_target_that_a_strategy_sets_is_told_by_its_name(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]), goal_of="one_shot")
    assert summary_grid(summary).title == "parity: to one_shot's final accuracy (65.00 %)"


def test_columns_that_are_empty_in_every_row_are_left_out() -> None:
    rows = (("", "1", ""), ("", "", "2"))
    grid = Grid(title="", columns=("a", "b", "c"), rows=rows, numeric=(False, True, False))
    shown = without_empty(grid)
    assert shown.columns == ("b", "c")
    assert shown.rows == (("1", ""), ("", "2"))
    assert shown.numeric == (True, False)


def test_a_stage_with_a_rule_has_a_longest_length(stages: tuple[StagePlan, ...]) -> None:
    ruled = [replace(stages[0], until="accuracy above 0.9"), stages[1]]
    grid = plan_grid(ruled, outcomes={"first": ("700", "metric")})
    columns = ("steps", "rule", "steps done", "ended by")
    places = [grid.columns.index(name) for name in columns]
    assert [grid.rows[0][at] for at in places] == [
        "at most 1,000",
        "until accuracy above 0.9",
        "700",
        "metric",
    ]
    assert [grid.rows[1][at] for at in places] == ["3,000", "", "", ""]
    assert not set(columns[1:]) & set(plan_grid(stages).columns)


def test_a_terminal_shows_the_rule_of_a_stage(stages: tuple[StagePlan, ...]) -> None:
    ruled = [replace(stages[0], until="accuracy above 0.9"), stages[1]]
    shown = _shown(plan_table(ruled), width=120)
    assert "at most 1,000" in shown
    assert "until accuracy above 0.9" in shown


def test_a_column_of_shares_lists_values_in_every_row_or_in_none(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, final in enumerate((0.4, 0.9)):
        write_run(tmp_path / f"students/wide/seed-{seed}", {10: final}, method="wide", seed=seed)
    for seed, final in enumerate((0.90, 0.91)):
        write_run(tmp_path / f"students/sure/seed-{seed}", {10: final}, method="sure", seed=seed)
    for seed, final in enumerate((0.90, 0.91, 0.90, 0.91)):
        write_run(tmp_path / f"students/four/seed-{seed}", {10: final}, method="four", seed=seed)
    cells = dict(row[:2] for row in summary_grid(summarize(load_runs([tmp_path]))).rows)
    assert cells == {
        "wide": "65.00 % (2 seeds: 40.00, 90.00 %)",
        "sure": "90.50 % (2 seeds: 90.00, 91.00 %)",
        "four": "90.50 % (89.58 to 91.42 %)",
    }
