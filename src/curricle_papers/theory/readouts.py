"""Fits of the output layer on a fixed hidden layer.

The second phase trains a in f(x) = <a, h(x)> with w and b fixed, a convex problem. Least squares is
a single linear system; the hinge loss of the analysis is minimized by gradient descent.

Axes: example, neuron.
"""

import numpy as np
from jaxtyping import Float64

from curricle.errors import SpecError


def fit_ridge(
    hidden: Float64[np.ndarray, "example neuron"],
    labels: Float64[np.ndarray, " example"],
    *,
    strength: float = 1e-6,
) -> Float64[np.ndarray, " neuron"]:
    """Return the a that minimizes mean (<a, h> - y)^2 + penalty |a|^2.

    Args:
        hidden: h(x).
        labels: y, +1 or -1.
        strength: Penalty relative to the mean of E[h_i^2] over the neurons; positive. The accuracy
            hardly depends on it up to 1e-4.

    Raises:
        SpecError: If the strength is not positive.
    """
    if not strength > 0:
        raise SpecError(f"'strength' must be positive; got {strength}")
    moments = hidden.T @ hidden / len(hidden)
    # Units that are never active give rows of zeros; the floor keeps the system regular if all are.
    scale = max(float(np.mean(np.diag(moments))), np.finfo(np.float64).tiny / strength)
    penalty = strength * scale * np.eye(len(moments))
    return np.linalg.solve(moments + penalty, hidden.T @ labels / len(hidden))


def fit_hinge(
    hidden: Float64[np.ndarray, "example neuron"],
    labels: Float64[np.ndarray, " example"],
    *,
    num_steps: int = 500,
    rate: float = 1.0,
) -> Float64[np.ndarray, " neuron"]:
    """Return a after gradient descent on mean max(0, 1 - y <a, h>), from a = 0.

    Full-batch steps with Nesterov's momentum 1 - 3 / (t + 3). The hinge has no curvature to set the
    step size, so its unit is 1 / E|h|^2: a step of rate 1 can change an output by about 1.

    Args:
        hidden: h(x).
        labels: y, +1 or -1.
        num_steps: Number of steps; each reads `hidden` twice.
        rate: Step size in units of 1 / E|h|^2; positive.

    Raises:
        SpecError: If the rate or the number of steps is not positive.

    Source:
        Loss of Panigrahi et al. 2024 (arXiv 2410.05464) and, by its name, of Gupta and Karmalkar
        2025 (arXiv 2503.17494). Deviation: momentum, and one fixed sample.
    """
    if not (rate > 0 and num_steps > 0):
        raise SpecError(
            f"'rate' and 'num_steps' must be positive; got rate {rate} and {num_steps} steps"
        )
    norm = max(float(np.mean(np.sum(hidden**2, axis=1))), np.finfo(np.float64).tiny)
    top = np.zeros(hidden.shape[1])
    ahead = top
    for step in range(num_steps):
        wrong = labels * (labels * (hidden @ ahead) < 1)
        updated = ahead + rate / norm * (wrong @ hidden) / len(hidden)
        ahead = updated + step / (step + 3) * (updated - top)
        top = updated
    return top
