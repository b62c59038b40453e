"""Summaries and stage plans as tables.

A `Grid` is a table as plain text: a title, columns and rows. Functions ending in `_grid` make
grids from summaries, runs and plans; `to_rich` and `to_markdown` lay any grid out, and the page
does the same in HTML, so that all three always agree.

Design: texts in records come from users and are never read as markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import final

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from curricle.errors import visible
from curricle.records import StagePlan
from curricle.reports.formatting import (
    NONE,
    is_beyond,
    mean_text,
    metric_text,
    short,
    with_interval,
)
from curricle.reports.summary import COSTS, MethodSummary, SeedSummary, Summary
from curricle.values import value

NOT_REACHED = "not reached"
COST_WORDS = {
    "examples": "examples",
    "student_flops": "student FLOPs",
    "total_flops": "total FLOPs",
    "seconds": "seconds",
}
"""Name of each field of `Costs` in tables and figures."""
SEED_COSTS = ("examples", "total FLOPs")
"""Costs of a single run, printed beside its seconds, and to a goal if there is one."""
MOST_WHOLE = 20
"""Characters of a word that a narrow terminal does not break."""
STEP_FLOPS = ("student FLOPs a step", "teacher FLOPs a step")
FLOPS_SHARE = "share of FLOPs"
RULE = "rule"
STACKED = MappingProxyType(
    {
        "stage\nteacher": ("stage", "teacher"),
        "taps\nwidths": ("taps", "widths"),
        "objective\nprojection": ("objective", "projection", RULE),
        "steps": ("steps",),
        "FLOPs a step:\nstudent\nteacher": STEP_FLOPS,
        "of all\nFLOPs\nmemory": (FLOPS_SHARE, "memory"),
    }
)
"""Columns of a plan that stand above each other in a terminal, by their common heading."""


@final
@value
class Grid:
    """A table as plain text."""

    title: str
    """Heading; may be empty."""
    columns: tuple[str, ...]
    """Headings."""
    rows: tuple[tuple[str, ...], ...]
    """Cells, as many a row as there are columns."""
    numeric: tuple[bool, ...]
    """Which columns hold numbers, set flush right."""
    total: bool = False
    """Whether the last row sums up the others."""


def summary_grid(summary: Summary) -> Grid:
    """Return one row a strategy: final metric, closed gap, and the costs to a goal, if any."""
    # The column of gaps goes where no strategy has any, as without a measured teacher.
    gaps = () if summary.gap_base is None else (f"gap closed, {summary.gap_base} to teacher",)
    final = ("strategy", f"final {summary.metric}", *gaps)
    methods = summary.methods.items()
    # A column has one form: with the values of the seeds wherever one strategy needs them.
    complete = [[*method.finals.values()] for _, method in methods if method.finals]
    has_ends = any(is_beyond(summary.metric, numbers) for numbers in complete)
    if summary.goal is None:
        return Grid(
            title=summary.task,
            columns=final,
            rows=tuple(
                (name, _final(method, has_ends=has_ends), *_gap(method, summary))
                for name, method in methods
            ),
            numeric=(False, *[True] * (len(final) - 1)),
        )
    heads = [f"{COST_WORDS[name]} to goal" for name in COSTS]
    return Grid(
        title=f"{summary.task}: to {summary.goal_words}",
        columns=(*final, *heads, "reached"),
        rows=tuple(
            (
                name,
                _final(method, has_ends=has_ends),
                *_gap(method, summary),
                *_costs(method),
                method.reached,
            )
            for name, method in methods
        ),
        numeric=(False, *[True] * (len(final) + len(heads))),
    )


def _final(method: MethodSummary, *, has_ends: bool) -> str:
    if not method.finals:
        return "no complete run"
    return mean_text(method.final.metric, [*method.finals.values()], has_ends=has_ends)


def _gap(method: MethodSummary, summary: Summary) -> list[str]:
    """Return the cell of the closed gap; none if the table lacks the column."""
    if summary.gap_base is None:
        return []
    return [NONE if method.gap_closed is None else str(method.gap_closed)]


def _costs(method: MethodSummary) -> list[str]:
    if method.to_goal.examples is None:
        return [NOT_REACHED] * len(COSTS)
    bound = "≤ " if method.is_bound else ""
    return [
        bound
        + with_interval(
            getattr(method.to_goal, name), getattr(method.to_goal_ci95, name), kind=name
        )
        for name in COSTS
    ]


def seed_grid(summary: Summary) -> Grid:
    """Return one row a run: final metrics, costs to a goal if any, and total costs."""
    rows = [
        (name, *_seed_row(seed, summary))
        for name, method in summary.methods.items()
        for seed in method.seeds
    ]
    if summary.teacher is not None:
        rows.append(("teacher's own training", *_seed_row(summary.teacher, summary)))
    to_goal = [] if summary.goal is None else [f"{name} to goal" for name in SEED_COSTS]
    heads = (*to_goal, *SEED_COSTS, "seconds")
    return Grid(
        title="Runs",
        columns=("strategy", "seed", "final metrics", *heads, "state"),
        rows=tuple(rows),
        numeric=(False, True, False, *[True] * len(heads), False),
    )


def _seed_row(seed: SeedSummary, summary: Summary) -> tuple[str, ...]:
    costs = seed.to_goal
    numbers = [] if costs is None else [costs.examples, costs.total_flops]
    bound = "≤ " if seed.is_bound else ""
    to_goal = [f"{bound}{with_interval(number, None)}" for number in numbers] or [NOT_REACHED] * 2
    return (
        str(seed.seed),
        ", ".join(f"{name} {metric_text(name, number)}" for name, number in seed.final.items())
        or NONE,
        *([] if summary.goal is None else to_goal),
        short(seed.usage["examples"]),
        short(seed.usage["total_flops"]),
        with_interval(seed.usage["seconds"], None, kind="seconds"),
        "complete" if seed.complete else "incomplete",
    )


def plan_grid(
    stages: Sequence[StagePlan],
    *,
    title: str = "Stages",
    outcomes: Mapping[str, tuple[str, str]] | None = None,
) -> Grid:
    """Return one row a stage and a last row with the sums; shares are of the whole run's FLOPs.

    Args:
        stages: The bound stages, in order.
        title: Heading of the table.
        outcomes: Steps done and reason of the end of each stage by its name, in words; None leaves
            these columns out.
    """
    total = sum(_stage_flops(stage) for stage in stages)
    rows = [
        (
            stage.name,
            stage.teacher,
            stage.taps,
            stage.widths,
            stage.projection,
            _objective(stage),
            f"{'at most ' if stage.until else ''}{stage.steps:,}",
            f"until {stage.until}" if stage.until else "",
            *(outcomes or {}).get(stage.name, ("", "")),
            short(stage.student_flops),
            short(stage.teacher_flops),
            _share(_stage_flops(stage), total),
            short(stage.memory_bytes, "B"),
        )
        for stage in stages
    ]
    student = sum(stage.steps * stage.student_flops for stage in stages)
    rows.append((
        "whole run", "", "", "", "", "",
        f"{sum(stage.steps for stage in stages):,}", "", "", "",
        f"{short(student)} in all",
        f"{short(total - student)} in all",
        _share(total, total),
        short(max((stage.memory_bytes for stage in stages), default=0), "B"),
    ))  # fmt: skip
    words = ("stage", "teacher", "taps", "widths", "projection", "objective")
    ends = (RULE, "steps done", "ended by")
    heads = (*STEP_FLOPS, FLOPS_SHARE, "memory")
    grid = Grid(
        title=title,
        columns=(*words, "steps", *ends, *heads),
        rows=tuple(rows),
        numeric=(*[False] * len(words), True, False, True, False, *[True] * len(heads)),
        total=True,
    )
    # Columns of ends are empty where every stage has its fixed length.
    return without_empty(grid, among=ends)


def _objective(stage: StagePlan) -> str:
    """Return a stage's objectives, with the number of parameters that they train themselves."""
    num_parameters = stage.adapter_parameters
    return (
        f"{stage.objective}; {short(num_parameters)} own parameters"
        if num_parameters
        else stage.objective
    )


def _stage_flops(stage: StagePlan) -> int:
    return stage.steps * (stage.student_flops + stage.teacher_flops)


def _share(amount: int, total: int) -> str:
    return f"{100 * amount / total:.1f} %" if total else NONE


def _stacked(grid: Grid, stacks: Mapping[str, Sequence[str]]) -> Grid:
    """Return a grid of fewer columns, in which several stand above each other."""
    places = [
        [grid.columns.index(name) for name in names if name in grid.columns]
        for names in stacks.values()
    ]
    return replace(
        grid,
        columns=tuple(stacks),
        rows=tuple(
            tuple("\n".join(row[at] for at in stack) for stack in places) for row in grid.rows
        ),
        numeric=tuple(grid.numeric[stack[0]] for stack in places),
    )


def without_empty(grid: Grid, *, among: Sequence[str] | None = None) -> Grid:
    """Return a grid without the columns that are empty in every row.

    Args:
        grid: The table.
        among: Headings of the columns that may go; None means all.
    """
    columns = [
        at
        for at, name in enumerate(grid.columns)
        if (among is not None and name not in among) or any(row[at] for row in grid.rows)
    ]
    return replace(
        grid,
        columns=tuple(grid.columns[at] for at in columns),
        rows=tuple(tuple(row[at] for at in columns) for row in grid.rows),
        numeric=tuple(grid.numeric[at] for at in columns),
    )


def to_rich(grid: Grid, *, leading: int = 0) -> Table:
    """Return a grid as a table for the terminal.

    Args:
        grid: The table.
        leading: Empty lines between rows.
    """
    title = Text(visible(grid.title)) if grid.title else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, leading=leading)
    for at, (column, right) in enumerate(zip(grid.columns, grid.numeric, strict=True)):
        # Headings and names break between words only, however narrow the terminal.
        texts = [column] if right else [column, *(row[at] for row in grid.rows)]
        widest = min(
            MOST_WHOLE, max((len(word) for text in texts for word in text.split()), default=1)
        )
        justify: JustifyMethod = "right" if right else "left"
        heading = Text(visible(column, keep="\n"))
        table.add_column(heading, justify=justify, overflow="fold", min_width=widest)
    for number, row in enumerate(grid.rows, start=1):
        closes = grid.total and number == len(grid.rows) - 1
        cells = [Text(visible(cell, keep="\n")) for cell in row]
        table.add_row(*cells, end_section=closes)
    return table


def to_markdown(grid: Grid) -> str:
    """Return a grid as a Markdown table that ends with a newline; the title is left out."""
    rule = ["---:" if right else "---" for right in grid.numeric]
    lines = [f"| {' | '.join(cells)} |" for cells in ([_cell(head) for head in grid.columns], rule)]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in grid.rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return text that stays inside one cell of a Markdown table."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return visible(" ".join(escaped.split()))


def summary_table(summary: Summary) -> Table:
    """Return the table of strategies for the terminal."""
    return to_rich(summary_grid(summary))


def summary_markdown(summary: Summary) -> str:
    """Return the table of strategies in Markdown."""
    return to_markdown(summary_grid(summary))


def plan_table(stages: Sequence[StagePlan], *, title: str = "Stages") -> Table:
    """Return the table of stages for the terminal."""
    return to_rich(_stacked(plan_grid(stages, title=title), STACKED), leading=1)
