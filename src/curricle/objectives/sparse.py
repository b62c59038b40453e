"""How is a student compared with a distribution of which only some classes are known?

A stored teacher does not keep all classes. A `SparseTarget` is what it kept of each row: classes
with weights, and perhaps one bucket for the mass of all others. `sparse_forward_kl` compares a
student with it, needs the student's logits and nothing of that size besides.

Axes: row (counted positions), class, draw (what is known of a row: drawn classes, which may repeat,
or the most likely ones).

Design: the loss is linear in the weights. So if their expectation is the teacher's distribution, as
it is for drawn classes, the expected value and gradient are those of the forward KL divergence.

References:
    [A25] Anshumann et al. 2025, arXiv 2503.16870: drawn classes teach without bias, the most likely
        ones alone do not.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SparseTarget:
    """What is known of the teacher's distribution at each row."""

    ids: Int[Tensor, "row draw"]
    """Classes."""
    weights: Float[Tensor, "row draw"]
    """Mass that each stands for; 0 where it stands for nothing."""
    rest: Float[Tensor, " row"] | None = None
    """Mass of all other classes together, compared as one; None if they have none."""
    constant: Float[Tensor, " row"]
    """Added to each row's loss, in nats: the negative entropy of what is compared with, so that
    the loss is (an estimate of) a divergence."""
    temperature: float = 1.0
    """Softening with which the teacher's distribution was made."""

    def at(self, rows: slice) -> "SparseTarget":
        """Return what is known of some rows."""
        return replace(
            self,
            ids=self.ids[rows],
            weights=self.weights[rows],
            rest=None if self.rest is None else self.rest[rows],
            constant=self.constant[rows],
        )


def sparse_forward_kl(
    student_logits: Float[Tensor, "row class"],
    target: SparseTarget,
    *,
    student_temperature: float,
) -> Float[Tensor, ""]:
    """Return the sum over rows of constant + sum of weight (-log S), with S as in `forward_kl`.

    With a rest bucket the student's mass outside of the known classes is compared with the
    teacher's as that of one class; this is a lower bound of the full divergence.

    Args:
        student_logits: The student's logits; the only ones with a gradient.
        target: What is known of the teacher.
        student_temperature: Softening of the student; dimensionless, positive.

    Returns:
        Sum over rows, in nats.

    Source:
        [A25] for drawn classes.
    """
    wide = student_logits if student_logits.dtype == torch.float64 else student_logits.float()
    scaled = wide / student_temperature
    norm = scaled.logsumexp(-1, keepdim=True)
    log_known = scaled.gather(-1, target.ids) - norm
    total = target.constant.sum() - (target.weights * log_known).sum()
    if target.rest is None:
        return total
    others = scaled.scatter(-1, target.ids, float("-inf")).logsumexp(-1) - norm.squeeze(-1)
    # All classes that are left may be padding, which no model gives anything.
    return total - (target.rest * others.masked_fill(target.rest == 0, 0.0)).sum()
