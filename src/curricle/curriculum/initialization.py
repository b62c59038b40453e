"""Warm starts: initialization of the student's embeddings from the teacher's.

A *warm start* maps the finished teacher's embeddings to the student's by a linear map, in closed
form and before the first step. `kind` selects the map: `random` is the shared projection of the
layers, so that the student's initial states are in the coordinates of its first targets;
`principal` is the map with the least reconstruction error of the teacher's token table.
`training.binding.starting` finds the embeddings of both models.

Axes: row, teacher_width, student_width.

Design: a start is a frozen value beside the stages, without duration, and only returns a map.

Source:
    None; ours.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from curricle.errors import BindError
from curricle.objectives.principal import principal_map
from curricle.objectives.projections import SHARED, Gaussian, Identity, Orthogonal, Sign
from curricle.values import value

START = "warm start"
"""Name of a start among the stages, as a stage of zero steps."""
FixedProjection = Annotated[
    Gaussian | Sign | Orthogonal | Identity,
    Field(discriminator="kind"),
]
"""Field type of a fixed projection."""
Map = Callable[[Float[Tensor, "row teacher_width"]], Float[Tensor, "student_width teacher_width"]]
"""Linear map as a function of the teacher's rows."""


@final
@value
class RandomStart:
    """Start from the teacher's embeddings by the random projection shared by the layers."""

    kind: Literal["random"] = "random"
    projection: FixedProjection = Gaussian()
    """Law of the random map; equal to that of the layers with a shared projection."""

    def map(self, *, seed: int, student_width: int, teacher_width: int) -> Map:
        """Return a function that ignores its rows and returns the matrix, which is sampled now.

        Args:
            seed: Seed of the run.
            student_width: Number of rows of the map.
            teacher_width: Number of its columns.
        """
        matrix = self.projection.matrix(
            seed=seed, name=SHARED, student_width=student_width, teacher_width=teacher_width
        )
        return lambda _rows: matrix

    @property
    def law(self) -> str:
        """Return the law of the map in words."""
        return f"{self.projection.kind} shared"


@final
@value
class PrincipalStart:
    """Start from the principal components of the teacher's embeddings."""

    kind: Literal["principal"] = "principal"

    def map(
        self,
        *,
        seed: int,  # noqa: ARG002 - both kinds share one signature
        student_width: int,
        teacher_width: int,
    ) -> Map:
        """Return a function from the rows to their map.

        Args:
            seed: Seed of the run; not used.
            student_width: Number of rows of the map.
            teacher_width: Number of its columns.

        Raises:
            BindError: If the student is wider than the teacher.
        """
        if student_width > teacher_width:
            raise BindError(
                f"'init' by principal components needs a student no wider than its teacher; got "
                f"widths {student_width} and {teacher_width}"
            )
        return partial(principal_map, student_width=student_width)

    @property
    def law(self) -> str:
        """Return the law of the map in words."""
        return self.kind


WarmStart = Annotated[RandomStart | PrincipalStart, Field(discriminator="kind")]
"""Field type of a warm start, selected by `kind`."""
