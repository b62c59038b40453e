"""Differences between two strategies, with their 95 % intervals over seeds.

A difference is measurable if its interval does not contain zero. Strategies with the same seeds
are compared seed by seed (paired t interval), others by Welch's interval, whose degrees of freedom
are rounded down. Costs are compared by their logarithms, since they are reported as ratios: the
verdict then does not depend on the unit, and a strategy that needs twenty times as much does not
drown the other in its larger deviation.

Reference: Welch 1947, "The generalization of Student's problem when several different population
variances are involved".
"""

import math
from collections.abc import Mapping
from typing import Literal, final

from curricle.reports.formatting import half_width, mean, t_quantile
from curricle.values import value

Verdict = Literal["equal", "less", "more", "unclear", "single"]
"""`less` and `more` are measurable differences of the first from the second. `unclear` is inside
the noise, and `single` has no interval, since a strategy has one seed only."""
SAME = 1e-12
"""Relative difference up to which two means are equal: the effect of rounding."""


@final
@value
class Difference:
    """The mean difference of two strategies."""

    mean: float
    """Mean of the first minus mean of the second."""
    ci95: float | None
    """Half of the 95 % interval; None if one of them has fewer than two seeds."""

    @property
    def is_measurable(self) -> bool:
        """Return whether the interval does not contain zero."""
        return self.ci95 is not None and abs(self.mean) > self.ci95


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Return the mean difference of two strategies.

    Args:
        first: Numbers of the first by seed, at least one.
        second: Numbers of the second by seed, at least one.
    """
    shift = mean([*first.values()]) - mean([*second.values()])
    if set(first) == set(second):
        pairs = [first[seed] - second[seed] for seed in first]
        return Difference(mean=shift, ci95=half_width(pairs))
    return Difference(mean=shift, ci95=_welch(first, second))


def verdict(first: Mapping[int, float], second: Mapping[int, float]) -> Verdict:
    """Return how the first differs from the second in a metric."""
    shift = difference(first, second)
    size = max(map(abs, (*first.values(), *second.values())))
    if abs(shift.mean) <= SAME * size:
        return "equal"
    if shift.ci95 is None:
        return "single"
    if not shift.is_measurable:
        return "unclear"
    return "less" if shift.mean < 0 else "more"


def cost_verdict(first: Mapping[int, float], second: Mapping[int, float]) -> Verdict:
    """Return how the first differs from the second in a cost.

    The means, which readers see, and the logarithms must agree on the direction; where they do
    not, the difference is `unclear`.
    """
    plain = verdict(first, second)
    numbers = (*first.values(), *second.values())
    if plain in ("equal", "single") or min(numbers) <= 0:
        return plain
    logs = [{seed: math.log(cost) for seed, cost in costs.items()} for costs in (first, second)]
    shift = difference(*logs)
    if not shift.is_measurable or (shift.mean < 0) != (
        mean([*first.values()]) < mean([*second.values()])
    ):
        return "unclear"
    return "less" if shift.mean < 0 else "more"


def _welch(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Return half of Welch's interval of the difference of two means."""
    errors = (_standard_error(first), _standard_error(second))
    if errors[0] is None or errors[1] is None:
        return None
    total = math.hypot(errors[0], errors[1])
    if total == 0.0:
        return 0.0
    inverse = sum(
        (error / total) ** 4 / (len(numbers) - 1)
        for error, numbers in ((errors[0], first), (errors[1], second))
    )
    return t_quantile(max(1, math.floor(1 / inverse + SAME))) * total


def _standard_error(numbers: Mapping[int, float]) -> float | None:
    """Return the standard error of a mean; None for one number."""
    half = half_width([*numbers.values()])
    return None if half is None else half / t_quantile(len(numbers) - 1)
