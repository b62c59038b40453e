"""From which weights does a student start, if not from random ones?

A *warm start* sets the student's embeddings from the finished teacher's through one linear map,
in closed form and before the first step. Two ways to choose the map, told apart by `kind`:
`random` is the projection that layers with a shared projection are compared through, so a student
that starts in it finds its first targets in its own coordinates; `principal` is the map that
loses least of the teacher's token table. What is set in which model is found by
`training.starting`.

Axes: row, teacher_width, student_width.

Design: a start is a frozen value beside the stages, with no duration, and yields nothing but a map.

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
from curricle.specs import value

START = "warm start"
"""Name under which a start stands beside the stages, as one of zero steps."""
FixedProjection = Annotated[
    Gaussian | Sign | Orthogonal | Identity,
    Field(discriminator="kind"),
]
"""Field type of a projection that nothing trains."""
Map = Callable[[Float[Tensor, "row teacher_width"]], Float[Tensor, "student_width teacher_width"]]
"""Gives the linear map for the teacher's rows."""


@final
@value
class RandomStart:
    """Start from the teacher's embeddings through the random projection that layers share."""

    kind: Literal["random"] = "random"
    projection: FixedProjection = Gaussian()
    """Law of the random map; that of the layers that share a projection."""

    def map(self, *, seed: int, student_width: int, teacher_width: int) -> Map:
        """Return what gives the map: the same for all rows, drawn now.

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
        """Return what gives the map, which depends on the rows.

        Args:
            seed: Seed of the run; nothing is drawn.
            student_width: Number of rows of the map.
            teacher_width: Number of its columns.

        Raises:
            BindError: If the student is wider than the teacher.
        """
        if student_width > teacher_width:
            raise BindError(
                f"'start' by principal components must have a student that is not wider than its "
                f"teacher; got widths {student_width} and {teacher_width}"
            )
        return partial(principal_map, student_width=student_width)

    @property
    def law(self) -> str:
        """Return the law of the map in words."""
        return self.kind


WarmStart = Annotated[RandomStart | PrincipalStart, Field(discriminator="kind")]
"""Field type of a warm start; `kind` tells the two apart."""
