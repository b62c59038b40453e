"""Which points does a learning curve consist of?

A `Curve` is the mean of one number over the seeds of a strategy with its smallest and largest
value, against everything a run consumes. Points belong together by their step: at one step all
seeds have read the same number of examples, while their FLOPs and seconds may differ a little and
are averaged as the metric is.

Design: incomplete runs stay out of the mean as soon as one run of the strategy is complete,
because a curve that loses a seed on its way jumps. Whoever draws shows them apart, one by one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import final

from curricle.records import Spent
from curricle.reports.quantities import mean
from curricle.reports.runs import Run
from curricle.reports.summary import COSTS
from curricle.specs import value

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Colors that stay apart for color-blind readers, after Okabe and Ito 2008, with a gray."""
MOST_POINTS = 400
"""Points of a loss curve; a longer one is thinned out evenly."""


@final
@value
class Curve:
    """The mean of a number over seeds, against what was consumed."""

    spent: dict[str, tuple[float, ...]]
    """For each field of `Costs`, and `steps`, what had been consumed at each point."""
    middle: tuple[float, ...]
    """Mean over seeds at each point."""
    low: tuple[float, ...]
    """Smallest value over seeds."""
    high: tuple[float, ...]
    """Largest value over seeds."""
    num_seeds: int
    """How many runs were averaged."""


def colors(methods: Iterable[str]) -> dict[str, str]:
    """Return a color for each strategy; they repeat after seven."""
    return {method: PALETTE[number % len(PALETTE)] for number, method in enumerate(methods)}


def averaged(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs of a strategy that belong into its mean."""
    return tuple(run for run in runs if run.is_complete) or tuple(runs)


def learning_curve(runs: Sequence[Run], metric: str) -> Curve:
    """Return the curve of a metric over the given runs."""
    points = [
        [(each.spent, each.metrics[metric]) for each in run.measurements if metric in each.metrics]
        for run in runs
    ]
    return _curve(points)


def loss_curve(runs: Sequence[Run], stage: str) -> Curve:
    """Return the curve of the training loss in one stage over the given runs."""
    points = [
        [(each.spent, each.loss) for each in run.steps if each.stage == stage] for run in runs
    ]
    return _curve([_thinned(run) for run in points])


def stage_starts(runs: Sequence[Run]) -> tuple[tuple[str, dict[str, float]], ...]:
    """Return each stage with what had been consumed before it, mean over runs."""
    names = dict.fromkeys(record.stage for run in runs for record in run.stages)
    return tuple(
        (
            name,
            _means([record.spent for run in runs for record in run.stages if record.stage == name]),
        )
        for name in names
    )


def stage_names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the names of the stages that wrote losses, in order."""
    return tuple(dict.fromkeys(record.stage for run in runs for record in run.steps))


def _curve(points: Sequence[Sequence[tuple[Spent, float]]]) -> Curve:
    by_step: dict[int, list[tuple[Spent, float]]] = {}
    for run in points:
        for spent, number in run:
            by_step.setdefault(spent.steps, []).append((spent, number))
    steps = sorted(by_step)
    consumed = [_means([spent for spent, _ in by_step[step]]) for step in steps]
    numbers = [[number for _, number in by_step[step]] for step in steps]
    return Curve(
        spent={name: tuple(each[name] for each in consumed) for name in (*COSTS, "steps")},
        middle=_each(numbers, mean),
        low=_each(numbers, min),
        high=_each(numbers, max),
        num_seeds=sum(bool(run) for run in points),
    )


def _each(
    numbers: Sequence[list[float]], reduce: Callable[[list[float]], float]
) -> tuple[float, ...]:
    return tuple(reduce(each) for each in numbers)


def _means(spent: Sequence[Spent]) -> dict[str, float]:
    return {name: mean([getattr(each, name) for each in spent]) for name in (*COSTS, "steps")}


def _thinned(points: Sequence[tuple[Spent, float]]) -> Sequence[tuple[Spent, float]]:
    """Return every k-th point and the last, so that seeds keep the same steps."""
    if len(points) <= MOST_POINTS:
        return points
    stride = -(-len(points) // MOST_POINTS)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def value_range(
    runs: Sequence[Run], metric: str, target: float | None = None
) -> tuple[float, float]:
    """Return the range of a metric over all students, target included, with a small margin."""
    numbers = [
        each.metrics[metric]
        for run in runs
        if not run.is_teacher
        for each in run.measurements
        if metric in each.metrics
    ]
    numbers += [] if target is None else [target]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
