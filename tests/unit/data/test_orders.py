"""Orders of samplers, batch by batch."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from curricle import seeding
from curricle.data import orders
from curricle.data.orders import IndexOrder, epoch_order, order_digest


class Reversed(SequentialSampler):
    """A sampler that is none of torch's, though it derives from one."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self) - 1, -1, -1))


def listed(sampler: BatchSampler) -> list[list[int]]:
    with seeding.scoped(0, "order"):
        return [list(indexes) for indexes in sampler]


def ordered(sampler: Any) -> orders.Order:
    with seeding.scoped(0, "order"):
        return epoch_order(sampler)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 30])
@pytest.mark.parametrize("kind", [RandomSampler, SequentialSampler])
def test_an_order_is_that_of_torch(kind: type, batch_size: int) -> None:
    sampler = BatchSampler(kind(range(11)), batch_size, drop_last=False)
    found = ordered(sampler)
    assert isinstance(found, IndexOrder)
    assert list(found) == listed(sampler)


def test_a_generator_of_the_user_is_drawn_from() -> None:
    generator = torch.Generator().manual_seed(7)
    sampler = BatchSampler(RandomSampler(range(11), generator=generator), 4, drop_last=False)
    found = list(ordered(sampler))
    generator.manual_seed(7)
    assert found == listed(sampler)


@pytest.mark.parametrize(
    "sampler",
    [
        Reversed(range(5)),
        RandomSampler(range(5), replacement=True),
        RandomSampler(range(5), num_samples=12),
        ["a", "b", "c"],
    ],
    ids=["subclass", "replacement", "more than all", "keys"],
)
def test_other_samplers_are_asked_for_their_batches(sampler: object) -> None:
    batches = BatchSampler(sampler, 2, drop_last=False)  # type: ignore[arg-type]
    found = ordered(batches)
    assert isinstance(found, list)
    assert found == listed(batches)


def test_a_short_batch_can_be_cut_off() -> None:
    order = IndexOrder(torch.arange(10), 4)
    assert [list(order[:-1]), order[-1]] == [[[0, 1, 2, 3], [4, 5, 6, 7]], [8, 9]]


def test_the_digest_is_that_of_the_list() -> None:
    order = IndexOrder(torch.arange(5), 2)
    expected = hashlib.sha256(b"[[0, 1], [2, 3], [4]]").hexdigest()
    assert order_digest(order) == order_digest([[0, 1], [2, 3], [4]]) == expected


def test_the_digest_of_a_long_order_tells_orders_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "LISTED_EXAMPLES", 3)
    first, other = IndexOrder(torch.arange(5), 2), IndexOrder(torch.arange(5).flip(0), 2)
    assert first.digest == IndexOrder(torch.arange(5), 2).digest != other.digest
