"""Points of learning curves.

A `Curve` is the mean of one number over the seeds of a strategy with the 95 % interval of that mean
(Student's t), against everything a run consumes. `metric_panel` describes a panel, which page and
print paint. Points belong together by their step: at one step all seeds have read the same number
of examples, while their FLOPs and seconds may differ a little and are averaged as the metric is.

Design: a curve that loses a seed on its way would jump. So a run that has ended, at its goal or
because its budget was spent, counts with its last value from there on, and the axis goes on as the
other seeds do. Incomplete runs stay out of the mean as soon as one run of the strategy is complete;
a figure draws them one by one. Where none is complete, the mean goes as far as the
shortest. Between a run's own points the metric is interpolated, as a line through them would.
"""

import math
from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from curricle.records import Usage
from curricle.reports.formatting import limits, mean, t_quantile
from curricle.reports.run_folders import Run, grouped
from curricle.reports.summary import COSTS
from curricle.reports.thinning import extremes
from curricle.values import value

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Colors that stay apart for color-blind readers, after Okabe and Ito 2008, with a gray."""
LARGEST = 1e300
"""Largest number of a curve; integers of a damaged record may be beyond any float."""
MOST_POINTS = 400
"""Points of a curve; of a longer one the extremes are kept."""
FEWEST_POINTS, ALL_POINTS = 50, 20_000
"""Points of a curve among very many, and of all curves of a figure together."""
MOST_BORDERS = 24
"""Borders between stages that a curve shows."""
MOST_SEEDS, MOST_STRATEGIES = 10, 12
"""Seeds of a strategy up to which each is a line of its own, and strategies up to which figures
have such lines and bands; more would hide each other."""
Points = Sequence[tuple[Usage, float]]
"""A number of one run with the cost of the run until then, in order."""


@final
@value
class Curve:
    """The mean of a number over seeds against the cost."""

    usage: dict[str, tuple[float, ...]]
    """For each field of `Costs`, and `steps`, the cost at each point."""
    middle: tuple[float, ...]
    """Mean over seeds at each point."""
    low: tuple[float, ...]
    """Lower end of the 95 % interval of the mean; the mean itself for one seed."""
    high: tuple[float, ...]
    """Upper end of the interval."""
    num_seeds: int
    """How many runs were averaged."""


@final
@value
class StrategyCurves:
    """Curves of a strategy in a panel."""

    method: str
    """Name of the strategy."""
    color: str
    """Its color."""
    num_runs: int
    """Runs in the mean."""
    mean: Curve
    """Mean over the averaged runs."""
    band: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Ends of the interval of the mean, clipped to the axis; None where it is not drawn."""
    seeds: tuple[tuple[int, Curve], ...]
    """Seed and curve of each averaged run, where they are drawn singly."""
    incomplete: tuple[tuple[int, Curve], ...]
    """Seed and curve of each run outside the mean."""
    borders: tuple[dict[str, float], ...]
    """Costs at each border between stages, as `stage_borders` gives them."""


def metric_panel(
    runs: Sequence[Run], metric: str, goal: float | None, *, max_points: int = MOST_POINTS
) -> tuple[tuple[float, float], tuple[StrategyCurves, ...]]:
    """Return the ends of the vertical axis of a metric, and the curves of each strategy.

    Args:
        runs: Runs as `load_runs` gives them.
        metric: Name of a metric of the records.
        goal: Value that is marked, if any.
        max_points: Points that are kept of means and single seeds.
    """
    groups, is_few, ends = grouped(runs), has_bands(runs), value_range(runs, metric, goal)
    smallest, largest = limits(metric, _students_numbers(runs, metric))
    inner = (max(smallest, ends[0]), min(largest, ends[1]))
    strategies = []
    for method, color in colors(groups).items():
        members = averaged(groups[method])
        mean_curve = learning_curve(members, metric, max_points=max_points)
        strategies.append(
            StrategyCurves(
                method=method,
                color=color,
                num_runs=len(members),
                mean=mean_curve,
                band=band(mean_curve, inner) if is_few and mean_curve.num_seeds > 1 else None,
                seeds=tuple(
                    (run.seed, learning_curve([run], metric, max_points=max_points))
                    for run in members
                    if is_few and 1 < len(members) <= MOST_SEEDS
                ),
                incomplete=tuple(
                    (run.seed, learning_curve([run], metric))
                    for run in groups[method]
                    if run not in members
                ),
                borders=stage_borders(members),
            )
        )
    return ends, tuple(strategies)


def colors(methods: Iterable[str]) -> dict[str, str]:
    """Return a color for each strategy; they repeat after seven."""
    return {method: PALETTE[number % len(PALETTE)] for number, method in enumerate(methods)}


def averaged(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs of a strategy that belong into its mean."""
    return tuple(run for run in runs if run.is_complete) or tuple(runs)


def most_points(num_curves: int) -> int:
    """Return how many points a curve may have beside others in a figure."""
    return max(FEWEST_POINTS, min(MOST_POINTS, ALL_POINTS // max(num_curves, 1)))


def band(curve: Curve, ends: tuple[float, float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the interval of a curve for drawing, clipped to the ends of a vertical axis."""
    low, high = (np.clip(numbers, *ends) for numbers in (curve.low, curve.high))
    return _floats(low), _floats(high)


def learning_curve(runs: Sequence[Run], metric: str, *, max_points: int = MOST_POINTS) -> Curve:
    """Return the curve of a metric over the given runs.

    Args:
        runs: Runs of one strategy.
        metric: Name of a metric of the records.
        max_points: Points that are kept.
    """
    points = [
        [
            (measurement.usage, measurement.metrics[metric])
            for measurement in run.measurements
            if metric in measurement.metrics
        ]
        for run in runs
    ]
    return _curve(runs, points, max_points)


def loss_curve(runs: Sequence[Run], stage: str, *, max_points: int = MOST_POINTS) -> Curve:
    """Return the curve of the training loss in one stage over the given runs.

    Args:
        runs: Runs of one strategy.
        stage: Name of the stage.
        max_points: Points that are kept.
    """
    points = [
        [(step.usage, step.loss) for step in run.steps if step.stage == stage] for run in runs
    ]
    return _curve(runs, points, max_points)


def stage_starts(runs: Sequence[Run]) -> tuple[tuple[str, dict[str, float]], ...]:
    """Return each stage with the cost before it, mean over runs."""
    names = dict.fromkeys(record.stage for run in runs for record in run.stages)
    return tuple(
        (
            name,
            _means([record.usage for run in runs for record in run.stages if record.stage == name]),
        )
        for name in names
    )


def stage_borders(runs: Sequence[Run]) -> tuple[dict[str, float], ...]:
    """Return the costs at each border between stages, mean over runs.

    Empty for a method with more than `MOST_BORDERS` of them, such as progressive distillation with
    hundreds of checkpoints, whose lines would cover the curves.
    """
    borders = tuple(before for _, before in stage_starts(runs)[1:])
    return borders if len(borders) <= MOST_BORDERS else ()


def stage_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the names of the stages that wrote losses, in order."""
    return tuple(dict.fromkeys(record.stage for run in runs for record in run.steps))


def stages_without_loss(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the names of the stages that were run and wrote no loss, in order."""
    stages = dict.fromkeys(record.stage for run in runs for record in run.stages)
    recorded = set(stage_names(runs))
    return tuple(name for name in stages if name not in recorded)


def _curve(runs: Sequence[Run], points: Sequence[Points], max_points: int) -> Curve:
    curves = [curve for curve in points if curve]
    steps = _shared_steps(runs, points)
    if not steps:
        nothing: dict[str, tuple[float, ...]] = dict.fromkeys((*COSTS, "steps"), ())
        return Curve(usage=nothing, middle=(), low=(), high=(), num_seeds=len(curves))
    numbers = np.array([_at(steps, curve, [number for _, number in curve]) for curve in curves])
    places = extremes(_floats(numbers.mean(axis=0)), max_points)
    steps, numbers = [steps[at] for at in places], numbers[:, places]
    middle, half = numbers.mean(axis=0), _half_widths(numbers)
    return Curve(
        usage={name: _consumed(steps, curves, name) for name in (*COSTS, "steps")},
        middle=_floats(middle),
        low=_floats(middle - half),
        high=_floats(middle + half),
        num_seeds=len(curves),
    )


def _half_widths(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at each point half the 95 % interval of the mean over seeds, as tables give it."""
    count = len(numbers)
    if count == 1:
        return np.zeros(numbers.shape[1])
    return np.asarray(t_quantile(count - 1) * numbers.std(axis=0, ddof=1) / math.sqrt(count))


def _shared_steps(runs: Sequence[Run], points: Sequence[Points]) -> Sequence[int]:
    """Return the steps at which every run has begun, and none has stopped incomplete."""
    curves = [(run, curve) for run, curve in zip(runs, points, strict=True) if curve]
    first = max((curve[0][0].steps for _, curve in curves), default=0)
    stopped = (curve[-1][0].steps for run, curve in curves if not run.is_complete)
    last = min(stopped, default=math.inf)
    numbers = {usage.steps for _, curve in curves for usage, _ in curve}
    return sorted(step for step in numbers if first <= step <= last)


def _at(steps: Sequence[int], points: Points, numbers: Sequence[float]) -> NDArray[np.float64]:
    """Return numbers at steps, between the points of a run and, unchanged, behind its last."""
    places = [usage.steps for usage, _ in points]
    return np.interp(_bounded(steps), _bounded(places), _bounded(numbers))


def _bounded(numbers: Sequence[float]) -> NDArray[np.float64]:
    """Return numbers as floats; integers of a damaged record may be beyond any of them."""
    return np.array(
        [float(min(max(number, -LARGEST), LARGEST)) for number in numbers], dtype=np.float64
    )


def _consumed(steps: Sequence[int], curves: Sequence[Points], name: str) -> tuple[float, ...]:
    """Return the mean cost; a run that has ended continues like the other runs."""
    amounts = np.array(
        [_at(steps, curve, [getattr(usage, name) for usage, _ in curve]) for curve in curves]
    )
    running = np.array([[step <= curve[-1][0].steps for step in steps[1:]] for curve in curves])
    growth = (np.diff(amounts, axis=1) * running).sum(axis=0) / running.sum(axis=0)
    return _floats(amounts[:, 0].mean() + np.concatenate([[0.0], growth]).cumsum())


def _floats(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(float, numbers))


def _means(usages: Sequence[Usage]) -> dict[str, float]:
    return {name: mean([getattr(usage, name) for usage in usages]) for name in (*COSTS, "steps")}


def value_range(runs: Sequence[Run], metric: str, goal: float | None = None) -> tuple[float, float]:
    """Return the ends of the vertical axis of a metric.

    They cover all students, the goal and the intervals with a small margin. Of an interval of few
    seeds, which may be many times as wide as all curves together, as much is covered on each side
    as the curves themselves need, and nothing that a share cannot be.

    Args:
        runs: Runs as `load_runs` gives them.
        metric: Name of a metric of the records.
        goal: Value that is marked, if any.
    """
    numbers = _students_numbers(runs, metric)
    smallest, largest = limits(metric, numbers)
    numbers += [] if goal is None else [goal]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = (max(smallest, 2 * low - high), min(largest, 2 * high - low))
    for group in grouped(runs).values() if has_bands(runs) else ():
        lows, highs = band(learning_curve(averaged(group), metric), room)
        low, high = min([low, *lows]), max([high, *highs])
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def has_bands(runs: Sequence[Run]) -> bool:
    """Return whether a figure of these runs shows intervals and single seeds."""
    return len(grouped(runs)) <= MOST_STRATEGIES


def _students_numbers(runs: Sequence[Run], metric: str) -> list[float]:
    return [
        measurement.metrics[metric]
        for run in runs
        if not run.is_teacher
        for measurement in run.measurements
        if metric in measurement.metrics
    ]
