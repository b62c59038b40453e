"""Charts of measured points for a paper.

Static figures of matplotlib, one panel a comparison or one for all points. Means carry 95 %
intervals over repetitions (Student's t), spreads their quartiles and whiskers around the middle
95 % of them.

Design: `Chart.kind` names the form of a chart and `Chart.of` its numbers; numbers of comparisons
become points first, so that there is a single way to draw them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from curricle.figure_points import Chart, Panel, Point
from curricle.reports.curves import colors
from curricle.reports.formatting import half_width, limits, mean, short, t_quantile
from curricle.reports.printed import MARKERS, drawing, label, save
from curricle.reports.summary import MethodSummary, Summary
from curricle.values import value

WIDTH, HEIGHT = 5.2, 3.8
"""Inches of one panel."""
WHISKERS = (2.5, 97.5)
"""Percentiles of the repetitions at which the whiskers of a spread end."""
MOST_COLUMNS = 4
"""Panels side by side; further ones lie below."""
FEW = 6
"""Names of groups that find room side by side."""
NOTHING = "no strategy has a number on every seed"
"""Stands where nothing can be drawn."""


@final
@value
class Statistic:
    """A measurement over its repetitions."""

    panel: str
    """Panel of the figure."""
    series: str
    """Strategy or series."""
    x: float | str
    """Where on the horizontal axis."""
    mean: float
    """Mean over the repetitions."""
    ci95: float | None
    """Half of the 95 % interval of the mean; None for one repetition."""
    deviation: float
    """Root mean square distance of the repetitions from their mean."""
    count: int
    """Number of repetitions."""


@final
@value
class Slope:
    """The exponent of a power law y ~ x^slope, fitted to the points of a series."""

    panel: str
    """Panel of the figure."""
    series: str
    """Strategy or series."""
    slope: float
    """The exponent, by least squares of log y on log x."""
    factor: float
    """y of the line at x = 1."""
    ci95: float
    """Half of its 95 % interval."""


def points_of(chart: Chart, panels: Sequence[tuple[Panel, Summary]]) -> tuple[Point, ...]:
    """Return the numbers of comparisons as points.

    A strategy counts in a panel only if all its runs have the number: a mean over the runs that
    reached the goal would flatter it.

    Args:
        chart: Names the numbers, for panels without a separate chart.
        panels: Comparisons with their summaries.
    """
    points: list[Point] = []
    for panel, summary in panels:
        layout = panel.chart or chart
        for method, method_summary in summary.methods.items():
            numbers = {
                seed.seed: seed.final.get(summary.metric)
                if layout.of == "final"
                else None
                if seed.to_goal is None
                else seed.to_goal.examples
                for seed in method_summary.counted
            }
            finite = {seed: number for seed, number in numbers.items() if number is not None}
            if len(finite) == len(numbers):
                place = (
                    {"panel": panel.name, "series": "", "x": method}
                    if layout.kind == "bars"
                    else {"series": method, "x": place_of(layout, panel, method_summary)}
                )
                points += [Point(**place, y=number, seed=seed) for seed, number in finite.items()]
    return tuple(points)


def place_of(chart: Chart, panel: Panel, method: MethodSummary) -> float | str:
    """Return where the numbers of a strategy in a panel stand on the horizontal axis."""
    if chart.x_from == "total_flops":
        return mean([seed.usage["total_flops"] for seed in method.seeds])
    return panel.name if panel.x is None else panel.x


def statistics(points: Sequence[Point]) -> tuple[Statistic, ...]:
    """Return the mean and interval of each measurement, in the order of the points."""
    groups: dict[tuple[str, str, float | str], list[float]] = {}
    for point in points:
        groups.setdefault((point.panel, point.series, point.x), []).append(point.y)
    return tuple(
        Statistic(
            panel=panel,
            series=series,
            x=x,
            mean=mean(ys),
            ci95=half_width(ys),
            deviation=math.sqrt(mean([(y - mean(ys)) ** 2 for y in ys])),
            count=len(ys),
        )
        for (panel, series, x), ys in groups.items()
    )


def slopes(points: Sequence[Point]) -> tuple[Slope, ...]:
    """Return the power law of each series that has points at three places at least.

    The line is fitted to the means of log y at each place: repetitions at a place may share a part,
    such as their teacher, and are not independent.
    """
    groups: dict[tuple[str, str], dict[float, list[float]]] = {}
    for point in points:
        if isinstance(point.x, float) and point.x > 0 and point.y > 0:
            places = groups.setdefault((point.panel, point.series), {})
            places.setdefault(math.log(point.x), []).append(math.log(point.y))
    return tuple(
        Slope(panel=panel, series=series, slope=slope, factor=math.exp(level), ci95=ci95)
        for (panel, series), places in groups.items()
        if len(places) > 2  # noqa: PLR2004 - two places give no doubt
        for slope, level, ci95 in [_line([(x, mean(ys)) for x, ys in places.items()])]
    )


def _line(places: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return slope and height at zero of the least-squares line, and half the slope's interval."""
    count = len(places)
    center, level = (mean([place[axis] for place in places]) for axis in (0, 1))
    spread = math.fsum((x - center) ** 2 for x, _ in places)
    slope = math.fsum((x - center) * (y - level) for x, y in places) / spread
    residual = math.fsum((y - level - slope * (x - center)) ** 2 for x, y in places)
    ci95 = t_quantile(count - 2) * math.sqrt(residual / (count - 2) / spread)
    return slope, level - slope * center, ci95


def save_chart(
    chart: Chart,
    points: Sequence[Point],
    path_without_suffix: Path,
    panels: Sequence[tuple[Panel, Summary]] = (),
    *,
    axes_labels: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Path, Path]:
    """Return the paths of a PNG and an SVG file with the points drawn.

    Args:
        chart: How they are drawn; not `curves`.
        points: Points to draw; an empty figure has a note.
        path_without_suffix: Path to which `.png` and `.svg` are appended.
        panels: Comparisons that the points come from, with their summaries; bars name the
            strategies that have no number.
        axes_labels: Labels of the vertical axis of panels that have another than the chart's.
    """
    charts = {panel.name: panel.chart for panel, _ in panels}
    charts |= {name: replace(chart, y=words) for name, words in axes_labels.items()}
    # Where panels stand alone, one that has no point says so in its place.
    alone = panels if chart.kind == "bars" and chart.of != "points" else ()
    names = [*(panel.name for panel, _ in alone), *(point.panel for point in points)]
    names = list(dict.fromkeys(names)) or [""]
    ends = _limits(chart, panels)
    palette = colors(dict.fromkeys(point.series for point in points))
    columns = min(len(names), MOST_COLUMNS)
    rows = -(-len(names) // columns)
    with drawing():
        figure = Figure(
            figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained", facecolor="white"
        )
        places = figure.subplots(rows, columns, squeeze=False).flat
        for axes in [*places][len(names) :]:
            axes.remove()
        for axes, name in zip(figure.axes, names, strict=True):
            inside = [point for point in points if point.panel == name]
            if inside:
                DRAWN[chart.kind](axes, inside, palette, ends)
                for fit in slopes(inside) if chart.slopes else ():
                    _draw_slope(axes, fit, inside, palette[fit.series])
            else:
                axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center")
                axes.set(xticks=[], yticks=[])
            _dress(axes, charts.get(name) or chart, name, inside)
        for axes, (panel, summary) in zip(figure.axes, alone, strict=False):
            seen = {point.x for point in points if point.panel == panel.name}
            _name_absent(axes, set(summary.methods) - seen)
        lines, labels = figure.axes[0].get_legend_handles_labels()
        if len(labels) > 1:
            ncols = 2 if chart.slopes else 4
            figure.legend(lines, labels, loc="outside upper center", ncols=ncols, frameon=False)
        return save(figure, path_without_suffix)


def _limits(chart: Chart, panels: Sequence[tuple[Panel, Summary]]) -> tuple[float, float]:
    """Return the least and the largest value that the numbers of a chart can have."""
    if chart.of != "final" or not panels:
        return limits("")
    ends = [limits(summary.metric) for _, summary in panels]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _errors(statistics_: Sequence[Statistic], ends: tuple[float, float]) -> list[list[float]]:
    """Return the lower and upper parts of intervals, clipped to the possible range."""
    low, high = ends
    half = [statistic.ci95 or 0.0 for statistic in statistics_]
    down = [
        max(0.0, min(x, statistic.mean - low))
        for x, statistic in zip(half, statistics_, strict=True)
    ]
    up = [
        max(0.0, min(x, high - statistic.mean))
        for x, statistic in zip(half, statistics_, strict=True)
    ]
    return [down, up]


def _bars(
    axes: Axes, points: Sequence[Point], palette: Mapping[str, str], ends: tuple[float, float]
) -> None:
    statistics_ = statistics(points)
    groups = list(dict.fromkeys(statistic.x for statistic in statistics_))
    series = list(dict.fromkeys(statistic.series for statistic in statistics_))
    width = 0.8 / len(series)
    for number, name in enumerate(series):
        members = [statistic for statistic in statistics_ if statistic.series == name]
        places = [
            groups.index(statistic.x) + (number - (len(series) - 1) / 2) * width
            for statistic in members
        ]
        errors = _errors(members, ends)
        heights = [statistic.mean for statistic in members]
        axes.bar(
            places,
            heights,
            width=width * 0.92,
            yerr=errors,
            ecolor="#444444",
            color=palette[name],
            label=label(name),
            capsize=2.5,
        )
    _name_groups(axes, groups)


def _lines(
    axes: Axes, points: Sequence[Point], palette: Mapping[str, str], ends: tuple[float, float]
) -> None:
    statistics_ = statistics(points)
    for name, marker in zip(palette, cycle(MARKERS), strict=False):
        members = sorted(
            (statistic for statistic in statistics_ if statistic.series == name),
            key=lambda statistic: statistic.x,
        )
        errors = _errors(members, ends)
        axes.errorbar(
            [statistic.x for statistic in members],
            [statistic.mean for statistic in members],
            errors,
            capsize=3,
            color=palette[name],
            marker=marker,
            label=label(name),
        )


def _spread(
    axes: Axes, points: Sequence[Point], palette: Mapping[str, str], _: tuple[float, float]
) -> None:
    groups = list(dict.fromkeys(point.x for point in points))
    series = list(palette)
    width = 0.8 / len(series)
    for number, name in enumerate(series):
        values = {
            place: [point.y for point in points if (point.series, point.x) == (name, group)]
            for place, group in enumerate(groups)
        }
        present = {place: ys for place, ys in values.items() if ys}
        if not present:
            continue
        boxes = axes.boxplot(
            list(present.values()),
            positions=[place + (number - (len(series) - 1) / 2) * width for place in present],
            widths=width * 0.85,
            whis=WHISKERS,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            medianprops={"color": "#222222"},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=palette[name], alpha=0.6)
        boxes["boxes"][0].set_label(label(name))
    _name_groups(axes, groups)


def _draw_slope(axes: Axes, fit: Slope, points: Sequence[Point], color: str) -> None:
    places = [point.x for point in points if point.series == fit.series]
    ends = [end for end in (min(places), max(places)) if not isinstance(end, str)]
    heights = [fit.factor * end**fit.slope for end in ends]
    name = f"{label(fit.series)} ~ x^({fit.slope:.2f} ± {fit.ci95:.2f})"
    axes.plot(ends, heights, color=color, linestyle="dotted", linewidth=1.2, label=name)


DRAWN = {"bars": _bars, "lines": _lines, "spread": _spread}
"""How each kind of chart is drawn."""


def _name_groups(axes: Axes, groups: Sequence[float | str]) -> None:
    names = [label(group) if isinstance(group, str) else f"{group:g}" for group in groups]
    rotation = 20 if len(groups) <= FEW else 60
    axes.set_xticks(range(len(groups)), names, rotation=rotation, ha="right")


def _name_absent(axes: Axes, absent: Iterable[str]) -> None:
    """Name the strategies that did not reach the goal with every seed."""
    if names := sorted(absent):
        axes.set_xlabel(f"not on every seed: {', '.join(map(label, names))}", wrap=True)


def _dress(axes: Axes, chart: Chart, title: str, points: Sequence[Point]) -> None:
    """Label the axes; logarithmic axes have plain numbers, on x at the points."""
    places = sorted({point.x for point in points if isinstance(point.x, float)})
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.set_title(title)
    if chart.log_x:
        axes.set_xscale("log")
        # Each strategy has FLOPs of its own, too many places to label.
        if chart.x_from == "panel":
            axes.set_xticks(places, map(short, places))
            axes.set_xticks([], minor=True)
        else:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: short(number)))
            axes.xaxis.set_minor_formatter(NullFormatter())
    if chart.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: short(number)))
        axes.yaxis.set_minor_formatter(NullFormatter())
