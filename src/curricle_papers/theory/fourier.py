"""Fourier coefficients of threshold gates and of trained hidden units on sparse parity.

Inputs x are uniform in {-1, +1}^d, the label is y = prod_{j in S} x_j with |S| = k. Two families of
numbers decide how many examples a first gradient step needs:

- xi_r, the degree-r Fourier coefficient of the gate 1{<w, x> + b > 0} of an untrained ReLU unit
  with w in {-1, +1}^d and |b| < 1. A gradient from labels has the signal xi_{k-1}, which is tiny.
- phi_b, the degree-1 coefficient of a unit after the first phase,
  ReLU((1 / 2k) sum_{j <= k} x_j + b). A gradient from such units has the signal phi_b, a large one.

Design: all coefficients are exact fractions of integers, summed over the number of -1 coordinates;
`float` rounds once, at the end.

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Section 4: names the setting. Its formulas
        are not public; the formulas here are an own derivation.
    [P24] Panigrahi et al. 2024, arXiv 2410.05464: the same setting with labels and checkpoints.
    [OD14] O'Donnell 2014, Analysis of Boolean Functions, Theorem 5.19: a closed form of the
        coefficients of the majority, used by the tests of xi_r.
"""

import math
from fractions import Fraction
from functools import lru_cache

from curricle.errors import SpecError


@lru_cache(maxsize=4096)
def threshold_coefficient(num_inputs: int, order: int, *, bias: Fraction | float) -> Fraction:
    """Return xi_r = E[1{x_1 + ... + x_d + b > 0} x_1 ... x_r], exactly.

    The sum has the parity of d and |b| < 1, so b matters only if the sum is 0: then the gate is
    open for b > 0 and shut for b <= 0 (the inequality is strict). For other signs w the
    coefficient of a set T is xi_|T| prod_{j in T} w_j, by the substitution of w_j x_j for x_j.

    With t coordinates equal to -1, u of them among the first r, the product is (-1)^u and

        xi_r = 2^-d sum_{t: d - 2t + b > 0} sum_u (-1)^u C(r, u) C(d - r, t - u).

    For a fixed odd r its size is about d^{-r/2} and its sign that of (-1)^{(r-1)/2}. Even r >= 2
    depend on ties only: they vanish for odd d, and for even d their size is about d^{-(r+1)/2} and
    their sign that of (-1)^{r/2} b.

    Args:
        num_inputs: d, the number of coordinates; several hundreds take milliseconds.
        order: r, the size of the set, from 0 to d.
        bias: b, between -1 and 1, both excluded.

    Raises:
        SpecError: If the order or the bias lies outside its range.

    Source:
        Own derivation for the setting of [GK25] and [P24]; tie rule ours.
    """
    if not 0 <= order <= num_inputs:
        raise SpecError(f"'order' must lie between 0 and 'num_inputs' {num_inputs}; got {order}")
    if not -1 < bias < 1:
        raise SpecError(f"'bias' must lie between -1 and 1, both excluded; got {bias}")
    signed = [(-1) ** u * math.comb(order, u) for u in range(order + 1)]
    unsigned = [math.comb(num_inputs - order, u) for u in range(num_inputs - order + 1)]
    total = 0
    for minus in range(num_inputs + 1):
        if num_inputs - 2 * minus + bias > 0:
            first, last = max(0, minus - len(unsigned) + 1), min(order, minus)
            total += sum(signed[u] * unsigned[minus - u] for u in range(first, last + 1))
    return Fraction(total, 2**num_inputs)


def bias_grid(degree: int) -> tuple[Fraction, ...]:
    """Return the 2k - 1 initial biases -1 + 1/k, ..., 1 - 1/k of the units.

    Args:
        degree: k, the size of the support.

    Raises:
        SpecError: If the degree is below 1.

    Source:
        Symmetric initialization of [P24]; [GK25], Definition 4.2 has its name.
    """
    if degree < 1:
        raise SpecError(f"'degree' must be at least 1; got {degree}")
    return tuple(Fraction(place, degree) for place in range(1 - degree, degree))


def unit_coefficient(degree: int, *, bias: Fraction | float) -> Fraction:
    """Return phi_b = E[ReLU((1 / 2k) (x_1 + ... + x_k) + b) x_1], exactly.

    The first coordinate is +1 or -1, the other k - 1 sum to s:

        phi_b = 1/2 E_s[ReLU((s + 1) / 2k + b) - ReLU((s - 1) / 2k + b)].

    It grows with b, from 0 for a unit that is never active (b <= -1/2) to 1 / 2k for a unit that is
    always active (b >= 1/2).

    Args:
        degree: k, the size of the support.
        bias: b; a `Fraction` keeps the result free of rounding.

    Raises:
        SpecError: If the degree is below 1.

    Source:
        Own derivation; presumably a relative of phi_b(t) in [GK25], Lemma B.2.
    """
    if degree < 1:
        raise SpecError(f"'degree' must be at least 1; got {degree}")
    exact = Fraction(bias)
    terms = []
    for minus in range(degree):
        remaining = degree - 1 - 2 * minus
        above = max(Fraction(0), Fraction(remaining + 1, 2 * degree) + exact)
        below = max(Fraction(0), Fraction(remaining - 1, 2 * degree) + exact)
        terms.append(math.comb(degree - 1, minus) * (above - below))
    return sum(terms, Fraction(0)) / Fraction(2**degree)


def root_mean_square(degree: int) -> float:
    """Return rms(phi): the root of the mean of phi_b squared over the grid of biases.

    This is the spread, over random projections, of the correlation with a coordinate of the
    support (see `curricle_papers.theory.gradient_correlations`).

    Args:
        degree: k, the size of the support.

    Source:
        Own derivation of the verbal statement of [GK25], Lemma 4.4.
    """
    squares = [unit_coefficient(degree, bias=bias) ** 2 for bias in bias_grid(degree)]
    return math.sqrt(sum(squares) / len(squares))


def off_support_factor(num_inputs: int, degree: int) -> Fraction:
    """Return |xi_{k+1} / xi_{k-1}|: a weight off the support, relative to one on it.

    The signal of a gradient from labels belongs to the set S without j if j is in the support
    (k - 1 coordinates), and to S with j if it is not (k + 1). For even k and even d the quotient is
    (k - 1) / (d - k + 1).

    Args:
        num_inputs: d, the number of coordinates; more than k.
        degree: k, the size of the support.

    Raises:
        SpecError: If the support contains all coordinates, or the first phase has no signal.

    Source:
        Own derivation.
    """
    if not 0 < degree < num_inputs:
        raise SpecError(
            f"'degree' must lie between 1 and 'num_inputs' {num_inputs} minus 1; got {degree}"
        )
    # The size does not depend on the sign of the bias, so any nonzero bias gives it.
    inside = threshold_coefficient(num_inputs, degree - 1, bias=Fraction(1, 2))
    if inside == 0:
        raise SpecError(
            f"'degree' must be even if 'num_inputs' is odd, or the gate has no coefficient of "
            f"degree k - 1; got degree {degree} and {num_inputs} inputs"
        )
    return abs(threshold_coefficient(num_inputs, degree + 1, bias=Fraction(1, 2)) / inside)
