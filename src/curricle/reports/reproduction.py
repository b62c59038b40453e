"""Report of a reproduced figure.

In a recipe's folder: `figure.png` and `figure.svg` in the paper's form, `summary.json` with the
numbers behind them, and `report.html`, which puts the original beside the reproduction. With
learning rates from a first pass there is also `methods.md`, and with a baseline `gains.md`. All are
made from the records in the folder.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from rich.table import Table

from curricle.figure_points import (
    PANELS,
    Chart,
    Panel,
    Point,
    RecipeRecord,
    line_again,
    read_points,
    read_recipe,
)
from curricle.files import remove_leftovers_of, write_text
from curricle.reports.charts import (
    Slope,
    Statistic,
    points_of,
    save_chart,
    slopes,
    statistics,
)
from curricle.reports.document import again, document, note, section, table
from curricle.reports.formatting import NONE, metric_text, short, with_interval
from curricle.reports.gains import MetricGains, gains_markdown, recipe_gains
from curricle.reports.headline import headline
from curricle.reports.method_tables import (
    OVERVIEW,
    TunedPanel,
    methods_markdown,
    overview_grid,
    panel_grid,
)
from curricle.reports.printed import View, save_panels
from curricle.reports.run_folders import load_runs
from curricle.reports.scores import Evaluated, read_scores, score_points
from curricle.reports.summary import Summary
from curricle.reports.tables import Grid, summary_grid, to_rich, without_empty
from curricle.values import plain

FIGURE, SUMMARY, PAGE, TABLES = "figure", "summary.json", "report.html", "methods.md"
GAINS = "gains.md"
ENDS = (
    "A gain is the mean difference from the baseline over seeds, paired, with half of its 95 % "
    "interval; positive is better. It ends at the smallest budget from which on, up to the "
    "largest, the interval contains zero or lies below it."
)
INTERVALS = (
    "± is half of the 95 % interval of the mean over repetitions (Student's t); there is none for "
    "one. A strategy that did not reach the goal on every seed has no point."
)


def write_recipe_report(
    folder: Path,
    summaries: Sequence[Summary | None],
    rates: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Write figure, summary and page of a recipe, and tables of tuned methods in Markdown.

    Args:
        folder: The recipe's folder with its runs.
        summaries: Those of its panels, in order; None for one without runs.
        rates: Learning rates by method, by each panel that has chosen them by a first pass.

    Returns:
        Results, a line each.
    """
    recipe = read_recipe(folder)
    panels = [
        (panel, summary)
        for panel, summary in zip(recipe.panels, summaries, strict=True)
        if summary is not None
    ]
    tuned = [
        TunedPanel(panel=panel, summary=summary, rates=dict(rates.get(panel.name, {})))
        for panel, summary in zip(recipe.panels, summaries, strict=True)
        if panel.rates
    ]
    scores = read_scores(folder, [panel.name for panel, _ in panels])
    points = (
        *read_points(folder),
        *_derived(recipe, panels),
        *score_points(recipe.chart, panels, scores),
    )
    statistics_ = statistics(points)
    fits = slopes(points) if recipe.chart.slopes else ()
    # Temporary files of a process that was killed while it wrote a report.
    files = (f"{FIGURE}.png", f"{FIGURE}.svg", SUMMARY, PAGE, TABLES, GAINS)
    remove_leftovers_of(folder, *files)
    _draw(folder, recipe, panels, points, scores=scores)
    gains = recipe_gains(recipe.chart, panels, scores)
    _write_summary(folder, recipe, panels, (statistics_, fits, gains))
    if gains:
        write_text(folder / GAINS, gains_markdown(gains))
    lines = (
        *(_panel_notes(panel, summary) for panel, summary in panels),
        *map(_slope, fits),
        *(metric.line() for metric in gains),
        *(
            f"{evaluation.name}: the teacher has {metric_text('accuracy', evaluation.teacher)}"
            for evaluation in scores
            if evaluation.teacher is not None
        ),
    )
    lines = (recipe.caution,) if recipe.caution else lines
    text = document(recipe.title, [
        _header(recipe),
        section("Found", *(f"<p>{html.escape(line)}</p>" for line in lines)),
        section("Figure", _image(folder), *_left_out(recipe)),
        section("Gains", *map(_gains, gains), note(ENDS)) if gains else "",
        *(_methods(tuned) if tuned else ()),
        section("Numbers", table(_grid(statistics_)), note(INTERVALS)) if statistics_ else "",
        *(_panel(panel, summary) for panel, summary in panels),
        section("Made with", again(line_again(recipe, folder))) if recipe.line else "",
    ])  # fmt: skip
    write_text(folder / PAGE, text)
    if tuned:
        write_text(folder / TABLES, methods_markdown(tuned, recipe.left_out))
    return lines


def points_tables(folder: Path) -> list[Table]:
    """Return the measurements of a recipe besides its panels; empty if there are none."""
    statistics_ = statistics(tuple(read_points(folder)))
    return [to_rich(points_grid(read_recipe(folder).chart, statistics_))] if statistics_ else []


def points_grid(chart: Chart, statistics_: Sequence[Statistic]) -> Grid:
    """Return one row a panel and place, and one column a series.

    Args:
        chart: Form of the figure; a spread is printed by its deviations, others by their means.
        statistics_: Measurements over their repetitions.
    """
    is_spread = chart.kind == "spread"
    cells = {
        (statistic.panel, _place(statistic), statistic.series): short(statistic.deviation)
        if is_spread
        else with_interval(statistic.mean, statistic.ci95)
        for statistic in statistics_
    }
    series = list(dict.fromkeys(statistic.series for statistic in statistics_))
    panels = list(dict.fromkeys(statistic.panel for statistic in statistics_))
    rows = dict.fromkeys((statistic.panel, _place(statistic)) for statistic in statistics_)
    what = "deviation" if is_spread else "mean"
    grid = Grid(
        title=f"{chart.y}: {what} over repetitions".removeprefix(": "),
        columns=("panel", chart.x or "x", *series),
        rows=tuple(
            (*row, *(cells.get((*row, name), NONE) for name in series))
            for row in sorted(rows, key=lambda row: panels.index(row[0]))
        ),
        numeric=(False, False, *[True] * len(series)),
    )
    return without_empty(grid)


def recipe_table(rows: Sequence[Sequence[str]]) -> Table:
    """Return the recipes for a terminal.

    Args:
        rows: Name, subject, source, knowledge of the original and costs of each.
    """
    return to_rich(
        Grid(
            title="",
            columns=("recipe", "shows", "source", "the original", "cost"),
            rows=tuple(map(tuple, rows)),
            numeric=(False,) * 5,
        )
    )


def _derived(recipe: RecipeRecord, panels: Sequence[tuple[Panel, Summary]]) -> tuple[Point, ...]:
    return () if recipe.chart.of == "points" else points_of(recipe.chart, panels)


def _draw(
    folder: Path,
    recipe: RecipeRecord,
    panels: Sequence[tuple[Panel, Summary]],
    points: Sequence[Point],
    *,
    scores: Sequence[Evaluated],
) -> None:
    if recipe.chart.kind != "curves":
        labels = {evaluation.name: "accuracy" for evaluation in scores}
        save_chart(recipe.chart, points, folder / FIGURE, panels, axes_labels=labels)
        return
    rows = [
        (
            panel.name if len(panels) > 1 else "",
            load_runs([folder / PANELS / panel.name]),
            View(metric=summary.metric, goal=summary.goal, log_x=summary.is_wide),
        )
        for panel, summary in panels
    ]
    save_panels(rows, folder / FIGURE)


def _write_summary(
    folder: Path,
    recipe: RecipeRecord,
    panels: Sequence[tuple[Panel, Summary]],
    numbers: tuple[Sequence[Statistic], Sequence[Slope], Sequence[MetricGains]],
) -> None:
    statistics_, fits, gains = numbers
    document_: dict[str, object] = {
        "recipe": recipe.name,
        "scale": recipe.scale,
        "source": recipe.source,
        "panels": {panel.name: plain(summary) for panel, summary in panels},
        "points": [plain(statistic) for statistic in statistics_],
        "slopes": [plain(statistic) for statistic in fits],
    }
    if gains:
        document_["gains"] = [metric.plain() for metric in gains]
    text = json.dumps(document_, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / SUMMARY, text + "\n")


def _panel_notes(panel: Panel, summary: Summary) -> str:
    return f"{panel.name}: {headline(summary)}"


def _slope(fit: Slope) -> str:
    name = f"{fit.panel} {fit.series}".strip()
    return f"{name}: slope {fit.slope:.2f} ± {fit.ci95:.2f}"


def _gains(metric: MetricGains) -> str:
    grid = metric.grid()
    return f"<h3>{html.escape(grid.title)}</h3>{table(grid)}"


def _header(recipe: RecipeRecord) -> str:
    facts = f"{recipe.source} · scale {recipe.scale}"
    return (
        f'<header><h1>{html.escape(recipe.title)}</h1><p class="facts">{html.escape(facts)}</p>'
        f"<p>The original: {html.escape(recipe.known)}.</p></header>"
    )


def _image(folder: Path) -> str:
    data = base64.b64encode((folder / f"{FIGURE}.svg").read_bytes()).decode()
    return f'<img alt="figure" style="max-width:100%" src="data:image/svg+xml;base64,{data}">'


def _left_out(recipe: RecipeRecord) -> list[str]:
    """Return the panels that are not run, with their reasons."""
    limit = [] if recipe.allotment is None else [note(recipe.allotment.note)]
    absent = [note(f"{name}: left out, {reason}") for name, reason in recipe.left_out.items()]
    return [*limit, *absent]


def _methods(panels: Sequence[TunedPanel]) -> tuple[str, ...]:
    """Return the sections of tuned methods: all in one table, then rates and costs by panel."""
    return (
        section("All methods", table(overview_grid(panels)), note(OVERVIEW)),
        *(
            section(
                html.escape(f"rates and costs of {panel_grid(panel).title}"),
                table(panel_grid(panel)),
                note(panel.panel.note),
            )
            for panel in panels
        ),
    )


def _grid(statistics_: Sequence[Statistic]) -> Grid:
    grid = Grid(
        title="",
        columns=("panel", "series", "x", "mean", "deviation", "repetitions"),
        rows=tuple(
            (
                statistic.panel,
                statistic.series,
                _place(statistic),
                with_interval(statistic.mean, statistic.ci95),
                short(statistic.deviation),
                str(statistic.count),
            )
            for statistic in statistics_
        ),
        numeric=(False, False, False, True, True, True),
    )
    return without_empty(grid)


def _place(statistic: Statistic) -> str:
    return statistic.x if isinstance(statistic.x, str) else short(statistic.x)


def _panel(panel: Panel, summary: Summary) -> str:
    link = f"{PANELS}/{panel.name}/{PAGE}"
    return section(
        html.escape(panel.name),
        table(summary_grid(summary)),
        f'<p><a href="{html.escape(link)}">Curves, stages and runs of this comparison</a></p>',
    )
