"""Items of a loader over a data set with indexes."""

import os
from collections.abc import Sized
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curricle.data.indexed import IndexedItems
from tests.parts import worker_processes


class Numbers(Dataset[Any]):
    """Numbers beside the process that has fetched them, of which one may be damaged."""

    def __init__(self, count: int, *, damaged: int = -1) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if index == self.damaged:
            raise ValueError("damaged")
        return torch.tensor([index, os.getpid()])


def items(count: int = 12, *, damaged: int = -1, **options: Any) -> IndexedItems:
    data = Numbers(count, damaged=damaged)
    return IndexedItems(DataLoader(data, batch_size=4, num_workers=1, **options), seed=0)


def readers(source: IndexedItems, steps: range) -> list[int]:
    """Return the process that has fetched each of some steps."""
    fetched: list[Any] = [source.read(step) for step in steps]
    return [int(item[0, 1]) for item in fetched]


def test_an_order_of_millions_is_not_listed() -> None:
    source = IndexedItems(DataLoader(Numbers(2**21), batch_size=2, shuffle=True), seed=0)
    batches = source._order._batches
    assert isinstance(batches, Sized)
    assert type(batches).__name__ == "IndexOrder"
    assert source.steps_per_epoch == 2**20


@pytest.mark.integration
def test_a_single_step_starts_no_worker() -> None:
    before, source = worker_processes(), items()
    assert readers(source, range(1)) == [os.getpid()]
    assert worker_processes() == before


@pytest.mark.integration
def test_workers_that_are_ended_leave_no_process_and_start_again() -> None:
    before, source = worker_processes(), items()
    first = readers(source, range(2))
    assert worker_processes() - before == {first[1]}
    source.end_workers()
    assert worker_processes() == before
    second: Any = source.read(2)
    assert second[:, 0].tolist() == [8, 9, 10, 11]
    assert int(second[0, 1]) not in {os.getpid(), first[1]}
    source.end_workers()


@pytest.mark.integration
def test_workers_end_with_the_last_reference_to_their_items() -> None:
    before, source = worker_processes(), items()
    readers(source, range(2))
    # Without a cycle of references no garbage collection is needed.
    del source
    assert worker_processes() == before


@pytest.mark.integration
def test_workers_end_with_an_error_of_the_data_set_while_its_traceback_is_kept() -> None:
    before, source = worker_processes(), items(damaged=8)
    readers(source, range(2))
    with pytest.raises(ValueError, match="damaged") as error:
        source.read(2)
    assert worker_processes() == before
    del error


@pytest.mark.integration
@pytest.mark.parametrize("is_persistent", [False, True])
def test_only_persistent_workers_outlive_their_epoch(is_persistent: bool) -> None:
    source = items(persistent_workers=is_persistent)
    processes = readers(source, range(6))
    assert (processes[2] == processes[3]) == is_persistent
    assert len(set(processes)) == (2 if is_persistent else 3)
    source.end_workers()
