"""Learning curves for a paper or a README.

Static figures of matplotlib, as PNG and SVG, with the same marks as on the page: line and band,
dashed borders between stages, a dotted goal. Strategies also differ in their markers, for
readers without colors.

Design: matplotlib's object interface only; no global figure, and settings for the time of a call.
The same runs give the same bytes.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from typing import final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from curricle.files import new_file
from curricle.reports.curves import StrategyCurves, averaged, has_bands, metric_panel
from curricle.reports.formatting import goal_text, is_share, seed_count, short
from curricle.reports.names import shortened
from curricle.reports.run_folders import Run, grouped
from curricle.reports.tables import COST_WORDS
from curricle.values import value

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GRAY = "#555555"
WIDTH, HEIGHT = 4.4, 3.6
"""Inches of one panel."""
DOTS_PER_INCH = 200
CAPTION = "line: mean over seeds · band: 95 % interval of the mean (t) · thin: single seeds"
LEGEND_LINE, LEGEND_LETTER, LEGEND_ROW = 0.7, 0.075, 0.2
"""Inches of a legend's sample line, of a letter and of a row."""
MARKER_SPACING = 0.11
"""Between two markers of a line, as a share of the panel's diagonal."""


def drawing() -> AbstractContextManager[None]:
    """Return a context with the settings of all figures."""
    return mpl.rc_context(
        {
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
    )


@final
@value
class View:
    """Part of some runs that is plotted."""

    metric: str
    """Name of a metric of the records."""
    goal: float | None = None
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
    goal: float | None = None,
    axes: Sequence[str] = ("examples", "total_flops"),
    log_x: bool = False,
) -> tuple[Path, Path]:
    """Return the paths of a PNG and an SVG file drawn with the metric of every strategy.

    Args:
        runs: Runs as `load_runs` gives them.
        path_without_suffix: Where to write; `.png` and `.svg` are put behind.
        metric: Name of a metric of the records.
        goal: Value to mark with a dotted line, if any.
        axes: Fields of `Costs`, one panel each, side by side.
        log_x: Whether the horizontal axes are logarithmic; points at zero are then left out.
    """
    width = WIDTH * len(axes)
    longest = max(
        (len(_legend_name(name, len(averaged(group)))) for name, group in grouped(runs).items()),
        default=0,
    )
    columns = max(1, int(width / (LEGEND_LINE + LEGEND_LETTER * longest)))
    # More names than one row holds need room of their own, or they would leave none to the panels.
    height = HEIGHT + LEGEND_ROW * (len(grouped(runs)) // columns)
    with drawing():
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        row = list(figure.subplots(1, len(axes), sharey=True, squeeze=False)[0])
        _draw_row(row, runs, View(metric=metric, goal=goal, axes=tuple(axes), log_x=log_x))
        lines, names = row[0].get_legend_handles_labels()
        if names:
            figure.legend(lines, names, loc="outside upper center", ncols=columns, frameon=False)
        _explain(figure, runs)
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
    with drawing():
        figure = Figure(
            figsize=(WIDTH * columns, HEIGHT * len(panels)), layout="constrained", facecolor="white"
        )
        grid = figure.subplots(len(panels), columns, sharey="row", squeeze=False)
        for row, (title, runs, view) in zip(map(list, grid), panels, strict=True):
            _draw_row(row, runs, view)
            row[0].set_title(title, loc="left")
            row[-1].legend(loc="best", frameon=False, fontsize=8)
        _explain(figure, [run for _, runs, _ in panels for run in runs])
        return save(figure, path_without_suffix)


def save(figure: Figure, path_without_suffix: Path) -> tuple[Path, Path]:
    """Return the paths of a figure written as PNG and SVG, the same bytes every time."""
    png, svg = (
        path_without_suffix.with_name(path_without_suffix.name + end) for end in (".png", ".svg")
    )
    with warnings.catch_warnings():
        # A character that the font lacks becomes a box; names may be of any script.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        with new_file(png) as file:
            metadata = {"Software": None}
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata=metadata)
        with new_file(svg) as file:
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return png, svg


def label(name: str) -> str:
    """Return a name in which matplotlib sees neither formulas nor hidden entries."""
    return " " * name.startswith("_") + shortened(name).replace("$", r"\$")


def _legend_name(method: str, num_runs: int) -> str:
    return f"{label(method)} ({seed_count(num_runs)})"


def _explain(figure: Figure, runs: Sequence[Run]) -> None:
    """Explain bands and thin lines below a figure that has any."""
    if has_bands(runs) and any(len(averaged(group)) > 1 for group in grouped(runs).values()):
        figure.supxlabel(CAPTION, fontsize=7, color=GRAY)


def _draw_row(row: Sequence[Axes], runs: Sequence[Run], view: View) -> None:
    ends, strategies = metric_panel(runs, view.metric, view.goal)
    for panel, axis in zip(row, view.axes, strict=True):
        _draw(panel, strategies, axis)
        if view.goal is not None:
            name = label(f"goal: {goal_text(view.metric, view.goal)}")
            panel.axhline(view.goal, color=GRAY, linewidth=1.1, linestyle=":", label=name)
        _dress(panel, view.metric, axis, log_x=view.log_x)
    row[0].set_ylim(*ends)
    row[0].set_ylabel(label(view.metric))


def _draw(panel: Axes, strategies: Sequence[StrategyCurves], axis: str) -> None:
    for strategy, marker in zip(strategies, cycle(MARKERS), strict=False):
        color, along = strategy.color, strategy.mean.usage[axis]
        panel.plot(
            along,
            strategy.mean.middle,
            color=color,
            marker=marker,
            label=_legend_name(strategy.method, strategy.num_runs),
            linewidth=1.8,
            markersize=4.5,
            # By distance on the panel: markers would crowd at an end of a logarithmic axis.
            markevery=MARKER_SPACING if len(along) > 1 else None,
        )
        if strategy.band is not None:
            panel.fill_between(along, *strategy.band, color=color, alpha=0.13, lw=0)
        single = [(curve, ":", 0.9) for _, curve in strategy.incomplete]
        single += [(curve, "-", 0.5) for _, curve in strategy.seeds]
        for curve, dash, width in single:
            panel.plot(curve.usage[axis], curve.middle, color=color, linewidth=width, ls=dash)
        for border in strategy.borders:
            panel.axvline(border[axis], color=color, linewidth=0.8, linestyle="--", alpha=0.6)


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
