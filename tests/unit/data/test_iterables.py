"""Loaders over iterable data sets, found again by step."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from curricle import seeding
from curricle.data.dataloaders import LoaderStream, stream
from curricle.errors import DataError


class Stated(IterableDataset[Tensor]):
    """Numbers under noise, with a stated length."""

    def __init__(self, length: int, *, number: int | None = None) -> None:
        self.length = length
        self.number = length if number is None else number
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        shift = torch.randn(1)
        for number in range(self.number):
            yield number + shift + torch.randn(2) / 10

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def leading(data: LoaderStream, step: int) -> Tensor:
    inputs = data.batch(step).inputs
    assert isinstance(inputs, Tensor)
    return inputs


def test_an_iterable_data_set_with_a_length_is_found_again_by_step() -> None:
    with seeding.scoped(1, "elsewhere"):
        data = stream(DataLoader(Stated(11), batch_size=3), seed=4)
        in_order = [leading(data, step) for step in range(7)]
    assert (data.batch_size, data.steps_per_epoch) == (3, 3)
    source = Stated(11)
    other = stream(DataLoader(source, batch_size=3), seed=4)
    assert other.fingerprint == data.fingerprint
    for step in (5, 6, 1, 1, 0, 2):
        assert torch.equal(leading(other, step), in_order[step])
    assert source.epochs[-5:] == [1, 2, 0, 0, 0]
    assert not torch.equal(in_order[0], in_order[3])
    assert stream(DataLoader(Stated(11), batch_size=3), seed=5).fingerprint != data.fingerprint


def test_workers_of_an_iterable_data_set_give_the_same_batches_after_a_restart() -> None:
    data = stream(DataLoader(Stated(6), batch_size=3, num_workers=1), seed=4)
    first = [leading(data, step) for step in range(2)]
    assert torch.equal(leading(data, 0), first[0])
    assert torch.equal(leading(data, 1), first[1])
    assert data.reads_ahead


@pytest.mark.parametrize(
    ("length", "number", "sentence"),
    [
        (9, 6, "must give the 3 whole batches of its stated length .*; it ended after 2"),
        (2, 2, "at least one whole batch of 3 examples; got 2 examples"),
    ],
)
def test_an_iterable_data_set_shorter_than_it_states_is_refused(
    length: int, number: int, sentence: str
) -> None:
    def read_epoch() -> None:
        data = stream(DataLoader(Stated(length, number=number), batch_size=3))
        for step in range(3):
            data.batch(step)

    with pytest.raises(DataError, match=sentence):
        read_epoch()
