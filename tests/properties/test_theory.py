"""Invariants of the coefficients of all gates and units."""

import math
from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from curricle_papers.theory.fourier import (
    bias_grid,
    off_support_factor,
    threshold_coefficient,
    unit_coefficient,
)
from curricle_papers.theory.gradient_correlations import predicted_spread, unit_moments

biases = st.fractions(Fraction(-49, 50), Fraction(49, 50), max_denominator=50)
numbers = st.integers(1, 60)
degrees = st.integers(1, 12)


@given(num_inputs=st.integers(1, 40), bias=biases)
def test_the_squares_of_a_gates_coefficients_sum_to_its_mean(
    num_inputs: int, bias: Fraction
) -> None:
    # Parseval: the square of a gate is the gate.
    squares = [
        math.comb(num_inputs, order) * threshold_coefficient(num_inputs, order, bias=bias) ** 2
        for order in range(num_inputs + 1)
    ]
    assert sum(squares) == threshold_coefficient(num_inputs, 0, bias=bias)


@given(num_inputs=numbers, bias=biases, order=st.data())
def test_the_opposite_bias_turns_the_gate_around(
    num_inputs: int, bias: Fraction, order: st.DataObject
) -> None:
    assume(bias != 0)
    drawn = order.draw(st.integers(0, num_inputs))
    actual = threshold_coefficient(num_inputs, drawn, bias=bias)
    other = threshold_coefficient(num_inputs, drawn, bias=-bias)
    assert other == (1 - actual if drawn == 0 else (-1) ** (drawn + 1) * actual)


@given(num_inputs=numbers, half=st.integers(0, 30), bias=biases)
def test_odd_coefficients_are_half_of_those_of_the_majority(
    num_inputs: int, half: int, bias: Fraction
) -> None:
    # O'Donnell 2014, Theorem 5.19. Ties of an even number are split as by one more coordinate.
    order = 2 * half + 1
    assume(order <= num_inputs)
    voters = num_inputs + 1 - num_inputs % 2
    middle = (voters - 1) // 2
    majority = Fraction(
        (-1) ** half * math.comb(middle, half) * 2 * math.comb(voters - 1, middle),
        math.comb(voters - 1, order - 1) * 2**voters,
    )
    assert threshold_coefficient(num_inputs, order, bias=bias) == majority / 2


@given(degree=degrees, one=biases, other=biases)
def test_a_unit_tells_more_the_higher_its_bias(degree: int, one: Fraction, other: Fraction) -> None:
    low, high = sorted((one, other))
    coefficients = [unit_coefficient(degree, bias=bias) for bias in (low, high)]
    assert 0 <= coefficients[0] <= coefficients[1] <= Fraction(1, 2 * degree)


@given(degree=degrees, bias=biases)
def test_a_unit_and_its_mirror_image_are_a_linear_one(degree: int, bias: Fraction) -> None:
    # ReLU(z + b) - ReLU(-z - b) = z + b, whose degree-1 coefficient is 1 / 2k.
    both = unit_coefficient(degree, bias=bias) + unit_coefficient(degree, bias=-bias)
    assert both == Fraction(1, 2 * degree)


@given(degree=st.integers(1, 8), more=st.integers(1, 60))
def test_what_lies_off_the_support_shows_less(degree: int, more: int) -> None:
    num_inputs = degree + more
    assume((num_inputs % 2 == 0 or degree % 2 == 0) and num_inputs >= 2 * degree)
    assert off_support_factor(num_inputs, degree) <= 1
    spread = predicted_spread(num_inputs, degree)
    assert spread.off_support <= spread.in_support + 1e-12


@given(degree=st.integers(1, 6), place=st.data())
def test_many_inputs_off_the_support_no_longer_matter(degree: int, place: st.DataObject) -> None:
    bias = place.draw(st.sampled_from(bias_grid(degree)))
    actual = unit_moments(400, degree, bias=bias).in_support
    # Weights off the support add a sum of size about k / sqrt(d) of one weight on it.
    assert abs(actual - unit_coefficient(degree, bias=bias)) < 1 / math.sqrt(400) / 2
