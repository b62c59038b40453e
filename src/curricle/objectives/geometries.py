"""Distances between the geometries of two sets of hidden states, as sums over rows.

The states of student and teacher are rows of two matrices S and T, whose columns are centered over
the rows. Both distances are invariant to rotations and to the scale of either side, so that they
need neither a projection nor a normalization, and the widths may differ. The rules of `losses`
hold: float32 for low precision, gradient to the student only. A batch with fewer than two rows has
no geometry and adds 0.

Axes: row (counted positions of a batch), width (of a state), student_width, teacher_width.

Scale: each distance is one number per batch, multiplied by the number of rows, so that the mean
over rows, which a stage computes, is the distance itself.

References:
    [K19] Kornblith et al. 2019, arXiv 1905.00414: linear centered kernel alignment (CKA).
    [S22] Saha et al. 2022, Distilling representational similarity using CKA, BMVC 2022.
    [W21] Williams et al. 2021, arXiv 2110.14739: Procrustes distances of representations.
    [G25] arXiv 2509.25253: Procrustes distances as losses of distillation.
    [S66] Schoenemann 1966: the orthogonal Procrustes problem and its solution by singular values.
"""

import torch
from jaxtyping import Float
from torch import Tensor

FEWEST_ROWS = 2
"""Rows of a batch with a geometry."""
LEAST_NORM = 1e-12
"""Norm below which centered states count as equal; they then have distance 1 or 2 to all others."""


def cka_distance(
    student: Float[Tensor, "row student_width"], teacher: Float[Tensor, "row teacher_width"]
) -> Float[Tensor, ""]:
    """Return 1 - CKA of centered states, times the number of rows.

    CKA = |S' T|^2 / (|S' S| |T' T|), with Frobenius norms. It is 1 if one state is a rotated and
    scaled copy of the other.

    Args:
        student: The student's states S.
        teacher: The teacher's states T, of the same positions.

    Returns:
        Number of rows times a distance between 0 and 1; dimensionless.

    Source:
        [K19], as a loss in [S22].
    """
    if len(student) < FEWEST_ROWS:
        return student.sum() * 0.0
    centered, target = _centered(student, teacher)
    aligned = (centered.mT @ target).square().sum()
    norms = [torch.linalg.matrix_norm(states.mT @ states) for states in (centered, target)]
    distance: Tensor = 1.0 - aligned / (norms[0] * norms[1]).clamp_min(LEAST_NORM**2)
    return distance * len(student)


def procrustes_distance(
    student: Float[Tensor, "row student_width"], teacher: Float[Tensor, "row teacher_width"]
) -> Float[Tensor, ""]:
    """Return the squared distance after the best orthogonal map, times the number of rows.

    With centered states of Frobenius norm 1, the minimum of |S Q - T|^2 over all Q is
    2 - 2 |S' T|_*, with the nuclear norm. Q is orthogonal, or semi-orthogonal for different widths:
    it maps the narrower states isometrically into the wider space.

    Args:
        student: The student's states S.
        teacher: The teacher's states T, of the same positions.

    Returns:
        Number of rows times a squared distance between 0 and 2; dimensionless.

    Source:
        [S66], [W21], as a loss in [G25]. Deviation: both sides are scaled to norm 1, so that the
        loss does not depend on the scale of the states.
    """
    if len(student) < FEWEST_ROWS:
        return student.sum() * 0.0
    centered, target = (
        states / torch.linalg.matrix_norm(states).clamp_min(LEAST_NORM)
        for states in _centered(student, teacher)
    )
    # The gradient of the sum of singular values is U V', which needs no distinct values.
    nuclear = torch.linalg.svdvals(centered.mT @ target).sum()
    distance: Tensor = 2.0 - 2.0 * nuclear
    return distance * len(student)


def _centered(
    student: Float[Tensor, "row student_width"], teacher: Float[Tensor, "row teacher_width"]
) -> tuple[Float[Tensor, "row student_width"], Float[Tensor, "row teacher_width"]]:
    """Return both states in one precision, with columns of mean 0; the teacher's without gradient.

    Args:
        student: The student's states.
        teacher: The teacher's states.
    """
    wide = student if student.dtype in (torch.float32, torch.float64) else student.float()
    target = teacher.detach().to(wide.dtype)
    return wide - wide.mean(0), target - target.mean(0)
