"""Solutions from sums are those of least squares on all rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle.least_squares.solving import Affine, ChannelMoments, Moments
from tests.parts import drawn


def zero(outputs: int, inputs: int) -> Affine:
    return Affine(torch.zeros(outputs, inputs, dtype=torch.float64), torch.zeros(outputs).double())


@given(seed=st.integers(0, 20), has_bias=st.booleans(), num_batches=st.integers(1, 3))
def test_a_map_is_found_again_from_its_outputs(seed: int, has_bias: bool, num_batches: int) -> None:
    weight, bias = drawn(3, 5, seed=seed).double(), drawn(3, seed=seed + 1).double() * has_bias
    moments = Moments(has_bias=has_bias)
    for batch in range(num_batches):
        rows = drawn(40, 5, seed=seed + 2 + batch).double()
        moments.add(rows, rows @ weight.mT + bias)
    solution = moments.solve(zero(3, 5))
    torch.testing.assert_close(solution.weight, weight, rtol=0, atol=1e-3)
    torch.testing.assert_close(solution.bias, bias, rtol=0, atol=1e-3)


def test_the_error_is_no_larger_than_that_of_lstsq() -> None:
    rows, targets = drawn(200, 6).double(), drawn(200, 4, seed=1).double()
    moments = Moments(has_bias=False)
    moments.add(rows, targets)
    error = (rows @ moments.solve(zero(4, 6)).weight.mT - targets).square().sum()
    best = torch.linalg.lstsq(rows, targets)
    least = (rows @ best.solution - targets).square().sum()
    assert least <= error <= least * (1 + 1e-6)


def test_directions_without_inputs_are_those_of_the_prior() -> None:
    rows = drawn(50, 4).double()
    rows[:, 2:] = 0
    prior = Affine(drawn(3, 4, seed=1).double(), drawn(3, seed=2).double())
    moments = Moments(has_bias=False)
    moments.add(rows, rows @ drawn(3, 4, seed=3).double().mT)
    solution = moments.solve(prior)
    torch.testing.assert_close(solution.weight[:, 2:], prior.weight[:, 2:])
    assert torch.equal(solution.bias, prior.bias)


def test_a_prior_without_error_is_the_solution_to_the_last_digits() -> None:
    prior = Affine(drawn(3, 4).double(), drawn(3, seed=1).double())
    # Fewer rows than inputs: least squares alone would leave the map open.
    rows = drawn(2, 4, seed=2).double()
    moments = Moments(has_bias=True)
    moments.add(rows, rows @ prior.weight.mT + prior.bias)
    torch.testing.assert_close(moments.solve(prior).weight, prior.weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("has_shift", [True, False])
def test_gain_and_shift_are_those_of_each_channel(has_shift: bool) -> None:
    gain, shift = drawn(4).double(), drawn(4, seed=1).double() * has_shift
    sums = ChannelMoments()
    for seed in (2, 3):
        rows = drawn(30, 4, seed=seed).double()
        sums.add(rows, gain * rows + shift)
    found = sums.gain_and_shift(has_shift=has_shift)
    torch.testing.assert_close(found[0], gain)
    torch.testing.assert_close(found[1], shift)
