"""Linear map from the teacher's stream of states to the student's.

The map keeps the principal components of the states at all paired depths, each depth weighed alike.
Where normalizations subtract the mean of the channels, the direction of equal channels is mapped to
the student's, so that mapped states have a mapped mean. Of equal widths it is the identity.

Axes: row, teacher_width, student_width.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def stream_map(
    moments: Iterable[Float[Tensor, "teacher_width teacher_width"]],
    student_width: int,
    *,
    keeps_mean: bool,
) -> Float[Tensor, "student_width teacher_width"]:
    """Return the map, with orthonormal rows, in float64.

    Args:
        moments: Second moments of the teacher's states at each depth.
        student_width: Width of the student's states; at most the teacher's.
        keeps_mean: Whether the direction of equal channels is mapped to itself.
    """
    total = torch.stack([moment / moment.diagonal().sum() for moment in moments]).sum(0)
    width = len(total)
    if student_width == width:
        return torch.eye(width, dtype=total.dtype)
    if not keeps_mean:
        return _leading(total, student_width).mT
    ones = torch.full((width, 1), width**-0.5, dtype=total.dtype)
    centered = torch.eye(width, dtype=total.dtype) - ones @ ones.mT
    directions = torch.cat([ones, _leading(centered @ total @ centered, student_width - 1)], dim=1)
    return _to_ones(student_width, total.dtype) @ directions.mT


def _leading(moment: Tensor, number: int) -> Tensor:
    """Return the leading eigenvectors as columns, largest first, with fixed signs."""
    _, vectors = torch.linalg.eigh(moment)
    leading = vectors[:, len(vectors) - number :].flip(1)
    largest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
    signed: Tensor = leading * largest.sign()
    return signed


def _to_ones(width: int, dtype: torch.dtype) -> Tensor:
    """Return the reflection that takes the first unit vector to the direction of equal channels."""
    ones = torch.full((width,), width**-0.5, dtype=dtype)
    normal = -ones
    normal[0] += 1
    if not normal.norm():
        return torch.eye(width, dtype=dtype)
    normal /= normal.norm()
    return torch.eye(width, dtype=dtype) - 2 * torch.outer(normal, normal)
