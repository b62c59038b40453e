"""How are learning curves drawn for a paper or a README?

Static figures of matplotlib, as PNG and SVG, with the same marks as on the page: line and band,
dashed borders between stages, a dotted target. Strategies also differ in their markers, for
readers without colors.

Design: matplotlib's object interface only; no global figure, and settings for the time of a call.
The same runs give the same bytes.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from curricle.reports.curves import (
    Curve,
    averaged,
    colors,
    learning_curve,
    stage_starts,
    value_range,
)
from curricle.reports.quantities import goal_text, is_share, short
from curricle.reports.runs import Run, grouped
from curricle.reports.tables import COST_WORDS
from curricle.specs import value

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    # Names inside the SVG are drawn from this, so that it is the same every time.
    "svg.hashsalt": "curricle",
}
GRAY = "#555555"
WIDTH, HEIGHT = 4.4, 3.6
"""Inches of one panel."""
DOTS_PER_INCH = 200
MARKER_SPACING = 0.11
"""Between two markers of a line, as a share of the panel's diagonal."""


@final
@value
class View:
    """What is shown of some runs."""

    metric: str
    """Name of a metric of the records."""
    target: float | None = None
    """Value to mark with a dotted line, if any."""
    axes: tuple[str, ...] = ("examples", "total_flops")
    """Fields of `Costs`, one panel each, side by side."""
    log_x: bool = False
    """Whether the horizontal axes are logarithmic; points at zero are then left out."""


def save_learning_curves(
    runs: Sequence[Run],
    path_without_suffix: Path,
    *,
    metric: str,
    target: float | None = None,
    axes: Sequence[str] = ("examples", "total_flops"),
    log_x: bool = False,
) -> tuple[Path, Path]:
    """Return the paths of a PNG and an SVG file drawn with the metric of every strategy.

    Args:
        runs: Runs as `load_runs` gives them.
        path_without_suffix: Where to write; `.png` and `.svg` are put behind.
        metric: Name of a metric of the records.
        target: Value to mark with a dotted line, if any.
        axes: Fields of `Costs`, one panel each, side by side.
        log_x: Whether the horizontal axes are logarithmic; points at zero are then left out.
    """
    with mpl.rc_context(SETTINGS):
        figure = Figure(
            figsize=(WIDTH * len(axes), HEIGHT), layout="constrained", facecolor="white"
        )
        row = list(figure.subplots(1, len(axes), sharey=True, squeeze=False)[0])
        _draw_row(row, runs, View(metric=metric, target=target, axes=tuple(axes), log_x=log_x))
        lines, names = row[0].get_legend_handles_labels()
        if names:
            figure.legend(lines, names, loc="outside upper center", ncols=5, frameon=False)
        return save(figure, path_without_suffix)


def save_panels(
    panels: Sequence[tuple[str, Sequence[Run], View]], path_without_suffix: Path
) -> tuple[Path, Path]:
    """Return the paths of a PNG and an SVG file with the learning curves of several comparisons.

    Args:
        panels: Title, runs and view of each comparison, one row each; as many axes in all.
        path_without_suffix: Where to write; `.png` and `.svg` are put behind.
    """
    columns = len(panels[0][2].axes)
    with mpl.rc_context(SETTINGS):
        figure = Figure(
            figsize=(WIDTH * columns, HEIGHT * len(panels)), layout="constrained", facecolor="white"
        )
        grid = figure.subplots(len(panels), columns, sharey="row", squeeze=False)
        for row, (title, runs, view) in zip(map(list, grid), panels, strict=True):
            _draw_row(row, runs, view)
            row[0].set_title(title, loc="left")
            row[-1].legend(loc="best", frameon=False, fontsize=8)
        return save(figure, path_without_suffix)


def save(figure: Figure, path_without_suffix: Path) -> tuple[Path, Path]:
    """Return the paths of a figure written as PNG and SVG, the same bytes every time."""
    path_without_suffix.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (
        path_without_suffix.with_name(path_without_suffix.name + end) for end in (".png", ".svg")
    )
    figure.savefig(png, dpi=DOTS_PER_INCH, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg


def _draw_row(row: Sequence[Axes], runs: Sequence[Run], view: View) -> None:
    for panel, axis in zip(row, view.axes, strict=True):
        _draw(panel, runs, view.metric, axis)
        if view.target is not None:
            name = f"target: {goal_text(view.metric, view.target)}"
            panel.axhline(view.target, color=GRAY, linewidth=1.1, linestyle=":", label=name)
        _dress(panel, view.metric, axis, log_x=view.log_x)
    row[0].set_ylim(*value_range(runs, view.metric, view.target))
    row[0].set_ylabel(view.metric)


def _draw(panel: Axes, runs: Sequence[Run], metric: str, axis: str) -> None:
    groups = grouped(runs)
    for (method, color), marker in zip(colors(groups).items(), cycle(MARKERS), strict=False):
        inside = averaged(groups[method])
        style = {"color": color, "marker": marker, "label": _plain_label(method)}
        _line(panel, learning_curve(inside, metric), axis, style)
        for run in groups[method]:
            if run not in inside:
                alone = learning_curve([run], metric)
                panel.plot(alone.spent[axis], alone.middle, color=color, linewidth=0.9, ls=":")
        for _, before in stage_starts(inside)[1:]:
            panel.axvline(before[axis], color=color, linewidth=0.8, linestyle="--", alpha=0.6)


def _line(panel: Axes, curve: Curve, axis: str, style: Mapping[str, Any]) -> None:
    along = curve.spent[axis]
    # By distance on the panel, so that markers do not crowd at one end of a logarithmic axis.
    every = MARKER_SPACING if len(along) > 1 else None
    panel.plot(along, curve.middle, linewidth=1.8, markersize=4.5, markevery=every, **style)
    if curve.num_seeds > 1:
        panel.fill_between(along, curve.low, curve.high, color=style["color"], alpha=0.16, lw=0)


def _plain_label(name: str) -> str:
    """Return a name without what matplotlib reads in it: formulas, and hidden entries."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def _dress(panel: Axes, metric: str, axis: str, *, log_x: bool) -> None:
    panel.grid(axis="y", color="#dddddd", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.set_xlabel(COST_WORDS[axis])
    if log_x:
        panel.set_xscale("log", nonpositive="mask")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_locator(LogLocator(numticks=6))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda number, _: short(number)))
    if is_share(metric):
        panel.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{100 * number:.4g} %"))
