"""Correlations of random projections with input coordinates, and the sample sizes they save.

For a row A with independent entries of mean 0 and variance 1/m, the target (A h)(x) correlates with
coordinate j as corr_j = sum_i A_i E[h_i x_j]. Over the draw of A it has mean 0 and variance
mean_i E[h_i x_j]^2, so its spread is the root mean square of the units' degree-1 coefficients:
rms(phi) on the support and about k/d of that off it. The student's first step exploits this gap
(the content of Lemma 4.4 of the paper, in our own derivation).

Axes: example, input, neuron, projection (a row), coordinate (of the input).

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Lemma 4.4 and Figure 2.
    [P24] Panigrahi et al. 2024, arXiv 2410.05464: d^{k-1} examples for one-shot distillation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np
from jaxtyping import Float, Float64

from curricle.errors import SpecError
from curricle_papers.theory.fourier import (
    bias_grid,
    off_support_factor,
    root_mean_square,
    threshold_coefficient,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnitMoments:
    """Exact moments of a hidden unit after the teacher's first phase, for positive weights."""

    mean: float
    """E[h]."""
    variance: float
    """E[h^2] - E[h]^2."""
    in_support: float
    """E[h x_j] for j in the support."""
    off_support: float
    """E[h x_j] for j off it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Standard deviation over projections of E[(A h)(x) x_j]."""

    in_support: float
    """For j in the support."""
    off_support: float
    """For j off it."""


def unit_moments(num_inputs: int, degree: int, *, bias: Fraction | float) -> UnitMoments:
    """Return the moments of ReLU((sum_{S} x_j + rho sum_{not S} x_j) / 2k + b).

    rho is `off_support_factor`. Renaming x_j to -x_j makes all weights positive, so the moments of
    any unit are these up to the sign of its weight. The sums run over the numbers of +1
    coordinates on and off the support: (k + 1) (d - k + 1) terms.

    Args:
        num_inputs: d, the number of coordinates.
        degree: k, the size of the support.
        bias: b.

    Source:
        Own derivation; unlike `unit_coefficient` it includes the weights off the support.
    """
    num_outside = num_inputs - degree
    inside, inside_law = _sums(degree)
    outside, outside_law = _sums(num_outside)
    leak = float(off_support_factor(num_inputs, degree))
    before = (inside[:, None] + leak * outside) / (2 * degree) + float(bias)
    weighed = np.maximum(before, 0.0) * inside_law[:, None] * outside_law
    mean = float(weighed.sum())
    return UnitMoments(
        mean=mean,
        variance=float((weighed * np.maximum(before, 0.0)).sum()) - mean**2,
        in_support=float((weighed * inside[:, None]).sum()) / degree,
        off_support=float((weighed * outside).sum()) / num_outside,
    )


def predicted_spread(
    num_inputs: int, degree: int, *, biases: Sequence[Fraction | float] | None = None
) -> Spread:
    """Return the spread over projections for a teacher after its first phase.

    Args:
        num_inputs: d, the number of coordinates.
        degree: k, the size of the support.
        biases: Biases of the teacher's units, at least one; the full grid if None.

    Source:
        Own derivation of the verbal statement of [GK25], Lemma 4.4.
    """
    units = _unit_moments(num_inputs, degree, biases)
    return Spread(
        in_support=_root_mean_square([unit.in_support for unit in units]),
        off_support=_root_mean_square([unit.off_support for unit in units]),
    )


def predicted_gradient_ratio(
    num_inputs: int, degree: int, num_examples: int, *, centered: bool = True
) -> float:
    """Return the root mean square gradient on the support over that off it, in the first stage.

    Student neuron r starts as a gate 1{<w_r, x> + b_r > 0} and follows the target t_r = A_r h. To
    leading order the gate acts through its coefficients xi_0 and xi_1, so that

        on the support:   xi_0^2 spread_in^2  + xi_1^2 M + xi_0 V / n,
        off the support:  xi_0^2 spread_off^2 + xi_1^2 M + xi_0 V / n

    are the mean squares of an entry over rows. The last term is the noise of n examples. If the
    target is centered, M = 0 and V = mean_i Var(h_i). If it is not, M = mean_i E[h_i]^2 and V =
    mean_i E[h_i^2]: the mean of the target meets the gate's own degree-1 coefficient on every
    coordinate, independent of the number of examples. Neglected are products of xi_1, xi_2, ...
    with coefficients of t_r of degree 2 and more. Measured ratios are in docs/theory.md.

    Args:
        num_inputs: d, the number of coordinates.
        degree: k, the size of the support.
        num_examples: n, examples of the one step.
        centered: Whether the target's mean is subtracted.

    Raises:
        SpecError: If the number of examples is below 1.

    Source:
        Own derivation.
    """
    if num_examples < 1:
        raise SpecError(f"'num_examples' must be at least 1; got {num_examples}")
    units = _unit_moments(num_inputs, degree, None)
    gates = [float(threshold_coefficient(num_inputs, 0, bias=bias)) for bias in bias_grid(degree)]
    open_squared = float(np.mean(np.square(gates)))
    mean_squared = 0.0 if centered else float(np.mean([unit.mean**2 for unit in units]))
    variance = float(np.mean([unit.variance for unit in units])) + mean_squared
    # Odd coefficients do not depend on the bias.
    slope = float(threshold_coefficient(num_inputs, 1, bias=Fraction(1, 2)))
    everywhere = slope**2 * mean_squared + float(np.mean(gates)) * variance / num_examples
    spread = predicted_spread(num_inputs, degree)
    on = open_squared * spread.in_support**2 + everywhere
    return math.sqrt(on / (open_squared * spread.off_support**2 + everywhere))


def label_examples(num_inputs: int, degree: int) -> float:
    """Return 1 / xi_{k-1}^2, the examples for a step from labels to detect a coordinate.

    An entry of the gradient has a signal of |xi_{k-1}| and noise below 1 / sqrt(n). For even k this
    grows as d^{k-1}, the power of [P24], and for odd k, where only ties carry a signal, as d^k. A
    finished teacher's hard labels are no better: they are the parity itself. A usable hidden
    layer has d noisy weights and takes a further factor, as in `extraction_examples`.

    Args:
        num_inputs: d, the number of coordinates.
        degree: k, the size of the support.

    Raises:
        SpecError: If the coefficient is 0 (odd degree and odd number of inputs).

    Source:
        Own derivation. Logarithms and constants are left out.
    """
    coefficient = threshold_coefficient(num_inputs, degree - 1, bias=Fraction(1, 2))
    if coefficient == 0:
        raise SpecError(
            f"'degree' must be even if 'num_inputs' is odd, or labels carry no signal; got "
            f"degree {degree} and {num_inputs} inputs"
        )
    return float(1 / coefficient**2)


def extraction_examples(num_inputs: int, degree: int) -> float:
    """Return d / rms(phi)^2, the examples of extraction's first stage.

    An entry has a signal of xi_0 rms(phi) and noise of about 1 / sqrt(n). Detection of one
    coordinate takes 1 / rms(phi)^2 examples; the factor d makes the total noise of the d weights of
    a neuron smaller than its signal, a condition of the second stage. The power of d does not grow
    with k.

    Args:
        num_inputs: d, the number of coordinates.
        degree: k, the size of the support.

    Source:
        Own derivation, in line with the claim of [GK25], Theorem 4.3. Logarithms and constants are
        left out; V of `predicted_gradient_ratio` is far below 1, so the number is conservative.
    """
    return num_inputs / root_mean_square(degree) ** 2


def projected_correlations(
    hidden: Float[np.ndarray, "example neuron"],
    inputs: Float[np.ndarray, "example coordinate"],
    rows: Float[np.ndarray, "projection neuron"],
) -> Float64[np.ndarray, "projection coordinate"]:
    """Return the sample's estimate of E[(A h)(x) x_j] for each row A and coordinate j.

    The hidden layer is centered over the sample first. This changes no expectation, as E[x_j] = 0,
    but removes the noise of E[h] times the sample's mean of x_j.

    Args:
        hidden: h(x) on a batch.
        inputs: x; entries -1 or +1.
        rows: The projections.

    Source:
        [GK25], Figure 2. Deviation: centered.
    """
    centered = hidden.astype(np.float64) - hidden.astype(np.float64).mean(axis=0)
    units = centered.T @ inputs.astype(np.float64) / len(inputs)
    correlations: Float64[np.ndarray, "projection coordinate"] = rows.astype(np.float64) @ units
    return correlations


def _unit_moments(
    num_inputs: int, degree: int, biases: Sequence[Fraction | float] | None
) -> list[UnitMoments]:
    """Return the moments for each bias; equal biases are computed once.

    Raises:
        SpecError: If there is no bias.
    """
    grid = bias_grid(degree) if biases is None else biases
    if not len(grid):
        raise SpecError("'biases' must hold at least one; got 0")
    moments = {bias: unit_moments(num_inputs, degree, bias=bias) for bias in set(grid)}
    return [moments[bias] for bias in grid]


def _root_mean_square(numbers: list[float]) -> float:
    return math.sqrt(sum(number**2 for number in numbers) / len(numbers))


def _sums(count: int) -> tuple[Float64[np.ndarray, " sum"], Float64[np.ndarray, " sum"]]:
    """Return the values of a sum of `count` random signs, and their probabilities."""
    laws = [float(Fraction(math.comb(count, plus), 2**count)) for plus in range(count + 1)]
    return np.arange(-count, count + 1, 2, dtype=np.float64), np.array(laws)
