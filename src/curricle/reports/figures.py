"""Learning curves on the page.

Interactive figures of plotly. One color and marker stands for one strategy everywhere: the line is
the mean over seeds, the band the 95 % interval of that mean, thin lines are single seeds, dashed
verticals are borders between stages, the dotted horizontal is the goal, and incomplete runs are
thin dotted lines.

Design: every trace carries in `meta["x"]` its abscissas in all units (examples, FLOPs, seconds),
so that the page can switch the axis without a second figure. `printed` makes the static ones.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from curricle.reports.curves import (
    MOST_STRATEGIES,
    PALETTE,
    Curve,
    averaged,
    band,
    colors,
    has_bands,
    loss_curve,
    metric_panel,
    most_points,
    stage_borders,
    stage_names,
    stage_starts,
)
from curricle.reports.formatting import goal_text, is_share, seed_count
from curricle.reports.names import shortened
from curricle.reports.run_folders import Run, grouped
from curricle.reports.summary import COSTS
from curricle.reports.tables import COST_WORDS
from curricle.values import value

GRID = "rgba(128, 128, 128, 0.22)"
GRAY = "#7f7f7f"
CLEAR = "rgba(0, 0, 0, 0)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
CURVE_HEIGHT = 470
PANEL_HEIGHT = 190
NAME_HEIGHT, MOST_HEIGHT = 12, 900
MOST_LABELS = 12
"""Stages that are numbered in a panel; more would overlap."""
CLOSE = 0.05
"""Part of the horizontal axis within which two numbers of stages would overlap."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
"""Markers of strategies; the next one begins when the colors repeat."""


@final
@value
class _Look:
    """Properties shared by the traces of a strategy."""

    name: str
    """Name of the strategy, safe to show."""
    color: str
    """Its color."""
    symbol: str
    """Its marker."""
    panel: int
    """Row of the panel that the traces go to."""


def learning_figure(
    runs: Sequence[Run], *, metric: str, goal: float | None = None, log_x: bool = False
) -> go.Figure:
    """Return the metric of every strategy against the examples read.

    Args:
        runs: Runs as `load_runs` gives them.
        metric: Name of a metric of the records.
        goal: Value to mark with a dotted line, if any.
        log_x: Whether the horizontal axis is logarithmic; points at zero are then left out.
    """
    figure = make_subplots()
    _add_metric(figure, runs, metric, panel=1, goal=goal)
    if goal is not None:
        # Told in the legend: beside the line it would hide curves, in one unit or another.
        name = html.escape(f"goal: {goal_text(metric, goal)}")
        line = {"dash": "dot", "color": GRAY, "width": 1.5}
        figure.add_hline(y=goal, line=line, name=name, showlegend=True)
    # Plotly gives a legend half of the figure at most, and scrolls through the rest.
    more = NAME_HEIGHT * max(0, len(grouped(runs)) - MOST_STRATEGIES)
    _dress(figure, height=min(MOST_HEIGHT, CURVE_HEIGHT + more), log_x=log_x)
    figure.update_yaxes(title_text=html.escape(shortened(metric)))
    return figure


def metrics_figure(
    runs: Sequence[Run], metrics: Sequence[str], *, log_x: bool = False
) -> go.Figure:
    """Return other metrics than the one by which runs are judged, one panel each.

    Args:
        runs: Runs as `load_runs` gives them.
        metrics: Names of metrics, at least one.
        log_x: Whether the horizontal axis is logarithmic; points at zero are then left out.
    """
    figure, height = _panels(metrics)
    for panel, metric in enumerate(metrics, start=1):
        _add_metric(figure, runs, metric, panel=panel, num_panels=len(metrics))
    _dress(figure, height=height, log_x=log_x)
    # On a narrow screen a legend would cover the first panel's title.
    figure.update_layout(showlegend=False)
    return figure


def _panels(titles: Sequence[str]) -> tuple[go.Figure, int]:
    """Return an empty figure of panels below each other, and its height."""
    count = max(len(titles), 1)
    height = PANEL_HEIGHT * count + 90
    figure = make_subplots(
        rows=count,
        cols=1,
        shared_xaxes=True,
        subplot_titles=[html.escape(shortened(title)) for title in titles] or None,
        vertical_spacing=36 / height,
    )
    return figure, height


def _look(number: int, method: str, color: str, panel: int) -> _Look:
    return _Look(
        name=html.escape(shortened(method)),
        color=color,
        symbol=SYMBOLS[number // len(PALETTE) % len(SYMBOLS)],
        panel=panel,
    )


def _add_metric(
    figure: go.Figure,
    runs: Sequence[Run],
    metric: str,
    *,
    panel: int,
    goal: float | None = None,
    num_panels: int = 1,
) -> None:
    """Draw a metric of all strategies in one panel."""
    num_curves = num_panels * (len(runs) if has_bands(runs) else 3 * len(grouped(runs)))
    ends, strategies = metric_panel(runs, metric, goal, max_points=most_points(num_curves))
    for number, strategy in enumerate(strategies):
        look = _look(number, strategy.method, strategy.color, panel)
        if strategy.band is not None:
            _add(figure, _band(strategy.mean, strategy.band, look), look)
        for seed, curve in strategy.seeds:
            line = {"color": look.color, "width": 0.8}
            hint = f"{look.name}, seed {seed}"
            trace = _line(curve, look, hint=hint, mode="lines", line=line, opacity=0.55)
            _add(figure, [trace], look)
        _add(figure, [_line(strategy.mean, look, showlegend=panel == 1)], look)
        for seed, curve in strategy.incomplete:
            line = {"color": look.color, "width": 1.2, "dash": "dot"}
            hint = f"{look.name}, seed {seed}, incomplete"
            _add(figure, [_line(curve, look, hint=hint, mode="lines", line=line)], look)
        _add(figure, [_verticals(strategy.borders, look, ends)], look)
    form = ".2~%" if is_share(metric) else None
    figure.update_yaxes(range=list(ends), tickformat=form, row=panel, col=1)


def loss_figure(runs: Sequence[Run], *, log_x: bool = False) -> go.Figure:
    """Return the training loss, one panel a strategy; the stages' losses are not comparable.

    Args:
        runs: Runs as `load_runs` gives them.
        log_x: Whether the horizontal axis is logarithmic; points at zero are then left out.
    """
    groups = grouped(runs)
    figure, height = _panels(list(groups))
    max_points = most_points(sum(3 * len(stage_names(group)) for group in groups.values()))
    for number, (method, color) in enumerate(colors(groups).items()):
        look = _look(number, method, color, number + 1)
        _add_losses(figure, averaged(groups[method]), look, max_points)
    _dress(figure, height=height, log_x=log_x)
    figure.update_layout(showlegend=False, hovermode="closest")
    return figure


def _add_losses(figure: go.Figure, runs: Sequence[Run], look: _Look, max_points: int) -> None:
    stages = stage_names(runs)
    curves = {stage: loss_curve(runs, stage, max_points=max_points) for stage in stages}
    numbers = [number for curve in curves.values() for number in curve.middle]
    if numbers:
        ends = _loss_ends(runs, min(numbers), max(numbers))
        for number, (stage, curve) in enumerate(curves.items()):
            hint = f"{look.name}, {html.escape(shortened(stage))}"
            # Neighbors differ in depth of color, so that a border is seen without its line.
            depth = 0.55 if number % 2 else 1.0
            line = _line(curve, look, opacity=depth, hint=hint, mode="lines")
            interval = _band(curve, band(curve, ends), look) if curve.num_seeds > 1 else []
            _add(figure, [*interval, line], look)
        _add(figure, [_verticals(stage_borders(runs), look, ends), *_numbers(runs, ends[0])], look)
        figure.update_yaxes(**_loss_axis(*ends), row=look.panel, col=1)
    figure.update_yaxes(title_text="loss", row=look.panel, col=1)


def _loss_ends(runs: Sequence[Run], low: float, high: float) -> tuple[float, float]:
    """Return the lowest and the highest loss, single seeds included, where an interval ends."""
    losses = [record.loss for run in runs for record in run.steps]
    return min(low, *losses), max(high, *losses)


def _loss_axis(low: float, high: float) -> dict[str, object]:
    """Return a logarithmic axis with few ticks where there is one."""
    if low <= 0:
        return {"type": "linear"}
    # Not of their quotient, which may be beyond any float.
    decades = math.log10(high) - math.log10(low)
    few = math.ceil(decades / 5) if decades > 2 else "D2"  # noqa: PLR2004 - ticks at 1, 2 and 5
    return {"type": "log", "dtick": few, "tickformat": "~g"}


def _add(figure: go.Figure, traces: Iterable[go.Scatter], look: _Look) -> None:
    for trace in traces:
        figure.add_trace(trace, row=look.panel, col=1)


def _line(curve: Curve, look: _Look, *, hint: str = "", **style: object) -> go.Scatter:
    """Return the trace of the mean; `style` overrides its properties."""
    label = hint or f"{look.name}, {seed_count(curve.num_seeds)}"
    trace: dict[str, object] = {
        "name": look.name,
        "legendgroup": look.name,
        "showlegend": False,
        "mode": "lines+markers",
        "line": {"color": look.color, "width": 2.2},
        "marker": {"size": 4.5, "symbol": look.symbol},
        "hovertemplate": f"%{{y:.4~g}} at %{{x:.3~s}}<extra>{label}</extra>",
    }
    return _trace(curve.usage, curve.middle, **(trace | style))


def _band(
    curve: Curve, interval: tuple[Sequence[float], Sequence[float]], look: _Look
) -> list[go.Scatter]:
    """Return the interval of the mean as two lines with the area between them."""
    red, green, blue = (int(look.color[at : at + 2], 16) for at in (1, 3, 5))
    shared = {
        "mode": "lines",
        "line": {"width": 0, "color": look.color},
        "legendgroup": look.name,
        "showlegend": False,
        "hoverinfo": "skip",
    }
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red}, {green}, {blue}, 0.13)"}
    low, high = interval
    return [_trace(curve.usage, low, **shared), _trace(curve.usage, high, **shared, **fill)]


def _verticals(
    borders: Sequence[Mapping[str, float]], look: _Look, ends: tuple[float, float]
) -> go.Scatter:
    """Return the borders between stages as one trace, so that they follow the axis' unit."""
    usage = {
        name: [at for before in borders for at in (before[name], before[name], None)]
        for name in COSTS
    }
    return _trace(
        usage,
        [at for _ in borders for at in (*ends, None)],
        mode="lines",
        line={"color": look.color, "width": 1, "dash": "dash"},
        opacity=0.7,
        legendgroup=look.name,
        showlegend=False,
        hoverinfo="skip",
    )


def _numbers(runs: Sequence[Run], low: float) -> list[go.Scatter]:
    """Return the numbers of stages where they begin, low, where a falling loss leaves room.

    Names would overlap on a narrow screen; they are listed below the figure. Of two stages that
    begin side by side the second has no number.
    """
    starts = stage_starts(runs)
    if not 1 < len(starts) <= MOST_LABELS:
        return []
    width = max(run.usage.examples for run in runs) or 1
    marks: list[tuple[int, dict[str, float]]] = []
    for number, (_, before) in enumerate(starts, start=1):
        if not marks or before["examples"] - marks[-1][1]["examples"] > CLOSE * width:
            marks.append((number, before))
    return [
        _trace(
            {name: [before[name] for _, before in marks] for name in COSTS},
            [low for _ in marks],
            mode="text",
            text=[str(number) for number, _ in marks],
            textposition="top right",
            textfont={"size": 11, "color": GRAY},
            cliponaxis=False,
            showlegend=False,
            hoverinfo="skip",
        )
    ]


def _trace(
    usage: Mapping[str, Sequence[float | None]],
    numbers: Sequence[float | None],
    **style: object,
) -> go.Scatter:
    units = {name: _rounded(usage[name]) for name in COSTS}
    return go.Scatter(x=units["examples"], y=_rounded(numbers), meta={"x": units}, **style)


def _rounded(numbers: Sequence[float | None]) -> list[float | None]:
    """Return numbers with the digits that a screen can show; all would double the page."""
    return [None if number is None else float(f"{number:.7g}") for number in numbers]


def _dress(figure: go.Figure, *, height: int, log_x: bool) -> None:
    figure.update_layout(
        height=height,
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"family": FONT, "size": 13, "color": GRAY},
        margin={"l": 64, "r": 16, "t": 34, "b": 56},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
        hovermode="x",
        dragmode="zoom",
        template="none",
        modebar={"bgcolor": CLEAR, "color": GRAY, "activecolor": PALETTE[0]},
    )
    scale = "log" if log_x else "linear"
    figure.update_xaxes(type=scale, gridcolor=GRID, zeroline=False, exponentformat="SI")
    figure.update_xaxes(title_text=COST_WORDS["examples"], row=_num_panels(figure), col=1)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)


def _num_panels(figure: go.Figure) -> int:
    return len(list(figure.select_yaxes()))
