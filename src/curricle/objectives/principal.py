"""Which linear map to a narrower width loses least of some vectors?

The one onto their principal components. Unlike the laws of `projections`, which know nothing but
widths and a seed, it is made from the vectors themselves, say the rows of an embedding table.

Axes: row, teacher_width, student_width.

Design: the components are those of the rows as they are, not of their deviations from the mean. So
the map is linear, rows that are added (a token's and its position's) may be mapped one by one, and
by the theorem of Eckart and Young no map of this rank keeps more of the rows' inner products, which
are what a table that is tied to the output is used for. Computed in float64 on the CPU; signs are
fixed, since a linear algebra library may return either.

References:
    [EY36] Eckart and Young 1936, The approximation of one matrix by another of lower rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from curricle.errors import BindError


def principal_map(
    rows: Float[Tensor, "row teacher_width"], student_width: int
) -> Float[Tensor, "student_width teacher_width"]:
    """Return the scaled principal components of some rows, largest first.

    The rows of the map are orthogonal and of one length, chosen so that the mapped rows have the
    mean square of the rows: the invariant of every projection here, held exactly.

    Args:
        rows: Vectors to be mapped.
        student_width: Number of components; at most the number of rows and their width.

    Raises:
        BindError: If there are not as many components, or if the rows are all zero.

    Source:
        [EY36]; scale ours.
    """
    most = min(rows.shape)
    if student_width > most:
        raise BindError(
            f"'start' by principal components must have at least {student_width} of them for the "
            f"student's width; the teacher's {rows.shape[0]} x {rows.shape[1]} table has {most}"
        )
    table = rows.detach().to("cpu", torch.float64)
    size = table.square().mean()
    if not size > 0:
        raise BindError("'start' by principal components must have a teacher table that is not 0")
    # Eigenvectors come with their values ascending.
    _, vectors = torch.linalg.eigh(table.mT @ table)
    components = vectors[:, -student_width:].flip(1).mT
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    kept = (table @ components.mT).square().mean()
    scaled: Tensor = components * (size / kept).sqrt()
    return scaled.to(torch.float32)
