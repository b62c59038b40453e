"""Phase transitions in a teacher's loss curve.

On many tasks the training loss of a network stays on a plateau, falls within a short interval, the
*phase transition*, and stays on a lower plateau. The most helpful checkpoint for a student lies
inside this interval [PD]; the outputs of the finished teacher no longer reveal the first features
learned there.

Method: among all curves that are constant up to one checkpoint, linear to another, and constant
afterwards, the curve with the highest correlation with the losses is selected: the least-squares
fit with free levels. Noise of single checkpoints averages out over the plateaus.

Units: a loss is in nats, or any other quantity that falls in training; all rules only compare
losses with each other.

References:
    [PD] Panigrahi et al. 2024, arXiv 2410.05464, sections 3 and 4.
"""

import itertools
import math
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from curricle.errors import SpecError
from curricle.values import value

FEWEST_CHECKPOINTS = 4
"""Two on the upper plateau and two more; fewer cannot separate a transition from a slope."""
SMALLEST_FALL = 0.1
"""Minimum fall of the loss, relative to the upper level."""
LONGEST_FALL = 0.5
"""Maximum length of the fall, relative to the recorded training."""
CLEAREST_NOISE = 0.25
"""Maximum root mean square error of the fit, relative to the fall."""
BETTER_THAN_LINE = 0.5
"""Maximum squared error of the fit, relative to that of a straight line."""
FLATNESS = 0.5
"""Maximum rate of decrease before the fall, relative to the fall's rate."""
MARGIN = 0.1
"""Minimum distance of a loss inside the fall from the level before and after it, relative to the
fall."""

Curve = Sequence[tuple[int, float]]
"""Training step and loss of each checkpoint, ascending in steps."""
Numbers = NDArray[np.float64]


@final
@value
class Transition:
    """The interval of a teacher's training with the fall of its loss."""

    start: int
    """Training step of the last checkpoint before the fall."""
    steepest: int
    """Training step of the checkpoint at the end of the fastest fall between two neighbors."""
    end: int
    """Training step of the first checkpoint after the fall."""
    before: float
    """Level of the loss before: median of the checkpoints there."""
    after: float
    """Level of the loss after: median of the checkpoints there."""

    @property
    def middle(self) -> float:
        """Return the loss in the middle of the fall."""
        return (self.before + self.after) / 2

    def holds(self, step: int, loss: float) -> bool:
        """Return whether a checkpoint lies inside: in the interval and away from both levels."""
        margin = MARGIN * (self.before - self.after)
        is_between = self.after + margin < loss < self.before - margin
        return is_between and self.start <= step <= self.end


def find_transition(losses: Curve) -> Transition | None:
    """Return the phase transition of a loss curve; None if it has none.

    It has none if there are too few checkpoints, if the loss falls by less than a tenth, decreases
    evenly or from the first checkpoint on, or if noise hides the fall.

    Args:
        losses: Training step and loss of each checkpoint.

    Raises:
        SpecError: If the steps do not ascend or a loss is not finite.

    Source:
        [PD] motivates the transition and selects it by eye; the fit is our own.
    """
    check_curve(losses)
    if len(losses) < FEWEST_CHECKPOINTS:
        return None
    # Relative times, so that all thresholds are dimensionless.
    steps = np.array([step for step, _ in losses], dtype=np.float64)
    times = (steps - steps[0]) / (steps[-1] - steps[0])
    values = np.array([loss for _, loss in losses], dtype=np.float64)
    corners = _best_ramp(times, values)
    if corners is None or not _is_transition(times, values, *corners):
        return None
    first, last = corners
    before, after = _levels(values, first, last)
    margin = MARGIN * (before - after)
    # A corner of the fit may lie inside the fall, because a ramp only approximates a smooth curve.
    while first > 0 and values[first] < before - margin:
        first -= 1
    while last < len(values) - 1 and values[last] > after + margin:
        last += 1
    rates = np.diff(values[first : last + 1]) / np.diff(times[first : last + 1])
    return Transition(
        start=losses[first][0],
        steepest=losses[first + 1 + int(rates.argmin())][0],
        end=losses[last][0],
        before=before,
        after=after,
    )


def sudden_fall(losses: Curve) -> tuple[int, int] | None:
    """Return the neighboring checkpoints with nearly the full fall between them, or None.

    Such a fall may be too short to be identified as a transition.

    Args:
        losses: Training step and loss of each checkpoint, ascending in steps.
    """
    fall = losses[0][1] - losses[-1][1]
    if fall <= SMALLEST_FALL * abs(losses[0][1]):
        return None
    for (step, loss), (next_step, next_loss) in itertools.pairwise(losses):
        if loss - next_loss >= (1 - 2 * MARGIN) * fall:
            return step, next_step
    return None


def check_curve(losses: Curve) -> None:
    """Check that the steps of a loss curve ascend and its losses are finite.

    Raises:
        SpecError: If the steps do not ascend or a loss is not finite.
    """
    steps = [step for step, _ in losses]
    if any(step >= next_step for step, next_step in itertools.pairwise(steps)):
        raise SpecError(f"'losses' must be at ascending steps; got {steps}")
    for step, loss in losses:
        if not math.isfinite(loss):
            raise SpecError(f"'losses' must be finite; got {loss} at step {step}")


def _best_ramp(times: Numbers, values: Numbers) -> tuple[int, int] | None:
    """Return the corners of the falling ramp with the highest correlation; None without a fall.

    The upper plateau has at least two checkpoints, to distinguish it from a slope.
    """
    falls = values.mean() - values
    best, corners = 0.0, None
    for first in range(1, len(times) - 1):
        lengths = times[first + 1 :, None] - times[first]
        ramps = ((times - times[first]) / lengths).clip(0, 1)
        ramps -= ramps.mean(axis=1, keepdims=True)
        scores = ramps @ falls / np.sqrt((ramps**2).sum(axis=1))
        if scores.max() > best:
            best, corners = float(scores.max()), (first, first + 1 + int(scores.argmax()))
    return corners


def _is_transition(times: Numbers, values: Numbers, first: int, last: int) -> bool:
    """Return whether a fitted ramp is steep, deep and clear enough for a transition."""
    ramp = ((times - times[first]) / (times[last] - times[first])).clip(0, 1)
    missed, fall = _line_fit(ramp, values)
    missed_by_line, _ = _line_fit(times, values)
    length = times[last] - times[first]
    _, sinking = _line_fit(times[: first + 1], values[: first + 1])
    upper = _levels(values, first, last)[0]
    return bool(
        fall > SMALLEST_FALL * abs(upper)
        and length <= LONGEST_FALL
        and math.sqrt(missed / len(values)) <= CLEAREST_NOISE * fall
        and missed <= BETTER_THAN_LINE * missed_by_line
        and sinking <= FLATNESS * fall / length
    )


def _line_fit(places: Numbers, values: Numbers) -> tuple[float, float]:
    """Return the squared error of the best straight line, and its negative slope."""
    centered, deviations = places - places.mean(), values - values.mean()
    slope = float(centered @ deviations / (centered @ centered))
    missed = deviations - slope * centered
    return float(missed @ missed), -slope


def _levels(values: Numbers, first: int, last: int) -> tuple[float, float]:
    return float(np.median(values[: first + 1])), float(np.median(values[last:]))
