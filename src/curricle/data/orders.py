"""Order in which the samplers of a loader give examples, batch by batch.

An epoch's order is listed once. torch's own samplers are recognized, and their order is kept as one
tensor of indexes: a list of lists of Python numbers takes minutes and gigabytes for millions of
examples. Every other sampler is iterated once for all of its batches.

Design: a recognized sampler draws the same numbers as torch's code, so that orders, and with them
the results of runs, do not depend on the form of storage.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

LISTED_EXAMPLES = 2**20
"""Largest order, in examples, with the digest of its list, for compatibility."""


@final
class IndexOrder(Sequence[list[int]]):
    """Batches of an order that is kept as one tensor."""

    def __init__(self, indexes: Int64[Tensor, " example"], batch_size: int) -> None:
        """Take the order.

        Args:
            indexes: Indexes of all examples in order.
            batch_size: Examples of a batch; the last batch may be smaller.
        """
        self._indexes, self._batch_size = indexes, batch_size

    def __len__(self) -> int:
        """Return the number of batches, a last short one included."""
        return math.ceil(len(self._indexes) / self._batch_size)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 - a number, or a slice of whole batches
        """Return the indexes of a batch, or the order of some batches from the first on."""
        if isinstance(place, slice):
            stop = range(len(self))[place].stop
            return IndexOrder(self._indexes[: stop * self._batch_size], self._batch_size)
        start = range(len(self))[place] * self._batch_size
        return self._indexes[start : start + self._batch_size].tolist()

    @property
    def digest(self) -> str:
        """Return a digest of the order: that of its list, or for very long ones of its numbers."""
        if len(self._indexes) <= LISTED_EXAMPLES:
            return list_digest(list(self))
        return hashlib.sha256(self._indexes.numpy().tobytes()).hexdigest()


Order = IndexOrder | list[list[Any]]
"""Indexes of the examples of each batch; a data set may have other keys than numbers."""


def list_digest(batches: list[list[Any]]) -> str:
    """Return a digest of an order that is kept as a list."""
    return hashlib.sha256(repr(batches).encode()).hexdigest()


def order_digest(order: Order) -> str:
    """Return a digest of an order, which does not depend on the form in which it is kept."""
    return order.digest if isinstance(order, IndexOrder) else list_digest(order)


def epoch_order(batch_sampler: Any) -> Order:  # noqa: ANN401 - whatever a loader takes
    """Return the order of one epoch.

    Args:
        batch_sampler: The batch sampler of a loader; random numbers are drawn from its generators
            and from torch's, as iterating over it would.
    """
    # A subclass may do anything in its `__iter__`.
    if type(batch_sampler) is BatchSampler:
        indexes = _indexes(batch_sampler.sampler)
        if indexes is not None:
            return IndexOrder(indexes, batch_sampler.batch_size)
    return [list(indexes) for indexes in _batches(batch_sampler)]


def _batches(batch_sampler: Any) -> Iterator[Any]:  # noqa: ANN401 - as above
    yield from batch_sampler or ()


def _indexes(sampler: object) -> Int64[Tensor, " example"] | None:
    """Return the indexes of a sampler of torch; None for other samplers."""
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
