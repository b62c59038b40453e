"""Numbers in words, and intervals of means over seeds.

Large counts are written with k, M, G, T and so on (powers of 1000, as durations are), accuracies as
percentages. The interval of a mean is Student's t at 95 %: with the two to five seeds that papers
use, the normal quantile 1.96 would promise too much (2 seeds need 12.7, 3 seeds 4.3).

Reference: Abramowitz and Stegun 1964, formula 26.7.5 (expansion of the t quantile).
"""

import math
from collections.abc import Sequence

from curricle.metrics import METRICS

SUFFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
NEXT_SUFFIX = 999.5
"""From here on three digits would read 1000, which has a suffix of its own."""
EXACT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Quantile 0.975 of Student's t for 1 to 10 degrees of freedom."""
NORMAL = 1.959964
"""Quantile 0.975 of the normal distribution."""
NEVER_NEGATIVE = frozenset(
    {
        "ppl",
        "error_rate",
        "wer",
        "cer",
        "rmse",
        "mse",
        "mae",
        "ece",
        "fid",
    }
)
"""Metrics of others, no shares, that have no negative values."""
HOUR = 3600.0
FEW = 3
"""Number of seeds up to which values are listed in place of a useless interval."""
MOST_DIGITS = 8
"""Characters of a goal; a longer one was computed, not set."""
NONE = "–"
"""Stands where there is no number."""


def t_quantile(degrees: int) -> float:
    """Return the quantile 0.975 of Student's t, to about 1e-4.

    Args:
        degrees: Degrees of freedom, at least 1.
    """
    if degrees <= len(EXACT):
        return EXACT[degrees - 1]
    z = NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def mean(numbers: Sequence[float]) -> float:
    """Return the mean of at least one number."""
    try:
        return math.fsum(numbers) / len(numbers)
    except OverflowError:
        # The sum leaves the range of floats, the mean never does.
        return math.fsum(number / len(numbers) for number in numbers)


def half_width(numbers: Sequence[float]) -> float | None:
    """Return half the 95 % interval of the mean, or None for fewer than two numbers.

    It is t(n - 1) * s / sqrt(n), with s the standard deviation with n - 1 in its denominator.
    """
    count = len(numbers)
    if count <= 1:
        return None
    middle = mean(numbers)
    distances = [number - middle for number in numbers]
    # `hypot` scales before it squares, so that numbers beyond 1e154 do not overflow.
    deviation = math.hypot(*distances) / math.sqrt(count - 1)
    return t_quantile(count - 1) * deviation / math.sqrt(count)


def limits(metric: str, numbers: Sequence[float] = ()) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have.

    Args:
        metric: Name of the metric.
        numbers: Values that were seen; if one lies outside, the name misleads and nothing is known.
    """
    if metric in METRICS:
        ends = (METRICS[metric].least, METRICS[metric].most)
    elif is_share(metric):
        ends = (0.0, 1.0)
    else:
        ends = (0.0, math.inf) if metric in NEVER_NEGATIVE else (-math.inf, math.inf)
    is_inside = all(ends[0] <= number <= ends[1] for number in numbers)
    return ends if is_inside else (-math.inf, math.inf)


def is_share(metric: str) -> bool:
    """Return whether a metric is a share of 1, printed in percent."""
    return METRICS[metric].unit == "share" if metric in METRICS else metric.endswith("_accuracy")


def seed_count(count: int) -> str:
    """Return a number of seeds in words."""
    return f"{count} seed{'' if count == 1 else 's'}"


def short(number: float, unit: str = "") -> str:
    """Return a number with three digits and a suffix, such as `96k` or `2.5M`.

    Args:
        number: Any finite number.
        unit: Put behind the suffix, after a space.
    """
    power = 0
    size = abs(number)
    while size >= NEXT_SUFFIX and power < len(SUFFIXES) - 1:
        size /= 1000
        power += 1
    text = f"{math.copysign(size, number):.3g}{SUFFIXES[power]}"
    if not unit:
        return text
    return f"{text} {unit}" if power == 0 else f"{text[:-1]} {SUFFIXES[power]}{unit}"


def with_interval(number: float | None, ci95: float | None, *, kind: str = "") -> str:
    """Return a mean with its half-width.

    Args:
        number: The mean; None becomes a dash.
        ci95: Half-width of the interval; left out if None.
        kind: `seconds` for a time, printed in hours when long; else a count.
    """
    if number is None:
        return NONE
    scale, unit = 1.0, ""
    if kind == "seconds":
        scale, unit = (HOUR, " h") if number >= 2 * HOUR else (1.0, " s")
    spread = "" if ci95 is None else f" ± {short(ci95 / scale)}"
    return f"{short(number / scale)}{spread}{unit}"


def metric_text(metric: str, number: float | None, ci95: float | None = None) -> str:
    """Return the value of a metric: percent for shares, else four digits."""
    if number is None:
        return NONE
    # An accuracy of 93.1 was measured in percent already.
    if is_share(metric) and 0 <= number <= 1:
        spread = "" if ci95 is None else f" ± {100 * ci95:.2f}"
        return f"{100 * number:.2f}{spread} %"
    spread = "" if ci95 is None else f" ± {ci95:.2g}"
    return f"{number:.4g}{spread}"


def is_beyond(metric: str, numbers: Sequence[float]) -> bool:
    """Return whether the interval of a share reaches beyond its possible range.

    Args:
        metric: Name of the metric.
        numbers: Its values, one a seed.
    """
    middle, ci95 = mean(numbers), half_width(numbers)
    low, high = limits(metric, numbers)
    is_inside = ci95 is None or low <= middle - ci95 <= middle + ci95 <= high
    return is_share(metric) and not is_inside


def mean_text(metric: str, numbers: Sequence[float], *, has_ends: bool = False) -> str:
    """Return the mean of a metric over seeds with its interval.

    An interval beyond the possible range is useless as a half-width (50 ± 127 %): with two
    or three seeds their values stand in its place, with more the part inside the range.

    Args:
        metric: Name of the metric.
        numbers: Its values, one a seed, at least one.
        has_ends: Whether a share is written so in any case, as another of its column is.
    """
    middle, ci95 = mean(numbers), half_width(numbers)
    low, high = limits(metric, numbers)
    if ci95 is None or not (is_beyond(metric, numbers) or (has_ends and is_share(metric))):
        return metric_text(metric, middle, ci95)
    if len(numbers) <= FEW:
        cells = ", ".join(f"{100 * number:.2f}" for number in sorted(numbers))
        return f"{metric_text(metric, middle)} ({len(numbers)} seeds: {cells} %)"
    ends = (max(low, middle - ci95), min(high, middle + ci95))
    return f"{metric_text(metric, middle)} ({' to '.join(f'{100 * end:.2f}' for end in ends)} %)"


def goal_text(metric: str, goal: float) -> str:
    """Return a goal in words, such as `99.95 % accuracy`.

    Every digit that a person would set is kept; a computed goal is rounded to three decimals.
    """
    words = metric.replace("_", " ")
    number = 100 * goal if is_share(metric) else goal
    text = f"{round(number, 3):g}" if len(f"{number:.10g}") > MOST_DIGITS else f"{number:.10g}"
    return f"{text} % {words}" if is_share(metric) else f"{words} {text}"
