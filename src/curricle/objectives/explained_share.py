"""Share of a teacher's outputs that a student explains, whatever the level and scale of its own.

explained share = 1 - min over c of L(m + c (z - mean z)) / L(m), or 1 - L(z) / L(m) if more, with
the student's outputs z, the loss L and m, the best constant output: for distributions the
logarithm of the teacher's mean distribution, for the squared error the mean of the teacher's
outputs. It lies between 0, for outputs that have nothing to do with the inputs, and 1. A loss alone
does not show this: a start in closed form may give outputs in the right order that are many times
too large, whose loss is far above that of the constant. With the forward divergence L(m) is the
mutual information between the inputs and the teacher's class.

Axes: row (counted positions), sampled (some rows), class.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from curricle.models.heads import LinearHead
from curricle.objectives.divergences import Divergence, SquaredError

MOST_ROWS = 128
"""Rows of a batch that are compared."""
MOST_NUMBERS = 2**22
"""Numbers in the compared rows of a batch; large vocabularies have fewer rows."""
SCALES = tuple(2.0**power for power in range(-8, 5))
"""Factors c that are tried beside 0."""
SMALLEST = 1e-30
"""Smallest probability of a class in the mean distribution, above the smallest float32."""


def sampled_rows(
    outputs: Float[Tensor, "row class"] | LinearHead,
) -> Float[Tensor, "sampled class"]:
    """Return evenly spaced rows of a model's outputs, in float32.

    Args:
        outputs: The outputs, or the head that computes them.
    """
    if isinstance(outputs, LinearHead):
        head = outputs.flat
        return head.at(_spaced(len(head.states), head.num_classes)).logits().float()
    # A copy, so that the outputs of the whole batch do not stay in memory.
    return outputs[_spaced(*outputs.shape)].float().clone()


def _spaced(number: int, num_classes: int) -> slice:
    limit = min(MOST_ROWS, max(1, MOST_NUMBERS // num_classes))
    return slice(0, None, max(1, math.ceil(number / limit)))


def explained_share(
    pairs: Sequence[tuple[Float[Tensor, "row class"], Float[Tensor, "row class"]]],
    divergence: Divergence,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> float | None:
    """Return the explained share over the rows of all pairs.

    Args:
        pairs: Outputs of the student and of the teacher at the same rows.
        divergence: Divergence of the two outputs.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, 0 or positive.

    Returns:
        The share; None if there are no rows, or the teacher's outputs are constant.
    """
    student, teacher = (torch.cat(side) for side in zip(*pairs, strict=True))
    if not len(student):
        return None
    if isinstance(divergence, SquaredError):
        level = teacher.mean(0)
    else:
        mean = _distribution(teacher, teacher_temperature).mean(0)
        # The student's output is softened again in the divergence.
        level = student_temperature * mean.clamp_min(SMALLEST).log()
    deviation = student - student.mean(0)
    constant, *losses = (
        divergence(
            outputs,
            teacher,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        ).item()
        for outputs in (
            level.expand_as(student),
            student,
            *(level + scale * deviation for scale in SCALES),
        )
    )
    return 1 - min(constant, *losses) / constant if constant > 0 else None


def _distribution(
    logits: Float[Tensor, "row class"], temperature: float
) -> Float[Tensor, "row class"]:
    """Return the teacher's distribution at each row."""
    if temperature:
        return (logits / temperature).softmax(-1)
    return one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
