"""The first phase: from all inputs, from samples, and in closed form."""

import itertools

import numpy as np
import pytest
import torch
from jaxtyping import Float64

from curricle.errors import DataError, SpecError
from curricle.seeding import numpy_generator
from curricle_papers.theory.networks import TwoLayer, parity, symmetric_initialization
from curricle_papers.theory.phases import (
    CHUNK_EXAMPLES,
    gated_gradient,
    population_phase,
    rescale_gradient,
    sampled_phase,
)

ALL_EIGHT = np.array(list(itertools.product((-1.0, 1.0), repeat=8)))


def start(*, num_inputs: int = 8, degree: int = 4, width: int = 60) -> TwoLayer:
    generator = numpy_generator(0, "phases")
    return symmetric_initialization(
        num_inputs=num_inputs, degree=degree, width=width, generator=generator
    )


def step_on_all_inputs(network: TwoLayer, degree: int) -> Float64[np.ndarray, "neuron input"]:
    gradient = gated_gradient(network, ALL_EIGHT, parity(ALL_EIGHT, degree)[:, None])
    return rescale_gradient(np.sign(network.top)[:, None] * gradient, degree)


def test_the_gradient_is_that_of_the_hinge_loss_at_the_start() -> None:
    network = start()
    weights = torch.tensor(network.weights, requires_grad=True)
    inputs, labels = torch.tensor(ALL_EIGHT), torch.tensor(parity(ALL_EIGHT, 4))
    hidden = torch.relu(inputs @ weights.T + torch.tensor(network.biases))
    loss = (1 - labels * (hidden @ torch.tensor(network.top))).clamp_min(0).mean()
    (expected,) = torch.autograd.grad(loss, weights)
    actual = gated_gradient(network, ALL_EIGHT, labels.numpy()[:, None])
    assert np.allclose(-network.top[:, None] * actual, expected.numpy(), atol=1e-15)


def test_each_neuron_may_follow_its_own_target() -> None:
    network = start(width=6)
    targets = numpy_generator(0, "targets").standard_normal((256, 6))
    actual = gated_gradient(network, ALL_EIGHT, targets)
    for neuron in range(6):
        alone = gated_gradient(network, ALL_EIGHT, targets[:, [neuron]])
        assert np.allclose(actual[neuron], alone[neuron], atol=1e-15)


@pytest.mark.parametrize("degree", [2, 3, 4, 5])
def test_the_closed_form_is_the_step_on_all_inputs(degree: int) -> None:
    network = start(degree=degree)
    trained = population_phase(network, degree)
    assert np.allclose(trained.weights, step_on_all_inputs(network, degree), atol=1e-14)
    assert (trained.biases == network.biases).all()
    assert (trained.top == network.top).all()


def test_the_closed_form_gives_the_support_the_size_of_the_analysis() -> None:
    weights = np.abs(population_phase(start(num_inputs=30), 4).weights)
    assert np.allclose(weights[:, :4], 1 / 8)
    assert np.allclose(weights[:, 4:], 3 / 27 / 8)


def test_sampling_approaches_the_closed_form() -> None:
    network = start(width=40)
    exact = population_phase(network, 4).weights
    errors = [
        np.abs(
            sampled_phase(
                network, 4, num_examples=count, generator=numpy_generator(0, "sample")
            ).weights
            - exact
        ).mean()
        for count in (2_000, 200_000)
    ]
    # A hundred times the examples, a tenth of the error.
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.25)


def test_a_sample_larger_than_a_chunk_is_read_to_its_end() -> None:
    network = start(width=4)
    count = CHUNK_EXAMPLES + 8
    actual = sampled_phase(network, 4, num_examples=count, generator=numpy_generator(0, "sample"))
    generator = numpy_generator(0, "sample")
    words = [generator.bytes(CHUNK_EXAMPLES), generator.bytes(8)]
    bits = np.concatenate([np.unpackbits(np.frombuffer(word, np.uint8)) for word in words])
    inputs = 1.0 - 2.0 * bits.reshape(count, 8)
    gradient = gated_gradient(network, inputs, parity(inputs, 4)[:, None])
    expected = rescale_gradient(np.sign(network.top)[:, None] * gradient, 4)
    assert np.allclose(actual.weights, expected, atol=1e-12)


def test_a_wrong_number_of_targets_is_refused() -> None:
    with pytest.raises(SpecError, match="'targets' must have 1 or 60 columns; got 2"):
        gated_gradient(start(), ALL_EIGHT, np.ones((256, 2)))


def test_a_gradient_without_support_is_refused() -> None:
    with pytest.raises(DataError, match="'gradient' must not vanish on the support"):
        rescale_gradient(np.zeros((3, 8)), 4)


def test_a_sample_without_examples_is_refused() -> None:
    with pytest.raises(SpecError, match="'num_examples' must be at least 1; got 0"):
        sampled_phase(start(), 4, num_examples=0, generator=numpy_generator(0, "sample"))
