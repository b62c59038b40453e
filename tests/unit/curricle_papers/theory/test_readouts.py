"""Fits of the output layer against their own conditions."""

from collections.abc import Callable

import numpy as np
import pytest
from jaxtyping import Float64

from curricle.errors import SpecError
from curricle.seeding import numpy_generator
from curricle_papers.theory.networks import draw_inputs, parity, symmetric_initialization
from curricle_papers.theory.phases import population_phase
from curricle_papers.theory.readouts import fit_hinge, fit_ridge

Problem = tuple[Float64[np.ndarray, "example neuron"], Float64[np.ndarray, " example"]]
Fit = Callable[..., Float64[np.ndarray, " neuron"]]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Return the trained hidden layer of a (40,4)-parity, and the labels."""
    generator = numpy_generator(0, "readouts")
    network = symmetric_initialization(num_inputs=40, degree=4, width=80, generator=generator)
    inputs = draw_inputs(1500, 40, generator)
    return population_phase(network, 4).hidden(inputs), parity(inputs, 4)


def test_least_squares_leaves_no_gradient(problem: Problem) -> None:
    hidden, labels = problem
    top = fit_ridge(hidden, labels, strength=0.01)
    penalty = 0.01 * np.mean(hidden**2)
    gradient = hidden.T @ (hidden @ top - labels) / len(labels) + penalty * top
    assert np.abs(gradient).max() < 1e-12


@pytest.mark.parametrize("fit", [fit_ridge, fit_hinge])
def test_both_fits_tell_the_parity_from_a_trained_layer(fit: Fit, problem: Problem) -> None:
    hidden, labels = problem
    assert np.mean(np.sign(hidden @ fit(hidden, labels)) == labels) > 0.98


def test_steps_on_the_hinge_loss_lower_it(problem: Problem) -> None:
    hidden, labels = problem
    losses = [
        np.maximum(0, 1 - labels * (hidden @ fit_hinge(hidden, labels, num_steps=steps))).mean()
        for steps in (1, 30, 300)
    ]
    assert 1 > losses[0] > losses[1] > losses[2]


def test_one_step_on_the_hinge_loss_is_the_mean_of_the_signed_units(problem: Problem) -> None:
    hidden, labels = problem
    expected = 0.5 * (labels @ hidden) / len(labels) / np.mean(np.sum(hidden**2, axis=1))
    assert np.allclose(fit_hinge(hidden, labels, num_steps=1, rate=0.5), expected)


@pytest.mark.parametrize("fit", [fit_ridge, fit_hinge])
def test_a_layer_that_never_opens_gives_a_top_of_zeros(
    fit: Fit,
) -> None:
    assert fit(np.zeros((5, 3)), np.ones(5)).tolist() == [0.0, 0.0, 0.0]


def test_a_penalty_that_is_not_positive_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'strength' must be positive; got 0\.0"):
        fit_ridge(np.ones((2, 1)), np.ones(2), strength=0.0)


@pytest.mark.parametrize(("rate", "steps"), [(0.0, 5), (1.0, 0)])
def test_a_descent_that_does_not_move_is_refused(rate: float, steps: int) -> None:
    with pytest.raises(SpecError, match="'rate' and 'num_steps' must be positive; got rate"):
        fit_hinge(np.ones((2, 1)), np.ones(2), num_steps=steps, rate=rate)
