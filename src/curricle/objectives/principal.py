"""Linear map of vectors onto their principal components.

Among all linear maps to a narrower width it has the least reconstruction error. Unlike the laws of
`projections`, which depend on widths and a seed only, it is computed from the vectors themselves,
such as the rows of an embedding table.

Axes: row, teacher_width, student_width.

Design: the rows are not centered. Hence the map is linear, summands of a row (the embeddings of a
token and of its position) may be mapped separately, and by the theorem of Eckart and Young no map
of this rank preserves the rows' inner products better; a table tied to the output layer is used for
these. Computed in float64 on the CPU; signs are fixed, since a linear algebra library may return
either.

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

    The rows of the map are orthogonal and of equal length, scaled so that the mapped rows have the
    same mean square as the rows: the invariant of every projection here, exactly satisfied.

    Args:
        rows: Vectors to map.
        student_width: Number of components; at most the number of rows and their width.

    Raises:
        BindError: If there are fewer components, or if the rows are all zero.

    Source:
        [EY36]; scale ours.
    """
    num_components = min(rows.shape)
    if student_width > num_components:
        raise BindError(
            f"'init' by principal components needs {student_width} components for the student's "
            f"width; the teacher's {rows.shape[0]} x {rows.shape[1]} table has {num_components}"
        )
    table = rows.detach().to("cpu", torch.float64)
    size = table.square().mean()
    if not size > 0:
        raise BindError("'init' by principal components needs a nonzero teacher table")
    # `eigh` returns eigenvectors by ascending eigenvalue.
    _, vectors = torch.linalg.eigh(table.mT @ table)
    components = vectors[:, -student_width:].flip(1).mT
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    mapped_size = (table @ components.mT).square().mean()
    scaled: Tensor = components * (size / mapped_size).sqrt()
    return scaled.to(torch.float32)
