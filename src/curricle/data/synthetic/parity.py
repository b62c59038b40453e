"""Data of the sparse-parity experiments.

x is uniform in {-1, +1}^d; the label is 0 if the product of the support's coordinates is +1 and 1
otherwise. Every step has fresh samples instead of a finite training set.

With `depth` D > 1 the label is one of the 2^D leaves of a complete binary tree. Its inner node v
(the root is 1, the children of v are 2v and 2v + 1) has k coordinates of its own, from (v - 1) k
on, and the path goes left if their product is +1. Depth 1 is the plain parity.

Models with token ids get 0 for +1 and 1 for -1, and the label belongs to the last position.

Axes: example, input.

Design: a small batch takes longer for its calls than for its numbers, so batches are drawn in
blocks of steps. The block of a step is a function of (seed, step), hence so is its batch.

Source:
    Panigrahi et al. 2024 (arXiv 2410.05464), sections on sparse parity (d = 100, support = the
    first k coordinates) and on its hierarchical generalization. Deviation: leaves are numbered
    from left to right.
"""

from typing import Final, Literal, final

import numpy as np
import torch
from jaxtyping import Int, Int64, Shaped, UInt8
from torch import Tensor

from curricle.data.batch import Batch
from curricle.errors import SpecError
from curricle.memory import check_memory
from curricle.seeding import numpy_generator
from curricle.values import fingerprint

BLOCK_EXAMPLES: Final = 16_384
"""Examples of a block; about 6 MB at 100 inputs."""
Encoding = Literal["signs", "tokens"]
"""Form of a bit: -1 or +1, or a token id."""


@final
class ParityStream:
    """Fresh samples of a k-sparse parity of d bits."""

    def __init__(
        self,
        *,
        num_inputs: int,
        degree: int,
        batch_size: int,
        seed: int,
        purpose: str = "train",
        depth: int = 1,
        encoding: Encoding = "signs",
    ) -> None:
        """Declare the stream without drawing samples.

        Args:
            num_inputs: d, the number of coordinates.
            degree: k, the number of coordinates of a parity.
            batch_size: Examples a step.
            seed: Seed of the run.
            purpose: Name of the stream, so that training and evaluation differ.
            depth: D, levels of the tree of parities; the label is one of 2^D.
            encoding: Form of the coordinates.

        Raises:
            SpecError: If the parities have no coordinates, or more than there are.
            BindError: If a batch would not fit into memory.
        """
        if depth < 1:
            raise SpecError(f"'depth' must be at least 1; got {depth}")
        if not 0 < degree * (2**depth - 1) <= num_inputs:
            nodes = "" if depth == 1 else f" divided by the {2**depth - 1} parities of the tree"
            raise SpecError(
                f"'degree' must lie between 1 and 'num_inputs' {num_inputs}{nodes}; got {degree}"
            )
        check_memory(
            4 * batch_size * num_inputs, f"a batch of {batch_size:,} examples of {num_inputs} bits"
        )
        self._shape = (max(1, BLOCK_EXAMPLES // batch_size), batch_size, num_inputs)
        self._degree, self._depth = degree, depth
        self._encoding = encoding
        self._seed = seed
        self._purpose = f"parity/{purpose}"
        self._block: tuple[int, Tensor, Tensor] | None = None
        ends = torch.arange(1, batch_size + 1) * num_inputs - 1
        self._selected = ends if encoding == "tokens" else None

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self._shape[1]

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions, which are the examples unless bits are tokens."""
        return self._shape[1] * (self._shape[2] if self._encoding == "tokens" else 1)

    @property
    def fingerprint(self) -> str:
        """Return a digest of all dependencies of the batches."""
        # A plain parity keeps its digest of earlier versions.
        form = (
            [] if (self._depth, self._encoding) == (1, "signs") else [self._depth, self._encoding]
        )
        return fingerprint([*self._shape, self._degree, self._seed, self._purpose, *form])

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        _, inputs, labels = self._drawn(step)
        row = step % self._shape[0]
        return Batch(inputs=inputs[row], labels=labels[row], selected=self._selected, step=step)

    def concatenated(self, step: int, number: int) -> Batch | None:
        """Return the concatenated batches of steps; None if they are of several blocks."""
        first = step % self._shape[0]
        if self._selected is not None or first + number > self._shape[0]:
            return None
        _, inputs, labels = self._drawn(step)
        rows = slice(first, first + number)
        return Batch(inputs=inputs[rows].flatten(0, 1), labels=labels[rows].flatten())

    def _drawn(self, step: int) -> tuple[int, Tensor, Tensor]:
        number = step // self._shape[0]
        if self._block is None or self._block[0] != number:
            self._block = (number, *self._draw(number))
        return self._block

    def _draw(
        self, number: int
    ) -> tuple[Shaped[Tensor, "step example input"], Int[Tensor, "step example"]]:
        size = int(np.prod(self._shape))
        words = numpy_generator(self._seed, self._purpose, number).bytes(-(-size // 8))
        bits = np.unpackbits(np.frombuffer(words, np.uint8), count=size).reshape(self._shape)
        labels = torch.from_numpy(_leaves(bits, self._degree, self._depth))
        if self._encoding == "tokens":
            return torch.from_numpy(bits).long(), labels
        return torch.from_numpy(bits).to(torch.float32).mul_(-2).add_(1), labels


def _leaves(
    bits: UInt8[np.ndarray, "step example input"], degree: int, depth: int
) -> Int64[np.ndarray, "step example"]:
    """Return the leaf of each example: the parity at every node selects the next one."""
    parities = [
        np.bitwise_xor.reduce(bits[..., start : start + degree], axis=-1)
        for start in range(0, (2**depth - 1) * degree, degree)
    ]
    if depth == 1:
        plain: Int64[np.ndarray, "step example"] = parities[0].astype(np.int64)
        return plain
    node = np.ones(bits.shape[:-1], np.int64)
    for _ in range(depth):
        node = 2 * node + np.take_along_axis(np.stack(parities), node[None] - 1, axis=0)[0]
    leaves: Int64[np.ndarray, "step example"] = node - 2**depth
    return leaves
