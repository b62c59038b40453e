"""Share of the gap between a base and the teacher that each strategy closes.

    g = (x - b) / (t - b)

with the final metric x of the strategy and b of the base, means over complete runs, and t of the
teacher on the same held-out data: 0 at the base, 1 at the teacher, negative below the base. Both
differences change their sign with the direction of the metric, so g needs none.

The base is the strategy without a teacher, at the budget of the others: training from labels. With
several of these it is the best, and without any it is `one_shot`.

Design: g is undefined where the teacher is not better than the base beyond the base's 95 %
interval, since a denominator that may be zero has no bounded interval. The interval of g is that of
the delta method: to first order its error is that of (x - (1 - g) b) / (t - b), so it is the
interval of the difference of x and (1 - g) b, seed by seed where both have the same seeds and
Welch's otherwise. The teacher is a single model and counts as exact.
"""

from collections.abc import Mapping, Sequence
from typing import Final, final

from curricle.metrics import Direction
from curricle.reports.comparisons import difference
from curricle.reports.formatting import half_width, mean
from curricle.reports.run_folders import Run
from curricle.values import value

FALLBACK: Final = "one_shot"
"""Strategy that is the base of comparisons in which each strategy has a teacher."""


@final
@value
class GapClosed:
    """Share of the gap that a strategy closes."""

    mean: float
    """0 at the base, 1 at the teacher."""
    ci95: float | None
    """Half of the 95 % interval; None if the strategy or the base has fewer than two seeds."""

    def __str__(self) -> str:
        """Return the share with its interval."""
        # Adding zero turns the negative zero of rounding into zero.
        text = f"{round(self.mean, 2) + 0.0:.2f}"
        # The base has no interval from itself.
        return f"{text} ± {self.ci95:.2f}" if self.ci95 else text


def gap_base(
    groups: Mapping[str, Sequence[Run]],
    finals: Mapping[str, Mapping[int, float]],
    better: Direction,
) -> str | None:
    """Return the name of the base; None if there is none with a complete run.

    Args:
        groups: Runs by strategy.
        finals: Final metrics of each strategy by seed.
        better: Which values of the metric are better.
    """
    sign = -1.0 if better == "lower" else 1.0
    untaught = [
        name
        for name, runs in groups.items()
        if finals[name] and not any(run.opening.teacher_parameters for run in runs)
    ]
    if untaught:
        return max(untaught, key=lambda name: sign * mean([*finals[name].values()]))
    return FALLBACK if finals.get(FALLBACK) else None


def gap_closed(
    finals: Mapping[int, float], base: Mapping[int, float], teacher: float, better: Direction
) -> GapClosed | None:
    """Return the share of the gap between base and teacher that a strategy closes.

    Args:
        finals: Final metric of the strategy by seed.
        base: Final metric of the base by seed; at least one.
        teacher: Metric of the teacher.
        better: Which values of the metric are better.

    Returns:
        The share; None without a complete run of the strategy, or if the teacher is not better than
        the base beyond the base's interval.
    """
    level, spread = mean([*base.values()]), half_width([*base.values()]) or 0.0
    gap = teacher - level
    lead = -gap if better == "lower" else gap
    if not finals or lead <= spread:
        return None
    share = (mean([*finals.values()]) - level) / gap
    shift = difference(finals, {seed: (1.0 - share) * number for seed, number in base.items()})
    return GapClosed(mean=share, ci95=None if shift.ci95 is None else shift.ci95 / lead)
