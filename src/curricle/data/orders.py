"""Order of the examples of a loader's samplers, batch by batch.

An epoch's order is listed once. torch's own samplers are recognized, and their order is a tensor of
indexes: a list of lists of Python numbers takes minutes and gigabytes for millions of examples.
Every other sampler is iterated over.

Design: a recognized sampler draws the same random numbers as torch's code, so that orders, and with
them the results of runs, do not depend on their form.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import final, overload

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

LISTED_EXAMPLES = 2**20
"""Maximum number of examples of an order with the digest of its list, as in earlier versions."""
Key = object
"""Key of an example in its data set, usually a number."""


@final
class IndexOrder(Sequence[list[int]]):
    """Batches of an order, as a tensor."""

    def __init__(self, indexes: Int64[Tensor, " example"], batch_size: int) -> None:
        """Set the order.

        Args:
            indexes: Indexes of all examples in order.
            batch_size: Examples of a batch; the last batch may be smaller.
        """
        self._indexes, self._batch_size = indexes, batch_size

    def __len__(self) -> int:
        """Return the number of batches, a last short one included."""
        return math.ceil(len(self._indexes) / self._batch_size)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> "IndexOrder": ...
    def __getitem__(self, place: int | slice) -> "list[int] | IndexOrder":
        """Return the indexes of a batch, or the order of the first batches."""
        if isinstance(place, slice):
            stop = range(len(self))[place].stop
            return IndexOrder(self._indexes[: stop * self._batch_size], self._batch_size)
        start = range(len(self))[place] * self._batch_size
        indexes: list[int] = self._indexes[start : start + self._batch_size].tolist()
        return indexes

    @property
    def digest(self) -> str:
        """Return a digest of the order: that of its list, or for very long ones of its numbers."""
        if len(self._indexes) <= LISTED_EXAMPLES:
            return list_digest(list(self))
        return hashlib.sha256(self._indexes.numpy().tobytes()).hexdigest()


Order = IndexOrder | list[list[Key]]
"""Keys of the examples of each batch."""


def list_digest(batches: Sequence[Sequence[Key]]) -> str:
    """Return a digest of an order in the form of a list."""
    return hashlib.sha256(repr(batches).encode()).hexdigest()


def order_digest(order: Order) -> str:
    """Return a digest of an order, which does not depend on its form."""
    return order.digest if isinstance(order, IndexOrder) else list_digest(order)


def epoch_order(batch_sampler: Iterable[Iterable[Key]] | None) -> Order:
    """Return the order of an epoch.

    Args:
        batch_sampler: The batch sampler of a loader; random numbers are drawn from its generators
            and from torch's, as by iterating over it.
    """
    # A subclass may do anything in its `__iter__`.
    if type(batch_sampler) is BatchSampler:
        indexes = _indexes(batch_sampler.sampler)
        if indexes is not None:
            return IndexOrder(indexes, batch_sampler.batch_size)
    return [list(keys) for keys in batch_sampler or ()]


def _indexes(sampler: object) -> Int64[Tensor, " example"] | None:
    """Return the indexes of a known sampler of torch; None for others."""
    if type(sampler) is SequentialSampler:
        return torch.arange(len(sampler))
    if type(sampler) is not RandomSampler or sampler.replacement:
        return None
    count = len(sampler.data_source)
    if sampler.num_samples != count or not count:
        return None
    generator = sampler.generator
    if generator is None:
        generator = torch.Generator()
        # The number that `RandomSampler` draws from the global generator as its seed.
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    return torch.randperm(count, generator=generator)
