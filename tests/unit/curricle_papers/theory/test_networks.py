"""Two-layer networks, their symmetric initialization and their data."""

import numpy as np
import pytest

from curricle.errors import SpecError
from curricle.seeding import numpy_generator
from curricle_papers.theory.fourier import bias_grid
from curricle_papers.theory.networks import (
    TwoLayer,
    accuracy,
    draw_inputs,
    parity,
    symmetric_initialization,
)


def start(*, width: int = 64, num_inputs: int = 10, degree: int = 4, seed: int = 0) -> TwoLayer:
    generator = numpy_generator(seed, "test")
    return symmetric_initialization(
        num_inputs=num_inputs, degree=degree, width=width, generator=generator
    )


def test_a_network_is_computed_as_written() -> None:
    network = TwoLayer(
        weights=np.array([[1.0, 2.0], [-1.0, 0.5]]),
        biases=np.array([0.5, -0.25]),
        top=np.array([2.0, -3.0]),
    )
    inputs = np.array([[1.0, 1.0], [-1.0, 1.0]])
    assert network.preactivations(inputs).tolist() == [[3.5, -0.75], [1.5, 1.25]]
    assert network.hidden(inputs).tolist() == [[3.5, 0.0], [1.5, 1.25]]
    assert network.output(inputs).tolist() == [7.0, -0.75]


def test_the_start_is_zero_everywhere() -> None:
    inputs = draw_inputs(200, 10, numpy_generator(0, "inputs"))
    assert np.abs(start().output(inputs)).max() < 1e-15


def test_the_start_is_made_of_pairs_with_opposite_output_weights() -> None:
    network = start()
    assert (network.weights[:32] == network.weights[32:]).all()
    assert (network.biases[:32] == network.biases[32:]).all()
    assert (network.top[:32] == -network.top[32:]).all()


def test_the_start_draws_signs_biases_of_the_grid_and_equal_output_weights() -> None:
    network = start(width=400)
    assert set(network.weights.ravel().tolist()) == {-1.0, 1.0}
    assert set(network.biases.tolist()) == {float(bias) for bias in bias_grid(4)}
    assert set(network.top.tolist()) == {-1 / 400, 1 / 400}


def test_the_start_follows_from_its_generator() -> None:
    assert (start(seed=3).weights == start(seed=3).weights).all()
    assert (start(seed=3).weights != start(seed=4).weights).any()


@pytest.mark.parametrize("width", [0, 7])
def test_an_unpaired_width_is_refused(width: int) -> None:
    with pytest.raises(SpecError, match=f"'width' must be even and positive.*; got {width}"):
        start(width=width)


def test_a_support_larger_than_the_input_is_refused() -> None:
    with pytest.raises(SpecError, match="'degree' must lie between 1 and 'num_inputs' 3; got 4"):
        start(num_inputs=3)


def test_inputs_are_balanced_signs() -> None:
    inputs = draw_inputs(20_000, 7, numpy_generator(0, "inputs"))
    assert inputs.shape == (20_000, 7)
    assert set(inputs.ravel().tolist()) == {-1.0, 1.0}
    assert np.abs(inputs.T @ inputs / 20_000 - np.eye(7)).max() < 5 / np.sqrt(20_000)


def test_parity_is_the_product_of_the_support() -> None:
    inputs = np.array([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])
    assert parity(inputs, 2).tolist() == [-1.0, -1.0]
    assert parity(inputs, 3).tolist() == [1.0, 1.0]


def test_an_undecided_output_is_wrong() -> None:
    inputs = draw_inputs(50, 10, numpy_generator(0, "inputs"))
    silent = TwoLayer(weights=np.zeros((2, 10)), biases=np.zeros(2), top=np.zeros(2))
    assert accuracy(silent, inputs, 4) == 0.0


def test_a_network_that_is_a_parity_of_one_bit_is_always_right() -> None:
    weights = np.zeros((2, 10))
    weights[:, 0] = [1.0, -1.0]
    network = TwoLayer(weights=weights, biases=np.zeros(2), top=np.array([1.0, -1.0]))
    assert accuracy(network, draw_inputs(50, 10, numpy_generator(0, "inputs")), 1) == 1.0
