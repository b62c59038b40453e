"""How do learning curves look on the page?

Interactive figures of plotly. One color stands for one strategy everywhere: the line is the mean
over seeds, the band reaches from the smallest to the largest value, dashed verticals are borders
between stages, the dotted horizontal is the target, and incomplete runs are thin dotted lines.

Design: every trace carries in `meta["x"]` its abscissas in all units (examples, FLOPs, seconds),
so that the page can switch the axis without a second figure. `printed` makes the static ones.
"""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from curricle.reports.curves import (
    PALETTE,
    Curve,
    averaged,
    colors,
    learning_curve,
    loss_curve,
    stage_names,
    stage_starts,
    value_range,
)
from curricle.reports.quantities import goal_text, is_share
from curricle.reports.runs import Run, grouped
from curricle.reports.summary import COSTS
from curricle.reports.tables import COST_WORDS
from curricle.specs import value

GRID = "rgba(128, 128, 128, 0.22)"
GRAY = "#7f7f7f"
CLEAR = "rgba(0, 0, 0, 0)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
CURVE_HEIGHT = 470
PANEL_HEIGHT = 190
MOST_LABELS = 6
"""Stages that are labeled with their names; more would overlap."""


@final
@value
class _Look:
    """What the traces of one strategy share."""

    name: str
    """Name of the strategy, safe to show."""
    color: str
    """Its color."""
    panel: int
    """Row of the panel that the traces go to."""


def learning_figure(
    runs: Sequence[Run], *, metric: str, target: float | None = None, log_x: bool = False
) -> go.Figure:
    """Return the metric of every strategy against the examples read.

    Args:
        runs: Runs as `load_runs` gives them.
        metric: Name of a metric of the records.
        target: Value to mark with a dotted line, if any.
        log_x: Whether the horizontal axis is logarithmic; points at zero are then left out.
    """
    figure = make_subplots()
    groups = grouped(runs)
    palette = colors(groups)
    low, high = value_range(runs, metric, target)
    for method, group in groups.items():
        look = _Look(name=html.escape(method), color=palette[method], panel=1)
        curve = learning_curve(averaged(group), metric)
        _add(figure, _band(curve, look), look)
        _add(figure, [_line(curve, look, showlegend=True)], look)
        _add(figure, _unfinished(group, metric, look), look)
        _add(figure, [_verticals(averaged(group), look, (low, high))], look)
    if target is not None:
        # Told in the legend: beside the line it would hide curves, in one unit or another.
        name = html.escape(f"target: {goal_text(metric, target)}")
        line = {"dash": "dot", "color": GRAY, "width": 1.5}
        figure.add_hline(y=target, line=line, name=name, showlegend=True)
    _dress(figure, height=CURVE_HEIGHT, log_x=log_x)
    form = ".2~%" if is_share(metric) else None
    figure.update_yaxes(title_text=html.escape(metric), range=[low, high], tickformat=form)
    return figure


def loss_figure(runs: Sequence[Run], *, log_x: bool = False) -> go.Figure:
    """Return the training loss, one panel a strategy; the stages' losses are not comparable.

    Args:
        runs: Runs as `load_runs` gives them.
        log_x: Whether the horizontal axis is logarithmic; points at zero are then left out.
    """
    groups = grouped(runs)
    titles = [html.escape(method) for method in groups]
    count = max(len(groups), 1)
    height = PANEL_HEIGHT * count + 90
    figure = make_subplots(
        rows=count,
        cols=1,
        shared_xaxes=True,
        subplot_titles=titles or None,
        vertical_spacing=36 / height,
    )
    palette = colors(groups)
    for panel, (method, group) in enumerate(groups.items(), start=1):
        look = _Look(name=html.escape(method), color=palette[method], panel=panel)
        _add_losses(figure, averaged(group), look)
    _dress(figure, height=height, log_x=log_x)
    figure.update_layout(showlegend=False, hovermode="closest")
    return figure


def _add_losses(figure: go.Figure, runs: Sequence[Run], look: _Look) -> None:
    stages = stage_names(runs)
    curves = {stage: loss_curve(runs, stage) for stage in stages}
    lows = [low for curve in curves.values() for low in curve.low]
    highs = [high for curve in curves.values() for high in curve.high]
    for number, (stage, curve) in enumerate(curves.items()):
        hint = f"{look.name}, {html.escape(stage)}"
        # Neighboring stages differ in depth of color, so that a border is seen without its line.
        line = _line(curve, look, opacity=0.55 if number % 2 else 1.0, hint=hint, mode="lines")
        _add(figure, [*_band(curve, look), line], look)
    if lows:
        labels = [_labels(runs, min(lows))] if len(stages) <= MOST_LABELS else []
        _add(figure, [_verticals(runs, look, (min(lows), max(highs))), *labels], look)
        figure.update_yaxes(**_loss_axis(min(lows), max(highs)), row=look.panel, col=1)
    figure.update_yaxes(title_text="loss", row=look.panel, col=1)


def _loss_axis(low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis with few ticks where there is one."""
    if low <= 0:
        return {"type": "linear"}
    decades = math.log10(high / low)
    few = math.ceil(decades / 5) if decades > 2 else "D2"  # noqa: PLR2004 - ticks at 1, 2 and 5
    return {"type": "log", "dtick": few, "tickformat": "~g"}


def _add(figure: go.Figure, traces: Iterable[go.Scatter], look: _Look) -> None:
    for trace in traces:
        figure.add_trace(trace, row=look.panel, col=1)


def _line(curve: Curve, look: _Look, *, hint: str = "", **style: Any) -> go.Scatter:  # noqa: ANN401
    """Return the mean; `style` overrides what plotly is told."""
    label = hint or f"{look.name}, {curve.num_seeds} seed{'' if curve.num_seeds == 1 else 's'}"
    told: dict[str, Any] = {
        "name": look.name,
        "legendgroup": look.name,
        "showlegend": False,
        "mode": "lines+markers",
        "line": {"color": look.color, "width": 2.2},
        "marker": {"size": 4.5},
        "hovertemplate": f"%{{y:.4~g}} at %{{x:.3~s}}<extra>{label}</extra>",
    }
    return _trace(curve.spent, curve.middle, **(told | style))


def _band(curve: Curve, look: _Look) -> list[go.Scatter]:
    if curve.num_seeds <= 1:
        return []
    red, green, blue = (int(look.color[at : at + 2], 16) for at in (1, 3, 5))
    shared = {
        "mode": "lines",
        "line": {"width": 0, "color": look.color},
        "legendgroup": look.name,
        "showlegend": False,
        "hoverinfo": "skip",
    }
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red}, {green}, {blue}, 0.16)"}
    return [
        _trace(curve.spent, curve.low, **shared),
        _trace(curve.spent, curve.high, **shared, **fill),
    ]


def _unfinished(runs: Sequence[Run], metric: str, look: _Look) -> Iterator[go.Scatter]:
    """Yield the incomplete runs that are no part of the mean, each on its own."""
    inside = averaged(runs)
    for run in runs:
        if run not in inside:
            hint = f"{look.name}, seed {run.seed}, incomplete"
            line = {"color": look.color, "width": 1.2, "dash": "dot"}
            yield _line(learning_curve([run], metric), look, hint=hint, mode="lines", line=line)


def _verticals(runs: Sequence[Run], look: _Look, ends: tuple[float, float]) -> go.Scatter:
    """Return the borders between stages as one trace, so that they follow the axis' unit."""
    found = stage_starts(runs)[1:]
    spent = {
        name: [at for _, before in found for at in (before[name], before[name], None)]
        for name in COSTS
    }
    return _trace(
        spent,
        [at for _ in found for at in (*ends, None)],
        mode="lines",
        line={"color": look.color, "width": 1, "dash": "dash"},
        opacity=0.7,
        legendgroup=look.name,
        showlegend=False,
        hoverinfo="skip",
    )


def _labels(runs: Sequence[Run], low: float) -> go.Scatter:
    """Return the stages' names where they begin, low, where a falling loss leaves room."""
    found = stage_starts(runs)
    return _trace(
        {name: [before[name] for _, before in found] for name in COSTS},
        [low for _ in found],
        mode="text",
        text=[html.escape(name) for name, _ in found],
        textposition="top right",
        textfont={"size": 11, "color": GRAY},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )


def _trace(
    spent: Mapping[str, Sequence[float | None]],
    numbers: Sequence[float | None],
    **style: Any,  # noqa: ANN401 - plotly's own settings
) -> go.Scatter:
    units = {name: list(spent[name]) for name in COSTS}
    return go.Scatter(x=units["examples"], y=list(numbers), meta={"x": units}, **style)


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
