"""Where does a teacher's loss fall at once?

On many tasks the loss of a network in training stays on a plateau, falls within a short stretch,
the *phase transition*, and stays on a lower plateau. The checkpoint that helps a student most lies
inside that stretch [PD]; the finished teacher no longer shows what it had learned there first.

Method: of all curves that are level up to one checkpoint, straight to another, and level from
there on, the one that correlates best with the losses is taken: the least-squares fit with free
levels. Noise of single checkpoints averages out over the plateaus.

Units: a loss is in nats, or whatever else falls while a teacher learns; all rules compare losses
with each other only.

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
from curricle.specs import value

FEWEST_CHECKPOINTS = 4
"""Two on the upper plateau and two further ones; fewer tell no transition from a slope."""
SMALLEST_FALL = 0.1
"""Part of the upper level that the loss must fall by."""
LONGEST_FALL = 0.5
"""Part of the recorded training that the fall may take."""
CLEAREST_NOISE = 0.25
"""Part of the fall that the fit may miss the losses by, root mean square."""
BETTER_THAN_LINE = 0.5
"""Part of a straight line's squared error that the fit may have."""
FLATNESS = 0.5
"""Part of the fall's rate at which the loss may sink before it."""
MARGIN = 0.1
"""Part of the fall by which a loss must differ from both levels to lie between them."""

Curve = Sequence[tuple[int, float]]
"""Training step and loss of each checkpoint, ascending in steps."""
Numbers = NDArray[np.float64]


@final
@value
class Transition:
    """The stretch of a teacher's training in which its loss falls."""

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
        """Return the loss half-way down."""
        return (self.before + self.after) / 2

    def holds(self, step: int, loss: float) -> bool:
        """Return whether a checkpoint lies inside: in that stretch and off both levels."""
        margin = MARGIN * (self.before - self.after)
        is_between = self.after + margin < loss < self.before - margin
        return is_between and self.start <= step <= self.end


def find_transition(losses: Curve) -> Transition | None:
    """Return the phase transition of a loss curve; None if it has none.

    It has none if there are too few checkpoints to see one, if the loss falls by less than a tenth,
    sinks evenly or from the very first checkpoint on, or if noise hides where it falls.

    Args:
        losses: Training step and loss of each checkpoint.

    Raises:
        SpecError: If the steps do not ascend or a loss is not finite.

    Source:
        [PD] says what the transition is for and picks it by eye; the fit is our own.
    """
    checked_curve(losses)
    if len(losses) < FEWEST_CHECKPOINTS:
        return None
    # Counted from the first checkpoint in units of the whole, all that follows has no unit.
    steps = np.array([step for step, _ in losses], dtype=np.float64)
    times = (steps - steps[0]) / (steps[-1] - steps[0])
    values = np.array([loss for _, loss in losses], dtype=np.float64)
    found = _best_ramp(times, values)
    if found is None or not _is_transition(times, values, *found):
        return None
    first, last = found
    before, after = _levels(values, first, last)
    margin = MARGIN * (before - after)
    # The fit rounds the corners: a checkpoint at its corner may have left the plateau already.
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
    """Return the neighboring checkpoints between which nearly the whole fall lies; None if none do.

    Such a fall may be too short for the checkpoints to show whether it is a transition.

    Args:
        losses: Training step and loss of each checkpoint, ascending in steps.
    """
    fall = losses[0][1] - losses[-1][1]
    if fall <= SMALLEST_FALL * abs(losses[0][1]):
        return None
    for (step, loss), (other, later) in itertools.pairwise(losses):
        if loss - later >= (1 - 2 * MARGIN) * fall:
            return step, other
    return None


def checked_curve(losses: Curve) -> Curve:
    """Return a loss curve after checking that its steps ascend and its losses are finite.

    Raises:
        SpecError: If not.
    """
    steps = [step for step, _ in losses]
    if any(one >= other for one, other in itertools.pairwise(steps)):
        raise SpecError(f"'losses' must be at ascending steps; got {steps}")
    for step, loss in losses:
        if not math.isfinite(loss):
            raise SpecError(f"'losses' must be finite; got {loss} at step {step}")
    return losses


def _best_ramp(times: Numbers, values: Numbers) -> tuple[int, int] | None:
    """Return the corners of the falling ramp that correlates best; None if nothing falls.

    The upper plateau has two checkpoints at least, or it could not be told from a slope.
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
    """Return whether a fitted ramp is steep, deep and clear enough to be called a transition."""
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
    """Return the squared error of the best straight line, and how fast the line falls."""
    centered, rest = places - places.mean(), values - values.mean()
    slope = float(centered @ rest / (centered @ centered))
    missed = rest - slope * centered
    return float(missed @ missed), -slope


def _levels(values: Numbers, first: int, last: int) -> tuple[float, float]:
    return float(np.median(values[: first + 1])), float(np.median(values[last:]))
