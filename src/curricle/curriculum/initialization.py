"""Warm starts: initialization of the student from its teacher.

A *warm start* sets weights of the student in closed form, before the first step. `random` and
`principal` map the finished teacher's embeddings to the student's: by the shared projection of the
layers, so that the student's initial states are in the coordinates of its first targets, or by the
map with the least reconstruction error of the teacher's token table. `selection` takes the channels
of the teacher's states with the most energy. `least_squares` fits all blocks, embeddings and the
head; `guide` is its form with the first block alone. `training.binding.starting` binds them to the
models.

Axes: row, teacher_width, student_width.

Design: a start is a frozen value beside the stages, without duration, and only returns a map.

References:
    [RED] arXiv 2605.29327, which starts the width-reducing projections of Low-Rank Clone
        (arXiv 2505.12781) as a selection of channels by activations.

Source:
    None; ours, but for `selection`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal, final

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from curricle.errors import BindError, SpecError
from curricle.objectives.channel_selection import largest_channels
from curricle.objectives.logits import is_none
from curricle.objectives.principal import principal_map
from curricle.objectives.projections import SHARED, Gaussian, Identity, Orthogonal, Sign
from curricle.values import value

MOST_BATCHES = 10_000
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
        _check_narrower(student_width, teacher_width, way="principal components")
        return partial(principal_map, student_width=student_width)

    @property
    def law(self) -> str:
        """Return the law of the map in words."""
        return self.kind


@final
@value
class SelectionStart:
    """Start from the channels of the teacher's embeddings whose activations have most energy.

    Source:
        [RED]. Deviation: the selection sets embeddings, as those of the other starts do, and no
        projections of weights; channels are chosen by their mean square at all depths, each depth
        weighed alike.
    """

    kind: Literal["selection"] = "selection"
    batches: int = Field(gt=0, le=MOST_BATCHES, default=4)
    """Batches of the training data on which the teacher's activations are read; their examples and
    FLOPs count as usage of the run. Of an `MLP` the batches of its fit are read in their place."""

    def map(
        self,
        *,
        seed: int,  # noqa: ARG002 - all kinds share one signature
        student_width: int,
        teacher_width: int,
    ) -> Map:
        """Return a function from activations to the map.

        Args:
            seed: Seed of the run; not used.
            student_width: Number of rows of the map.
            teacher_width: Number of its columns.

        Raises:
            BindError: If the student is wider than the teacher.
        """
        _check_narrower(student_width, teacher_width, way="selection")
        return partial(_selection_map, student_width=student_width)

    @property
    def law(self) -> str:
        """Return the law of the map in words."""
        return self.kind


def _check_narrower(student_width: int, teacher_width: int, *, way: str) -> None:
    """Check that a map keeps channels or directions, of which the teacher has enough.

    Raises:
        BindError: If the student is wider than the teacher.
    """
    if student_width > teacher_width:
        raise BindError(
            f"'init' by {way} needs a student no wider than its teacher; got widths "
            f"{student_width} and {teacher_width}; take 'random', which maps to any width, or a "
            f"student of width {teacher_width} or less"
        )


def _selection_map(
    rows: Float[Tensor, "row teacher_width"], student_width: int
) -> Float[Tensor, "student_width teacher_width"]:
    """Return the map onto the channels with the largest sum of squares, in their order."""
    energies = rows.detach().to("cpu", torch.float64).square().sum(0)
    return torch.eye(len(energies))[list(largest_channels(energies, student_width))]


@final
@value
class LeastSquaresStart:
    """Fit the embeddings, every block and the head to the teacher's by linear least squares.

    Blocks are paired as by `evenly_spaced_pairs`; heads, neurons and directions of the states are
    those that carry most of the teacher's. See `least_squares` for the method.

    With `blocks=1`, by name `guide`, it is the start of GUIDE: the embeddings by their principal
    components and the first block. `principal` sets the embeddings alone.

    Source:
        Ours. `guide`: Trinh, Menghani and Vee 2025 (arXiv 2510.06502). Deviations: the components
        are those of the states that enter the block, so that tokens count by their frequency; the
        first block is fitted by least squares with heads and neurons chosen by energy, where the
        paper maps its inputs by a fitted matrix and selects the other axes evenly; an output that
        is not tied to the token table is mapped as the table is.
    """

    kind: Literal["least_squares"] = "least_squares"
    batches: int = Field(gt=0, le=MOST_BATCHES, default=12)
    """Batches of the training data that the fit reads. They should hold some ten times as many
    positions as the widest map has inputs; their examples and FLOPs count as usage of the run."""
    blocks: int | None = Field(gt=0, default=None, exclude_if=is_none)
    """Leading blocks that are fitted; None fits all. With a number, the directions of the states
    are those of the inputs of these blocks; later blocks and normalizations stay as drawn, and the
    output is the teacher's with these directions."""


MappedStart = RandomStart | PrincipalStart | SelectionStart
"""Starts that map the teacher's embeddings to the student's."""
ClosedForm = MappedStart | LeastSquaresStart
"""A start whose method is fixed."""


@final
@value
class AutoStart:
    """Begin with the first start that the models allow; with none of them as drawn.

    The order is least squares, random, principal. The random start is in the coordinates of layers
    with a shared Gaussian projection, which a layer stage after it continues. The plan has a note
    on the choice and the reasons against the starts before it.
    """

    kind: Literal["auto"] = "auto"

    @property
    def candidates(self) -> tuple[ClosedForm, ...]:
        """Return the starts in the order in which they are tried."""
        return (LeastSquaresStart(), RandomStart(), PrincipalStart())


Start = ClosedForm | AutoStart
WarmStart = Annotated[Start, Field(discriminator="kind")]
"""Field type of a warm start, selected by `kind`."""
EMBEDDINGS = "the embeddings alone"
STARTS: Mapping[str, tuple[Callable[[], Start], str]] = MappingProxyType(
    {
        "random": (RandomStart, EMBEDDINGS),
        "principal": (PrincipalStart, EMBEDDINGS),
        "selection": (SelectionStart, EMBEDDINGS),
        "least_squares": (LeastSquaresStart, "embeddings, blocks and head"),
        "guide": (partial(LeastSquaresStart, blocks=1), "the embeddings and the first block"),
        "auto": (AutoStart, "the first that fits of least_squares, random and principal"),
    }
)
"""Warm starts, and parts of the student that a start sets, by name."""


def warm_start(start: Start | str | None) -> Start | None:
    """Return a start given as a value or by its name.

    Raises:
        SpecError: If no start has the name.
    """
    if not isinstance(start, str):
        return start
    try:
        return _start_of_name(start)
    except ValueError as error:
        raise SpecError(f"'init' {error}") from None


def _start_of_name(name: str) -> Start:
    """Return the start of a name.

    Raises:
        ValueError: If no start has it, without the name of the field: a parsed value has its path.
    """
    if name not in STARTS:
        names = ", ".join(f"{known!r} ({reach})" for known, (_, reach) in STARTS.items())
        raise ValueError(f"must be one of {names}; got {name!r}")
    make, _ = STARTS[name]
    return make()


def start_before_layers(start: Start | str | None, *, shares_projection: bool) -> Start | None:
    """Return a start, given as a value or by its name, of a curriculum with layer pairs.

    Args:
        start: The start or its name.
        shares_projection: Whether the layer pairs have one projection.

    Raises:
        SpecError: If the start is random and its projection is not that of the layers.
    """
    init = warm_start(start)
    if isinstance(init, RandomStart) and not shares_projection:
        raise SpecError(
            f"'shared_projection' must be true with a random 'init', so that the layers use its "
            f"projection; got {shares_projection}"
        )
    return init


def _named(start: object) -> object:
    """Return a start for its name, and everything else as it is.

    Raises:
        ValueError: If no start has the name.
    """
    return _start_of_name(start) if isinstance(start, str) else start


if TYPE_CHECKING:
    StartText = Start | str
else:
    StartText = Annotated[WarmStart, BeforeValidator(_named)]
    """Type of a `checked` function's argument: accepts a name, passes a start."""
