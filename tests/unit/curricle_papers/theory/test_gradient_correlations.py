"""Predicted moments and spreads against sums over all inputs and against samples."""

import itertools
import math

import numpy as np
import pytest

from curricle.errors import SpecError
from curricle.seeding import numpy_generator
from curricle_papers.theory.gradient_correlations import (
    extraction_examples,
    label_examples,
    predicted_gradient_ratio,
    predicted_spread,
    projected_correlations,
    unit_moments,
)
from curricle_papers.theory.networks import TwoLayer, symmetric_initialization
from curricle_papers.theory.phases import population_phase

ALL_EIGHT = np.array(list(itertools.product((-1.0, 1.0), repeat=8)))


def teacher(degree: int, *, width: int = 60) -> TwoLayer:
    generator = numpy_generator(0, "correlations")
    start = symmetric_initialization(num_inputs=8, degree=degree, width=width, generator=generator)
    return population_phase(start, degree)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_moments_of_each_unit_are_the_means_over_all_inputs(degree: int) -> None:
    network = teacher(degree)
    hidden = network.hidden(ALL_EIGHT)
    units = np.abs(hidden.T @ ALL_EIGHT / 256)
    expected = [unit_moments(8, degree, bias=bias) for bias in network.biases.tolist()]
    assert np.allclose(hidden.mean(axis=0), [unit.mean for unit in expected])
    assert np.allclose(hidden.var(axis=0), [unit.variance for unit in expected])
    assert np.allclose(units[:, :degree].T, [unit.in_support for unit in expected])
    assert np.allclose(units[:, degree:].T, [unit.off_support for unit in expected])


def test_the_spread_over_many_rows_is_the_predicted_one() -> None:
    network = teacher(4)
    rows = numpy_generator(0, "rows").standard_normal((4000, 60)) / math.sqrt(60)
    actual = projected_correlations(network.hidden(ALL_EIGHT), ALL_EIGHT, rows)
    expected = predicted_spread(8, 4, biases=network.biases.tolist())
    assert actual.shape == (4000, 8)
    assert actual[:, :4].std() == pytest.approx(expected.in_support, rel=0.05)
    assert actual[:, 4:].std() == pytest.approx(expected.off_support, rel=0.05)


def test_correlations_are_those_of_the_centered_layer() -> None:
    # Coordinate 0 is +1 in both examples: uncentered it would correlate with a constant.
    inputs = np.array([[1.0, 1.0], [1.0, -1.0]])
    hidden = np.array([[5.0, 3.0], [5.0, 1.0]])
    rows = np.array([[1.0, 0.0], [1.0, 2.0]])
    assert projected_correlations(hidden, inputs, rows).tolist() == [[0.0, 0.0], [0.0, 2.0]]


def test_the_ratio_grows_with_the_examples_up_to_that_of_the_spreads() -> None:
    ratios = [predicted_gradient_ratio(50, 4, count) for count in (1, 100, 10_000, 10**9)]
    spread = predicted_spread(50, 4)
    assert ratios == sorted(ratios)
    assert ratios[0] < 1.1
    assert ratios[-1] == pytest.approx(spread.in_support / spread.off_support, rel=1e-3)


def test_without_centering_the_ratio_stays_near_two() -> None:
    assert predicted_gradient_ratio(50, 4, 10**9, centered=False) == pytest.approx(2.2, abs=0.05)


def test_the_examples_of_extraction_grow_with_the_inputs_alone() -> None:
    assert extraction_examples(200, 6) == 2 * extraction_examples(100, 6)


@pytest.mark.parametrize(("degree", "power"), [(4, 3), (6, 5), (3, 3), (5, 5)])
def test_the_examples_of_labels_grow_with_a_power_of_the_inputs(degree: int, power: int) -> None:
    growth = label_examples(800, degree) / label_examples(400, degree)
    assert growth == pytest.approx(2**power, rel=0.05)


def test_labels_that_show_nothing_are_refused() -> None:
    with pytest.raises(SpecError, match="'degree' must be even if 'num_inputs' is odd, or labels"):
        label_examples(9, 3)


def test_a_ratio_without_examples_is_refused() -> None:
    with pytest.raises(SpecError, match="'num_examples' must be at least 1; got 0"):
        predicted_gradient_ratio(50, 4, 0)


def test_a_teacher_without_biases_is_refused() -> None:
    with pytest.raises(SpecError, match="'biases' must hold at least one; got 0"):
        predicted_spread(50, 4, biases=[])
