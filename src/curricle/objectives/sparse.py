"""Forward KL divergence from a sparse teacher distribution.

Stored targets do not contain all classes. A `SparseTarget` holds, for each row, classes with
weights and optionally one bucket for the mass of the remaining classes. `sparse_forward_kl`
compares a student with it; beyond the student's logits it needs no tensor of their size.

Axes: row (counted positions), class, draw (stored classes of a row: sampled classes, which may
repeat, or the most likely classes).

Design: the loss is linear in the weights. If their expectation is the teacher's distribution, as
for sampled classes, the expected value and gradient are those of the forward KL divergence.

References:
    [A25] Anshumann et al. 2025, arXiv 2503.16870: sampled classes give unbiased gradients, top-k
        classes do not.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SparseTarget:
    """Sparse form of the teacher's distribution at each row."""

    ids: Int[Tensor, "row draw"]
    """Classes."""
    weights: Float[Tensor, "row draw"]
    """Probability mass of each entry; 0 for unused entries."""
    remaining_mass: Float[Tensor, " row"] | None = None
    """Total mass of all other classes, compared as a single class; None without such a bucket."""
    constant: Float[Tensor, " row"]
    """Added to each row's loss, in nats: the negative entropy of the target, so that the loss is
    (an estimate of) a divergence."""
    temperature: float = 1.0
    """Softening of the teacher's distribution."""

    def at(self, rows: slice) -> "SparseTarget":
        """Return the target at some rows."""
        return replace(
            self,
            ids=self.ids[rows],
            weights=self.weights[rows],
            remaining_mass=None if self.remaining_mass is None else self.remaining_mass[rows],
            constant=self.constant[rows],
        )


def sparse_forward_kl(
    student_logits: Float[Tensor, "row class"],
    target: SparseTarget,
    *,
    student_temperature: float,
) -> Float[Tensor, ""]:
    """Return the sum over rows of constant + sum of weight (-log S), with S as in `forward_kl`.

    With `remaining_mass`, the masses of both models outside of the stored classes are compared as a
    single class; this is a lower bound of the full divergence.

    Args:
        student_logits: The student's logits; they get the gradient.
        target: Sparse form of the teacher's distribution.
        student_temperature: Softening of the student; dimensionless, positive.

    Returns:
        Sum over rows, in nats.

    Source:
        [A25] for sampled classes.
    """
    wide = student_logits if student_logits.dtype == torch.float64 else student_logits.float()
    scaled = wide / student_temperature
    norm = scaled.logsumexp(-1, keepdim=True)
    log_stored = scaled.gather(-1, target.ids) - norm
    total = target.constant.sum() - (target.weights * log_stored).sum()
    mass = target.remaining_mass
    if mass is None:
        return total
    log_mass = scaled.scatter(-1, target.ids, float("-inf")).logsumexp(-1) - norm.squeeze(-1)
    # If all remaining classes are padding, both masses are 0 and the product would be NaN.
    return total - (mass * log_mass.masked_fill(mass == 0, 0.0)).sum()
