"""Phase transitions of synthetic curves with known corners, with and without noise."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from curricle.curriculum.loss_transitions import Curve, Transition, find_transition
from curricle.errors import SpecError
from curricle.values import parse, plain

HIGH, LOW = 0.69, 0.01
PARITY = [(2500, 0.69), (5000, 0.69), (7500, 0.69), (10_000, 0.3), (12_500, 0.01)]
"""Possible losses of a teacher with five checkpoints."""


def curve(losses: Any, *, interval: int = 100) -> Curve:
    return [(interval * number, float(loss)) for number, loss in enumerate(losses, start=1)]


def ramp(number: int, first: int, last: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return losses with a linear fall from checkpoint `first` to checkpoint `last`."""
    places = (np.arange(number) - first) / (last - first)
    return HIGH + (LOW - HIGH) * places.clip(0, 1)


@st.composite
def corners(draw: st.DrawFn) -> tuple[int, int, int]:
    """Return a number of checkpoints and the last before and the first after a fall."""
    number = draw(st.integers(8, 50))
    first = draw(st.integers(2, number - 3))
    last = draw(st.integers(first + 1, min(first + max(1, number // 4), number - 1)))
    return number, first, last


def test_the_transition_of_a_parity_teacher() -> None:
    assert find_transition(PARITY) == Transition(
        start=7500, steepest=10_000, end=12_500, before=0.69, after=0.01
    )


def test_the_transition_of_the_demos_teacher() -> None:
    # Held-out losses of `curricle demo`, with a first checkpoint off the plateau.
    plateau = [0.916, 0.721, 0.718, 0.712, 0.708, 0.706, 0.700, 0.703, 0.703, 0.708, 0.702]
    plateau += [0.704, 0.701, 0.700, 0.701, 0.710, 0.699, 0.702, 0.699, 0.694]
    actual = find_transition(curve([*plateau, 0.485, 0.276, 0.025, 0.005, 0.003], interval=500))
    assert actual is not None
    assert (actual.start, actual.steepest, actual.end) == (10_000, 11_500, 11_500)


def test_a_checkpoint_at_the_corner_that_has_left_the_plateau_is_inside() -> None:
    losses = [0.69, 0.69, 0.69, 0.60, 0.01, 0.01]
    actual = find_transition(curve(losses))
    assert actual is not None
    assert (actual.start, actual.steepest, actual.end) == (300, 500, 500)
    assert [actual.holds(*one) for one in curve(losses)] == [False] * 3 + [True] + [False] * 2


@given(places=corners())
def test_corners_are_found_exactly_without_noise(places: tuple[int, int, int]) -> None:
    number, first, last = places
    actual = find_transition(curve(ramp(number, first, last), interval=1))
    assert actual is not None
    assert (actual.start, actual.end) == (first + 1, last + 1)
    assert (actual.before, actual.after) == pytest.approx((HIGH, LOW))


@given(places=corners(), data=st.data())
def test_corners_are_found_under_noise(places: tuple[int, int, int], data: st.DataObject) -> None:
    number, first, last = places
    # A tenth of the fall from the lowest to the highest: each point is off by a twentieth at most.
    noise = data.draw(arrays(np.float64, number, elements=st.floats(-1, 1))) * 0.05 * (HIGH - LOW)
    actual = find_transition(curve(ramp(number, first, last) + noise, interval=1))
    assert actual is not None
    assert abs(actual.start - (first + 1)) <= 2
    assert abs(actual.end - (last + 1)) <= 2
    assert (actual.before, actual.after) == pytest.approx((HIGH, LOW), abs=0.1)


@given(places=corners(), scale=st.sampled_from([1e-3, 7.0, 1e4]), interval=st.integers(1, 9999))
def test_units_of_loss_and_step_do_not_matter(
    places: tuple[int, int, int], scale: float, interval: int
) -> None:
    losses = ramp(*places)
    plainly = find_transition(curve(losses, interval=1))
    scaled = find_transition(curve(losses * scale, interval=interval))
    assert plainly is not None
    assert scaled is not None
    assert (scaled.start, scaled.end) == (plainly.start * interval, plainly.end * interval)


@given(places=corners())
def test_the_steepest_fall_lies_inside(places: tuple[int, int, int]) -> None:
    actual = find_transition(curve(ramp(*places)))
    assert actual is not None
    assert actual.start < actual.steepest <= actual.end


PLACES = np.arange(25)
WITHOUT = {
    "level": np.ones(25),
    "a straight line": 1 - PLACES / 30,
    "rising": PLACES,
    "a slow decay": np.exp(-PLACES / 12),
    "a fast decay": np.exp(-PLACES / 3),
    "a power law": 1 + 5 / (PLACES + 1) ** 0.5,
    "faster and faster": 1 - (PLACES / 24) ** 2,
    "half a training long": 1 / (1 + np.exp((PLACES - 12) / 4)),
    "no checkpoint before": np.where(PLACES < 1, 0.7, 0.1),
    "less than a tenth": np.where(PLACES < 12, 1.0, 0.95),
}


@pytest.mark.parametrize("losses", WITHOUT.values(), ids=WITHOUT.keys())
def test_these_curves_have_no_transition(losses: object) -> None:
    assert find_transition(curve(losses)) is None


@given(noise=arrays(np.float64, 25, elements=st.floats(-1, 1)))
def test_noise_on_a_plateau_is_no_transition(
    noise: np.ndarray[Any, np.dtype[np.float64]],
) -> None:
    assert find_transition(curve(1 + 0.04 * noise)) is None


@pytest.mark.parametrize("number", range(4))
def test_too_few_checkpoints_show_no_transition(number: int) -> None:
    assert find_transition(curve(ramp(4, 1, 2)[:number])) is None


def test_unequal_intervals_are_told_apart() -> None:
    # Three checkpoints, but a fifth of the training: the fall is as long as its steps.
    losses = [(100, 1.0), (400, 1.0), (410, 0.7), (420, 0.3), (430, 0.0), (500, 0.0)]
    actual = find_transition(losses)
    assert actual is not None
    assert (actual.start, actual.end) == (400, 430)


def test_steps_ascend() -> None:
    with pytest.raises(SpecError, match=r"^'losses' must be at ascending steps; got \[1, 3, 3\]$"):
        find_transition([(1, 1.0), (3, 0.5), (3, 0.2)])


def test_losses_are_finite() -> None:
    with pytest.raises(SpecError, match=r"^'losses' must be finite; got nan at step 2$"):
        find_transition([(1, 1.0), (2, float("nan"))])


def test_a_transition_survives_plain_data() -> None:
    actual = find_transition(PARITY)
    assert parse(Transition, plain(actual)) == actual
