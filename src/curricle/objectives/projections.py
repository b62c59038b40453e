"""How does a wide teacher state become a target of the student's width?

By a fixed random linear map A, drawn once for each layer pair. Every law here keeps one invariant:
for each teacher state h the expected mean square of A h, over the draw of A, is the mean square of
h. So the scale of a target does not depend on the law or on the student's width, and losses of
different pairs can be compared. `Identity` keeps it without a draw.

`Learned` is the contrast: a trained map on the student's side, which only starts from such a draw.

Axes: student_width, teacher_width, word (a raw 64-bit random number), entry (of a matrix, counted
row by row), vector and coordinate (of the vectors that are made orthonormal).

Design: a matrix is a pure function of (seed, law, name, widths, dtype). It starts from the raw
words of the Philox counter generator, whose algorithm is published and fixed, and everything after
that is done here in IEEE operations of a fixed order: the streams of `Generator.normal` and the
rounding of a linear algebra library may change with a version, a processor or a thread count.
Matrices are made on the CPU in float64, then cast, so that all devices and ranks hold the same.

References:
    [GK25] Gupta and Karmalkar 2025, arXiv 2503.17494, Figures 1 and 2: a random projection to the
        student's width. The law is not printed there; variance 1 / teacher_width is ours.
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
from curricle.seeding import derive
from curricle.specs import value

SHARED = "shared"
"""Name of the projection that several layer pairs have in common."""


@final
@value
class Gaussian:
    """Independent normal entries with mean 0 and variance scale^2 / teacher_width."""

    kind: Literal["gaussian"] = "gaussian"
    scale: float = Field(default=1.0, gt=0)
    """Factor of all entries; without effect where states are normalized after the projection."""

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
            name: Name of the layer pair; another name gives an independent matrix.
            student_width: Number of rows.
            teacher_width: Number of columns.
            dtype: What the float64 entries are cast to.

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
            name: Name of the layer pair; another name gives an independent matrix.
            student_width: Number of rows.
            teacher_width: Number of columns.
            dtype: What the float64 entries are cast to.

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

    A student that is wider than its teacher gets columns of norm sqrt(student_width /
    teacher_width), which keeps the mean square exactly. The time grows with
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
            name: Name of the layer pair; another name gives an independent matrix.
            student_width: Number of rows.
            teacher_width: Number of columns.
            dtype: What the float64 entries are cast to.

        Source:
            [M07] with Gram-Schmidt in place of Householder reflections; scale ours.
        """
        long, short = max(student_width, teacher_width), min(student_width, teacher_width)
        key = derive(seed, f"projection/{self.kind}/{name}", student_width, teacher_width)
        vectors = _orthonormal(_normals(key, long * short).reshape(long, short))
        entries = vectors.T if student_width <= teacher_width else vectors
        # Unit rows see 1 / teacher_width of the squared norm in expectation; unit columns pass all
        # of it on, but spread over more coordinates than the teacher has.
        scaled = entries * math.sqrt(long / teacher_width)
        return torch.from_numpy(np.ascontiguousarray(scaled)).to(dtype)


@final
@value
class Identity:
    """No projection: the student is compared with the teacher's own coordinates."""

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
        """Return the identity matrix, which needs equal widths.

        Args:
            seed: Seed of the run; nothing is drawn.
            name: Name of the layer pair, for the error sentence.
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

    The other direction, a trained map of the teacher's state, is not offered: there map and
    student agree perfectly at zero.
    """

    kind: Literal["learned"] = "learned"

    def adapter(self, *, seed: int, name: str, student_width: int, teacher_width: int) -> LinearMap:
        """Return the map with its first values: normal, mean 0 and variance 1 / student_width.

        Args:
            seed: Seed of the run.
            name: Name of the layer pair; another name gives independent first values.
            student_width: Number of columns.
            teacher_width: Number of rows.

        Source:
            [R14]. Deviation: a matrix alone, neither a convolution nor a bias.
        """
        key = derive(seed, f"projection/{self.kind}/{name}", student_width, teacher_width)
        normals = _normals(key, student_width * teacher_width)
        entries = normals.reshape(teacher_width, student_width) / math.sqrt(student_width)
        return LinearMap(torch.from_numpy(entries).float())


Projection = Annotated[
    Gaussian | Sign | Orthogonal | Identity | Learned,
    Field(discriminator="kind"),
]
"""Field type of a projection; `kind` tells the laws apart."""


def _words(key: int, count: int) -> UInt64[np.ndarray, " word"]:
    """Return the first words of the Philox4x64-10 stream of a key, which starts at counter 1."""
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
    # Logarithm and cosine differ in the last bit between processors; 24 bits hide that.
    return normals.astype(np.float32).astype(np.float64)


def _orthonormal(
    vectors: Float64[np.ndarray, "coordinate vector"],
) -> Float64[np.ndarray, "coordinate vector"]:
    """Return the vectors (columns) made orthonormal one after the other (Gram-Schmidt).

    Keeping the direction of what is left of each vector makes the result uniform (Haar) [M07].
    The modified form loses digits with the condition number only; for normal entries about 1e-12
    of orthogonality remains lost, far below the rounding of float32.
    """
    left = vectors.copy()
    for index in range(left.shape[1]):
        current = left[:, index].copy()
        products = _sum_rows(current[:, None] * left[:, index:])
        left[:, index + 1 :] -= current[:, None] * (products[1:] / products[0])
        left[:, index] = current / np.sqrt(products[0])
    return left


def _sum_rows(
    terms: Float64[np.ndarray, "coordinate vector"],
) -> Float64[np.ndarray, " vector"]:
    """Return the sum over rows, added in halves.

    The order is spelled out because numpy's own depends on the layout and its version.
    """
    while len(terms) > 1:
        half = len(terms) // 2
        folded = terms[:half] + terms[half : 2 * half]
        terms = np.concatenate([folded, terms[2 * half :]])
    total: Float64[np.ndarray, " vector"] = terms[0]
    return total
