"""Coefficients of gates and units against sums over all inputs."""

import itertools
import math
from fractions import Fraction

import pytest

from curricle.errors import SpecError
from curricle_papers.theory.fourier import (
    bias_grid,
    off_support_factor,
    root_mean_square,
    threshold_coefficient,
    unit_coefficient,
)

SIDES = [Fraction(-1, 3), Fraction(0), Fraction(1, 3)]


def all_inputs(num_inputs: int) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 1), repeat=num_inputs))


@pytest.mark.parametrize("bias", SIDES)
@pytest.mark.parametrize("num_inputs", [1, 2, 5, 8])
def test_a_gate_is_expanded_as_the_sum_over_all_inputs(num_inputs: int, bias: Fraction) -> None:
    actual = [
        threshold_coefficient(num_inputs, order, bias=bias) for order in range(num_inputs + 1)
    ]
    open_inputs = [x for x in all_inputs(num_inputs) if sum(x) + bias > 0]
    assert actual == [
        Fraction(sum(math.prod(x[:order]) for x in open_inputs), 2**num_inputs)
        for order in range(num_inputs + 1)
    ]


@pytest.mark.parametrize("signs", [(1, -1, 1, 1, -1, -1), (-1, -1, -1, -1, -1, -1)])
def test_the_signs_of_the_weights_come_out_as_their_product(signs: tuple[int, ...]) -> None:
    chosen, bias = (0, 1, 4), Fraction(1, 2)
    gate = [
        x for x in all_inputs(6) if sum(w * c for w, c in zip(signs, x, strict=True)) + bias > 0
    ]
    brute = Fraction(sum(math.prod(x[j] for j in chosen) for x in gate), 2**6)
    product = math.prod(signs[j] for j in chosen)
    assert brute == product * threshold_coefficient(6, 3, bias=bias)


@pytest.mark.parametrize("bias", bias_grid(4))
def test_a_unit_is_expanded_as_the_sum_over_all_inputs(bias: Fraction) -> None:
    products = [max(Fraction(0), Fraction(sum(x), 8) + bias) * x[0] for x in all_inputs(4)]
    assert unit_coefficient(4, bias=bias) == sum(products, Fraction(0)) / 16


def test_the_grid_of_biases_runs_between_both_ends() -> None:
    assert bias_grid(3) == tuple(Fraction(place, 3) for place in (-2, -1, 0, 1, 2))


def test_the_mean_square_is_taken_over_the_grid() -> None:
    # By hand for k = 2: phi is 0 at -1/2, 1/8 at 0 and 1/4 at 1/2.
    assert [unit_coefficient(2, bias=bias) for bias in bias_grid(2)] == [0, 1 / 8, 1 / 4]
    assert root_mean_square(2) == pytest.approx(math.sqrt((1 / 64 + 1 / 16) / 3))


def test_several_hundred_inputs_are_no_trouble() -> None:
    # Any order, as every step is in whole numbers.
    assert 0 < abs(threshold_coefficient(301, 151, bias=0.5)) < 1e-40


@pytest.mark.parametrize(
    ("num_inputs", "degree", "factor"),
    [(100, 6, Fraction(5, 95)), (50, 4, Fraction(3, 47)), (20, 3, Fraction(3, 17))],
)
def test_the_factor_off_the_support_is_a_simple_quotient(
    num_inputs: int, degree: int, factor: Fraction
) -> None:
    # For even k (k - 1) / (d - k + 1), for odd k k / (d - k), from O'Donnell's closed form.
    assert off_support_factor(num_inputs, degree) == factor


def test_an_order_outside_its_range_is_refused() -> None:
    with pytest.raises(SpecError, match="'order' must lie between 0 and 'num_inputs' 4; got 5"):
        threshold_coefficient(4, 5, bias=0.5)


@pytest.mark.parametrize("bias", [-1.0, 1.0, 2.5])
def test_a_bias_outside_its_range_is_refused(bias: float) -> None:
    with pytest.raises(
        SpecError, match=f"'bias' must lie between -1 and 1, both excluded; got {bias}"
    ):
        threshold_coefficient(4, 1, bias=bias)


def test_an_empty_support_is_refused() -> None:
    with pytest.raises(SpecError, match="'degree' must be at least 1; got 0"):
        bias_grid(0)
    with pytest.raises(SpecError, match="'degree' must be at least 1; got 0"):
        unit_coefficient(0, bias=0.5)


def test_a_support_without_a_rest_is_refused() -> None:
    with pytest.raises(SpecError, match="between 1 and 'num_inputs' 4 minus 1; got 4"):
        off_support_factor(4, 4)


def test_an_odd_degree_of_an_odd_input_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'degree' must be even if 'num_inputs' is odd.*; got"):
        off_support_factor(9, 3)
