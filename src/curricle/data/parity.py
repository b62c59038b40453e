"""What are the data of the sparse-parity experiments?

x is uniform in {-1, +1}^d; the label is 0 if the product of the support's coordinates is +1 and 1
otherwise. Samples are fresh at every step: there is no training set to run out of.

Axes: example, input.

Design: drawing one small batch costs more in calls than in numbers, so batches are drawn in
blocks of steps. The block of a step is a function of (seed, step), hence so is its batch.

Source:
    Panigrahi et al. 2024 (arXiv 2410.05464), section on sparse parity: d = 100, support = the
    first k coordinates. Deviation: none.
"""

from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from curricle.data.streams import Batch
from curricle.errors import SpecError
from curricle.seeding import numpy_generator
from curricle.specs import fingerprint

BLOCK_EXAMPLES: Final = 16_384
"""Examples drawn at once; about 6 MB at 100 inputs."""


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
    ) -> None:
        """Declare the stream; nothing is drawn yet.

        Args:
            num_inputs: d, the number of coordinates.
            degree: k, the number of coordinates in the support.
            batch_size: Examples a step.
            seed: Seed of the run.
            purpose: Names the stream, so that training and evaluation differ.

        Raises:
            SpecError: If the support is empty or larger than the input.
        """
        if not 0 < degree <= num_inputs:
            raise SpecError(
                f"'degree' must lie between 1 and 'num_inputs' {num_inputs}; got {degree}"
            )
        self._shape = (max(1, BLOCK_EXAMPLES // batch_size), batch_size, num_inputs)
        self._degree = degree
        self._seed = seed
        self._purpose = f"parity/{purpose}"
        self._block: tuple[int, Tensor, Tensor] | None = None

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self._shape[1]

    @property
    def tokens_per_batch(self) -> int:
        """Return the batch size: parity has no positions."""
        return self._shape[1]

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything the batches depend on."""
        return fingerprint([*self._shape, self._degree, self._seed, self._purpose])

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        number, row = divmod(step, self._shape[0])
        if self._block is None or self._block[0] != number:
            self._block = (number, *self._draw(number))
        _, inputs, labels = self._block
        return Batch(inputs=inputs[row], labels=labels[row])

    def _draw(
        self, number: int
    ) -> tuple[Float[Tensor, "step example input"], Int[Tensor, "step example"]]:
        size = int(np.prod(self._shape))
        words = numpy_generator(self._seed, self._purpose, number).bytes(-(-size // 8))
        bits = np.unpackbits(np.frombuffer(words, np.uint8), count=size).reshape(self._shape)
        labels = np.bitwise_xor.reduce(bits[..., : self._degree], axis=-1)
        inputs = torch.from_numpy(bits).to(torch.float32).mul_(-2).add_(1)
        return inputs, torch.from_numpy(labels.astype(np.int64))
