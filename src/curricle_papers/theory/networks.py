"""Two-layer networks and data of the analysis of sparse parity.

f(x) = sum_i a_i ReLU(<w_i, x> + b_i) on x in {-1, +1}^d, with the symmetric initialization, at
which f is 0 everywhere.

Axes: example, input, neuron.

Design: plain float64 arrays and no torch. Random numbers come only from the caller's generator of a
named stream (`curricle.seeding.numpy_generator`). The support is always the first k coordinates,
without loss of generality, because the law of x is invariant to their order.

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Definition 4.2 (its name only is public).
    [P24] Panigrahi et al. 2024, arXiv 2410.05464, theory section.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64

from curricle.errors import SpecError
from curricle_papers.theory.fourier import bias_grid


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TwoLayer:
    """A ReLU network with one hidden layer and one output."""

    weights: Float64[np.ndarray, "neuron input"]
    """w, one row per neuron."""
    biases: Float64[np.ndarray, " neuron"]
    """b."""
    top: Float64[np.ndarray, " neuron"]
    """a, the weights of the output."""

    def preactivations(
        self, inputs: Float64[np.ndarray, "example input"]
    ) -> Float64[np.ndarray, "example neuron"]:
        """Return <w_i, x> + b_i."""
        sums: Float64[np.ndarray, "example neuron"] = inputs @ self.weights.T + self.biases
        return sums

    def hidden(
        self, inputs: Float64[np.ndarray, "example input"]
    ) -> Float64[np.ndarray, "example neuron"]:
        """Return h(x), the activations of the hidden layer."""
        activations: Float64[np.ndarray, "example neuron"]
        activations = np.maximum(self.preactivations(inputs), 0.0)
        return activations

    def output(
        self, inputs: Float64[np.ndarray, "example input"]
    ) -> Float64[np.ndarray, " example"]:
        """Return f(x); its sign is the predicted label."""
        values: Float64[np.ndarray, " example"] = self.hidden(inputs) @ self.top
        return values


def symmetric_initialization(
    *, num_inputs: int, degree: int, width: int, generator: np.random.Generator
) -> TwoLayer:
    """Return a network with output 0 on every input.

    For the first half of the neurons w is uniform in {-1, +1}^d, b uniform on the grid of
    `bias_grid` and a uniform in {-1/m, +1/m}; the second half repeats w and b and negates a. So the
    hinge loss max(0, 1 - y f) starts in its linear part, and its gradient is exactly -y times the
    gradient of f.

    Args:
        num_inputs: d, the number of coordinates.
        degree: k, the size of the support; sets the grid of the biases.
        width: m, the number of neurons; even.
        generator: Source of weights, biases and signs, in this order.

    Raises:
        SpecError: If the width is odd or not positive, or the support does not fit the input.

    Source:
        [P24], from memory; [GK25], Definition 4.2 has its name. Deviation: none known.
    """
    if width < 1 or width % 2:
        raise SpecError(f"'width' must be even and positive, as neurons come in pairs; got {width}")
    if not 0 < degree <= num_inputs:
        raise SpecError(f"'degree' must lie between 1 and 'num_inputs' {num_inputs}; got {degree}")
    half = width // 2
    grid = np.array([float(bias) for bias in bias_grid(degree)])
    weights = draw_inputs(half, num_inputs, generator)
    biases = grid[generator.integers(len(grid), size=half)]
    top = draw_inputs(half, 1, generator)[:, 0] / width
    return TwoLayer(
        weights=np.concatenate([weights, weights]),
        biases=np.concatenate([biases, biases]),
        top=np.concatenate([top, -top]),
    )


def draw_inputs(
    num_examples: int, num_inputs: int, generator: np.random.Generator
) -> Float64[np.ndarray, "example input"]:
    """Return examples uniform in {-1, +1}^d."""
    size = num_examples * num_inputs
    bits = np.unpackbits(np.frombuffer(generator.bytes(-(-size // 8)), np.uint8), count=size)
    return 1.0 - 2.0 * bits.reshape(num_examples, num_inputs)


def parity(
    inputs: Float64[np.ndarray, "example input"], degree: int
) -> Float64[np.ndarray, " example"]:
    """Return y, the product of the first k coordinates: +1 or -1."""
    labels: Float64[np.ndarray, " example"] = np.prod(inputs[:, :degree], axis=1)
    return labels


def accuracy(network: TwoLayer, inputs: Float64[np.ndarray, "example input"], degree: int) -> float:
    """Return the share of examples with correct predicted parity; output 0 counts as wrong."""
    return float(np.mean(np.sign(network.output(inputs)) == parity(inputs, degree)))
