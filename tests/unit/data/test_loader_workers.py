"""End of the worker processes of loaders."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curricle import seeding
from curricle.data.dataloaders import stream
from curricle.data.loader_workers import end_workers, end_workers_of, ended_workers, items_of_pass
from curricle.data.synthetic.parity import ParityStream
from tests.parts import worker_processes


class Numbers(Dataset[Tensor]):
    """Eight numbers, the last of which may be damaged."""

    def __init__(self, *, is_damaged: bool = False) -> None:
        self.is_damaged = is_damaged

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 7 and self.is_damaged:
            raise ValueError("damaged")
        return torch.tensor([float(index)])


def loader(*, is_damaged: bool = False, **options: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(is_damaged=is_damaged), batch_size=2, num_workers=2, **options)


def test_a_stream_without_workers_is_left_alone() -> None:
    end_workers(ParityStream(num_inputs=3, degree=2, batch_size=4, seed=0, purpose="train"))


@pytest.mark.integration
def test_workers_of_a_stream_end_after_a_block_that_fails() -> None:
    data = stream(loader())
    before = worker_processes()
    numbers: list[int] = []

    def interrupted() -> None:
        with ended_workers(data):
            data.batch(0)
            data.batch(1)
            numbers.append(len(worker_processes() - before))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert numbers == [2]
    assert not worker_processes() - before


@pytest.mark.integration
def test_workers_of_a_pass_end_with_its_error_while_the_traceback_is_kept() -> None:
    before = worker_processes()
    with seeding.scoped(0, "pass"), pytest.raises(ValueError, match="damaged") as error:
        items_of_pass(loader(is_damaged=True))
    assert not worker_processes() - before
    del error


@pytest.mark.integration
def test_a_pass_leaves_persistent_workers_to_their_loader() -> None:
    before, source = worker_processes(), loader(persistent_workers=True)
    with seeding.scoped(0, "pass"):
        items: list[Any] = items_of_pass(source)
    assert torch.cat(items).flatten().tolist() == list(range(8))
    assert len(worker_processes() - before) == 2
    # As torch does for a loader that is kept until the interpreter exits.
    end_workers_of(source._iterator)
