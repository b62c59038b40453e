"""First training phase of sparse parity: one large gradient step on the hidden layer.

Training has two phases: one step on w alone, with a weight decay that erases the initial w, then
the output layer alone. At the symmetric initialization the first step against a target t is

    w_ij = eta a_i E[t(x) x_j 1{<w_i, x> + b_i > 0}],

with t = y for the teacher. The teacher's step is implemented twice: from sampled examples, and
in closed form in the limit of infinitely many examples.

Axes: example, input, neuron; target is neuron, or 1 for a target shared by all neurons.

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Algorithms 1 and 2 (names only are public).
    [P24] Panigrahi et al. 2024, arXiv 2410.05464, two-stage training.
"""

import math
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Float64

from curricle.errors import DataError, SpecError
from curricle_papers.theory.fourier import off_support_factor, threshold_coefficient
from curricle_papers.theory.networks import TwoLayer, draw_inputs, parity

CHUNK_EXAMPLES: Final = 8192
"""Examples per chunk of `sampled_phase`; 17 MB of gates for 256 neurons."""


def gated_gradient(
    network: TwoLayer,
    inputs: Float64[np.ndarray, "example input"],
    targets: Float64[np.ndarray, "example target"],
) -> Float64[np.ndarray, "neuron input"]:
    """Return the mean over examples of t_i(x) x_j 1{<w_i, x> + b_i > 0}.

    Args:
        network: Network with the gates; its top layer is not used.
        inputs: The examples.
        targets: A column for each neuron, or a single column for all.

    Raises:
        SpecError: If the number of columns is neither 1 nor the number of neurons.
    """
    columns, neurons = targets.shape[1], network.weights.shape[0]
    if columns not in {1, neurons}:
        raise SpecError(f"'targets' must have 1 or {neurons} columns; got {columns}")
    # The derivative of ReLU at 0 is taken as 0.
    gated = np.where(network.preactivations(inputs) > 0, targets, 0.0)
    means: Float64[np.ndarray, "neuron input"] = gated.T @ inputs / len(inputs)
    return means


def rescale_gradient(
    gradient: Float64[np.ndarray, "neuron input"], degree: int
) -> Float64[np.ndarray, "neuron input"]:
    """Return the gradient times a learning rate, with entries of about 1 / 2k on the support.

    All neurons share one rate: the mean magnitude of the entries on the support becomes 1 / 2k, as
    in the closed form.

    Raises:
        DataError: If the gradient is 0 on the whole support.
    """
    size = float(np.mean(np.abs(gradient[:, :degree])))
    if size == 0.0:
        raise DataError("'gradient' must not vanish on the support; got 0 in each entry")
    return gradient / (2 * degree * size)


def population_phase(network: TwoLayer, degree: int) -> TwoLayer:
    """Return the network after the teacher's first phase on infinitely many examples.

    y x_j is the product over S without j, or over S with j if j is off the support. The gate's
    coefficient of a set T is xi_|T| times the signs of w in T, and the product of the signs is
    p_i w_ij in both cases, p_i = prod_{l in S} w_il. With eta such that entries on the support
    have magnitude 1 / 2k,

        w_ij <- sign(a_i) p_i w_ij xi_{k-1} / (2k |xi_{k-1}|)    j in S,
        w_ij <- sign(a_i) p_i w_ij xi_{k+1} / (2k |xi_{k-1}|)    j not in S.

    Biases and output layer stay as they are.

    Args:
        network: The symmetric initialization; weights are -1 or +1.
        degree: k, the size of the support.

    Raises:
        SpecError: If the first phase has no signal (odd degree and odd number of inputs).

    Source:
        Own derivation.
    """
    num_inputs = network.weights.shape[1]
    factor = float(off_support_factor(num_inputs, degree))
    # Rows: bias not positive (at bias 0 ties are inactive), positive. Columns: on, off the support.
    entries = [
        [
            math.copysign(size, threshold_coefficient(num_inputs, order, bias=side))
            for order, size in ((degree - 1, 1.0), (degree + 1, factor))
        ]
        for side in (-0.5, 0.5)
    ]
    is_off = np.arange(num_inputs) >= degree
    sides = np.array(entries)[(network.biases > 0).astype(np.int64)][:, is_off.astype(np.int64)]
    lead = np.sign(network.top) * parity(network.weights, degree)
    return replace(network, weights=lead[:, None] * sides * network.weights / (2 * degree))


def sampled_phase(
    network: TwoLayer, degree: int, *, num_examples: int, generator: np.random.Generator
) -> TwoLayer:
    """Return the network after the teacher's first phase on sampled examples.

    The noise of an entry is about sqrt(1 / 2n), so fewer than 1 / xi_{k-1}^2 examples give only
    noise (`curricle_papers.theory.gradient_correlations.label_examples`).

    Args:
        network: The symmetric initialization.
        degree: k, the size of the support.
        num_examples: n, examples of the step.
        generator: Source of the examples.

    Raises:
        SpecError: If the number of examples is below 1.

    Source:
        [P24], [GK25]; rate as in `rescale_gradient`. Deviation: the initial w is dropped, not
        decayed.
    """
    if num_examples < 1:
        raise SpecError(f"'num_examples' must be at least 1; got {num_examples}")
    total = np.zeros_like(network.weights)
    for start in range(0, num_examples, CHUNK_EXAMPLES):
        size = min(CHUNK_EXAMPLES, num_examples - start)
        inputs = draw_inputs(size, network.weights.shape[1], generator)
        total += size * gated_gradient(network, inputs, parity(inputs, degree)[:, None])
    step = np.sign(network.top)[:, None] * total
    return replace(network, weights=rescale_gradient(step, degree))
