"""Random projections of teacher states to the student's width.

Each layer pair has a fixed random linear map A, sampled once. All laws here satisfy one invariant:
for each teacher state h, the expected mean square of A h over the distribution of A is the mean
square of h. Hence the scale of a target depends neither on the law nor on the student's width, and
losses of different pairs are comparable. `Identity` satisfies it without sampling.

`Learned` differs: a trained map on the student's side with such a random initial value; and
`ChannelSelection` of channels, which is computed from the teacher's states.

Axes: student_width, teacher_width, word (a raw 64-bit random number), entry (of a matrix, counted
row by row), vector and coordinate (of the vectors to orthonormalize).

Design: a matrix is a pure function of (seed, law, name, widths, dtype). It uses the raw
words of the Philox counter generator, a published and fixed algorithm, and all later operations are
IEEE operations in a fixed order: the streams of `Generator.normal` and the rounding of a linear
algebra library may change with a version, a processor or a thread count. Matrices are computed on
the CPU in float64, then cast, so that they are equal on all devices and ranks.

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Figures 1 and 2: a random projection to the
        student's width. The paper does not state the law; variance 1 / teacher_width is ours.
    [S11] Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (Philox4x64-10).
    [M07] Mezzadri 2007, arXiv math-ph/0609050: orthogonal matrices from Gaussian ones.
    [R14] Romero et al. 2014, FitNets, arXiv 1412.6550, section 2.2: a trained regressor.
"""

import math
from typing import Annotated, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt64
from pydantic import Field
from torch import Tensor

from curricle.errors import BindError
from curricle.memory import check_memory
from curricle.objectives.adapters import LinearMap
from curricle.objectives.channel_selection import ChannelSelection
from curricle.seeding import derive
from curricle.values import value

SHARED = "shared"
"""Name of the projection shared by several layer pairs."""


@final
@value
class Gaussian:
    """Independent normal entries with mean 0 and variance scale^2 / teacher_width."""

    kind: Literal["gaussian"] = "gaussian"
    scale: float = Field(default=1.0, gt=0)
    """Factor of all entries; no effect if states are normalized after the projection."""

    def matrix(
        self,
        *,
        seed: int,
        name: str,
        student_width: int,
        teacher_width: int,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "student_width teacher_width"]:
        """Return the matrix of one layer pair.

        Args:
            seed: Seed of the run.
            name: Name of the layer pair; matrices of different names are independent.
            student_width: Number of rows.
            teacher_width: Number of columns.
            dtype: Type of the result; entries are computed in float64.

        Source:
            [GK25], [S11]; normals by the transform of Box and Muller.
        """
        key = derive(seed, f"projection/{self.kind}/{name}", student_width, teacher_width)
        normals = _normals(key, student_width * teacher_width)
        entries = normals.reshape(student_width, teacher_width) / math.sqrt(teacher_width)
        return torch.from_numpy(self.scale * entries).to(dtype)


@final
@value
class Sign:
    """Independent entries of magnitude 1 / sqrt(teacher_width) with random signs (Rademacher)."""

    kind: Literal["sign"] = "sign"

    def matrix(
        self,
        *,
        seed: int,
        name: str,
        student_width: int,
        teacher_width: int,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "student_width teacher_width"]:
        """Return the matrix of one layer pair.

        Args:
            seed: Seed of the run.
            name: Name of the layer pair; matrices of different names are independent.
            student_width: Number of rows.
            teacher_width: Number of columns.
            dtype: Type of the result; entries are computed in float64.

        Source:
            [GK25], [S11].
        """
        key = derive(seed, f"projection/{self.kind}/{name}", student_width, teacher_width)
        signs = _signs(key, student_width * teacher_width)
        entries = signs.reshape(student_width, teacher_width) / math.sqrt(teacher_width)
        return torch.from_numpy(entries).to(dtype)


@final
@value
class Orthogonal:
    """Orthonormal rows, or columns if the student is wider, uniform over all such matrices.

    If the student is wider than its teacher, columns have norm sqrt(student_width /
    teacher_width), which preserves the mean square exactly. The time grows with
    max(width) * min(width)**2: about 0.2 s at 256 x 768, 15 s at 1024 x 4096.
    """

    kind: Literal["orthogonal"] = "orthogonal"

    def matrix(
        self,
        *,
        seed: int,
        name: str,
        student_width: int,
        teacher_width: int,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "student_width teacher_width"]:
        """Return the matrix of one layer pair.

        Args:
            seed: Seed of the run.
            name: Name of the layer pair; matrices of different names are independent.
            student_width: Number of rows.
            teacher_width: Number of columns.
            dtype: Type of the result; entries are computed in float64.

        Source:
            [M07] with Gram-Schmidt in place of Householder reflections; scale ours.
        """
        long, short = max(student_width, teacher_width), min(student_width, teacher_width)
        key = derive(seed, f"projection/{self.kind}/{name}", student_width, teacher_width)
        vectors = _orthonormal(_normals(key, long * short).reshape(long, short))
        entries = vectors.T if student_width <= teacher_width else vectors
        # A unit row captures 1 / teacher_width of the squared norm in expectation. Unit columns
        # preserve the norm, but distribute it over more coordinates than the teacher has.
        scaled = entries * math.sqrt(long / teacher_width)
        return torch.from_numpy(np.ascontiguousarray(scaled)).to(dtype)


@final
@value
class Identity:
    """No projection: the student is compared with the teacher's coordinates."""

    kind: Literal["identity"] = "identity"

    def matrix(
        self,
        *,
        seed: int,  # noqa: ARG002 - the laws share one signature
        name: str,
        student_width: int,
        teacher_width: int,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "student_width teacher_width"]:
        """Return the identity matrix, which requires equal widths.

        Args:
            seed: Seed of the run; not used.
            name: Name of the layer pair, for the error message.
            student_width: Number of rows.
            teacher_width: Number of columns.
            dtype: Type of the entries.

        Raises:
            BindError: If the widths differ.
        """
        if student_width != teacher_width:
            raise BindError(
                f"{name!r} with projection 'identity' must pair equal widths; got student width "
                f"{student_width} and teacher width {teacher_width}; use 'gaussian', 'sign' or "
                f"'orthogonal'"
            )
        return torch.eye(student_width, dtype=dtype)


@final
@value
class Learned:
    """A linear map from the student's width to the teacher's, trained with the student.

    A trained map of the teacher's state is not offered: the loss would be zero if map and student
    both vanished.
    """

    kind: Literal["learned"] = "learned"

    def adapter(self, *, seed: int, name: str, student_width: int, teacher_width: int) -> LinearMap:
        """Return the map with its initial values: normal, mean 0 and variance 1 / student_width.

        Args:
            seed: Seed of the run.
            name: Name of the layer pair; initial values of different names are independent.
            student_width: Number of columns.
            teacher_width: Number of rows.

        Source:
            [R14]. Deviation: only a matrix, without convolution and bias.
        """
        key = derive(seed, f"projection/{self.kind}/{name}", student_width, teacher_width)
        normals = _normals(key, student_width * teacher_width)
        entries = normals.reshape(teacher_width, student_width) / math.sqrt(student_width)
        return LinearMap(torch.from_numpy(entries).float())


Projection = Annotated[
    Gaussian | Sign | Orthogonal | Identity | Learned | ChannelSelection,
    Field(discriminator="kind"),
]
"""Field type of a projection; `kind` selects the law."""


def _words(key: int, count: int) -> UInt64[np.ndarray, " word"]:
    """Return the first words of the Philox4x64-10 stream of a key, from counter 1 on."""
    words: UInt64[np.ndarray, " word"] = np.random.Philox(key=key, counter=0).random_raw(count)
    return words


def _signs(key: int, count: int) -> Float64[np.ndarray, " entry"]:
    """Return random signs: entry e reads bit e % 64 of word e // 64, lowest first; 1 is plus."""
    check_memory(8 * count, f"a projection of {count:,} entries in float64")
    words = _words(key, math.ceil(count / 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=count, bitorder="little")
    return 2.0 * bits - 1.0


def _normals(key: int, count: int) -> Float64[np.ndarray, " entry"]:
    """Return standard normals by the transform of Box and Muller.

    Words 2 i and 2 i + 1 become uniforms u and v, the centers of 2**52 equal cells of (0, 1), and
    entries 2 i and 2 i + 1 are sqrt(-2 log u) times the cosine and the sine of 2 pi v.
    """
    check_memory(8 * count, f"a projection of {count:,} entries in float64")
    words = _words(key, count + count % 2)
    uniforms = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    radius = np.sqrt(-2.0 * np.log(uniforms[0::2]))
    angle = 2.0 * math.pi * uniforms[1::2]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]
    # Logarithm and cosine differ in the last bit between processors; rounding to 24 bits hides it.
    return normals.astype(np.float32).astype(np.float64)


def _orthonormal(
    vectors: Float64[np.ndarray, "coordinate vector"],
) -> Float64[np.ndarray, "coordinate vector"]:
    """Return the vectors (columns) after modified Gram-Schmidt orthonormalization.

    The result is uniform (Haar), because each residual keeps its direction [M07]. The error grows
    linearly with the condition number; for normal entries the columns are orthogonal up to about
    1e-12, far below the rounding of float32.
    """
    basis = vectors.copy()
    for index in range(basis.shape[1]):
        current = basis[:, index].copy()
        products = _sum_rows(current[:, None] * basis[:, index:])
        basis[:, index + 1 :] -= current[:, None] * (products[1:] / products[0])
        basis[:, index] = current / np.sqrt(products[0])
    return basis


def _sum_rows(
    terms: Float64[np.ndarray, "coordinate vector"],
) -> Float64[np.ndarray, " vector"]:
    """Return the sum over rows by pairwise summation of halves.

    The order is explicit, because that of numpy depends on the memory layout and the version.
    """
    while len(terms) > 1:
        half = len(terms) // 2
        folded = terms[:half] + terms[half : 2 * half]
        terms = np.concatenate([folded, terms[2 * half :]])
    total: Float64[np.ndarray, " vector"] = terms[0]
    return total
