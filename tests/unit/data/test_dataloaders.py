"""A user's DataLoader as a stream."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.dataloaders import LoaderStream, stream
from curricle.errors import DataError


class Items(Dataset[Any]):
    """A data set of ready items."""

    def __init__(self, items: Sequence[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


class Noisy(Dataset[Any]):
    """A data set that draws from torch's global generator, as augmentations do."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(3) + index


class FetchedTogether(Items):
    """A data set that is asked for all items of a batch at once."""

    def __getitems__(self, indexes: list[int]) -> list[object]:
        return [self.items[index] for index in reversed(indexes)]


class Epochs(SequentialSampler):
    """A sampler that is told the epoch, as that of distributed training."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter((np.arange(len(self)) + self.epoch).tolist()[: len(self)])


class Unseeded(SequentialSampler):
    """A sampler with a memory of its own."""

    calls = 0

    def __iter__(self) -> Iterator[int]:
        self.calls += 1
        return iter(range(len(self) - self.calls))


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count).float()[:, None], torch.arange(count))


def shuffled(count: int = 23, *, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(numbers(count), batch_size=batch_size, shuffle=True, **options)


def of_item(item: object, *, next_token: bool = False) -> Batch:
    """Return the batch of a loader that collates to the given item."""

    def collate(_: list[object]) -> object:
        return item

    loader: DataLoader[Any] = DataLoader(Items(range(2)), batch_size=2, collate_fn=collate)
    return stream(loader, next_token=next_token).batch(0)


def labels(batch: Batch) -> list[int]:
    assert batch.labels is not None
    return batch.labels.tolist()


def read(source: LoaderStream, steps: Sequence[int]) -> list[list[int]]:
    return [labels(source.batch(step)) for step in steps]


def test_every_example_of_whole_batches_is_read_once_an_epoch() -> None:
    source = stream(shuffled(24))
    seen = [label for batch in read(source, range(6, 12)) for label in batch]
    assert sorted(seen) == list(range(24))


def test_epochs_have_different_orders() -> None:
    source = stream(shuffled(24))
    assert read(source, range(6)) != read(source, range(6, 12))


def test_the_last_short_batch_is_dropped() -> None:
    source = stream(shuffled(23))
    assert source.steps_per_epoch == 5
    assert {len(batch) for batch in read(source, range(10))} == {4}


def test_an_unshuffled_loader_keeps_its_order() -> None:
    source = stream(DataLoader(numbers(6), batch_size=3))
    assert read(source, range(3)) == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


@settings(max_examples=10)
@given(steps=st.lists(st.integers(0, 40), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_the_order_of_reading_does_not_matter(steps: list[int], seed: int) -> None:
    source = stream(shuffled(), seed=seed)
    assert read(source, steps) == [
        labels(stream(shuffled(), seed=seed).batch(step)) for step in steps
    ]


@pytest.mark.parametrize("owner", ["loader", "sampler", "batch sampler"])
def test_an_explicit_generator_is_seeded_by_the_stream_and_restored(owner: str) -> None:
    generator = torch.Generator().manual_seed(5)
    generator.set_state(torch.Generator().manual_seed(6).get_state())
    before = generator.get_state()
    sampler = RandomSampler(numbers(23), generator=generator)
    batches = BatchSampler(sampler, batch_size=4, drop_last=False)
    loader = {
        "loader": shuffled(generator=generator),
        "sampler": DataLoader(numbers(23), batch_size=4, sampler=sampler),
        "batch sampler": DataLoader(numbers(23), batch_sampler=batches),
    }[owner]
    read_twice = [read(stream(loader, seed=3), range(7)) for _ in range(2)]
    assert read_twice[0] == read_twice[1]
    assert torch.equal(generator.get_state(), before)


def test_the_seed_decides_the_order() -> None:
    assert read(stream(shuffled(), seed=1), range(3)) != read(stream(shuffled(), seed=2), range(3))


def test_what_the_data_set_draws_from_torch_is_a_function_of_the_step() -> None:
    source = stream(DataLoader(Noisy(), batch_size=4, shuffle=True))
    there = source.batch(7).leading
    source.batch(2)
    assert torch.equal(source.batch(7).leading, there)
    assert not torch.equal(source.batch(7).leading.frac(), source.batch(2).leading.frac())


@pytest.mark.integration
def test_workers_give_the_same_batches_in_and_out_of_order() -> None:
    steps = [0, 1, 2, 3, 4, 5, 6, 12, 13, 14, 14, 3]
    alone = stream(DataLoader(Noisy(), batch_size=4, shuffle=True))
    helped = stream(DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2))
    for step in steps:
        assert torch.equal(alone.batch(step).leading, helped.batch(step).leading)


def test_a_data_set_that_fetches_batches_is_asked_for_batches() -> None:
    items = [torch.tensor([float(number)]) for number in range(4)]
    source = stream(DataLoader(FetchedTogether(items), batch_size=2))
    assert source.batch(0).leading.tolist() == [[1.0], [0.0]]


def test_a_sampler_that_counts_epochs_is_told_the_epoch() -> None:
    data = numbers(9)
    source = stream(DataLoader(data, batch_size=2, sampler=Epochs(range(6))))
    assert read(source, [0, 3, 6]) == [[0, 1], [1, 2], [2, 3]]


def test_a_custom_batch_sampler_says_the_batch_size() -> None:
    source = stream(DataLoader(numbers(6), batch_sampler=[[0, 5, 1], [2, 3, 4]]))
    assert source.batch_size == 3
    assert read(source, [0]) == [[0, 5, 1]]


def test_flat_examples_count_one_token_each() -> None:
    assert stream(shuffled()).tokens_per_batch == 4


def test_sequences_count_their_positions() -> None:
    items = [{"input_ids": torch.arange(5), "labels": torch.tensor(1)}] * 6
    assert stream(DataLoader(Items(items), batch_size=3)).tokens_per_batch == 15


def test_the_fingerprint_covers_data_order_shift_and_seed() -> None:
    ids = [{"input_ids": torch.arange(5), "labels": torch.arange(5).flip(0)}] * 6
    streams = [
        stream(shuffled()),
        stream(shuffled(24)),
        stream(shuffled(batch_size=3)),
        stream(DataLoader(numbers(23), batch_size=4)),
        stream(shuffled(), seed=1),
        stream(DataLoader(Items(ids), batch_size=2)),
        stream(DataLoader(Items(ids), batch_size=2), next_token=True),
    ]
    assert len({source.fingerprint for source in streams}) == len(streams)
    assert stream(shuffled()).fingerprint == streams[0].fingerprint


def paired(_: Sequence[object]) -> Batch:
    """Return a batch with tensors in every field."""
    return Batch(
        inputs={"input_ids": torch.arange(6).view(2, 3), "attention_mask": torch.ones(2, 3)},
        labels=torch.tensor([2, 5]),
        selected=torch.tensor([1, 4]),
        valid=torch.ones(2, 3).bool(),
        teacher_inputs={"input_ids": torch.arange(8).view(2, 4)},
        alignment=torch.tensor([[0, 1, 2], [0, 2, 3]]),
        matched=torch.tensor([[True, True, False], [True, False, True]]),
    )


@pytest.mark.parametrize(
    ("collate", "expected"),
    [
        (None, "9dbe392eeb07365a"),
        (paired, "6dfdbaafe3ff4ad6"),
    ],
    ids=["features", "all fields"],
)
def test_the_fingerprint_is_that_of_earlier_versions(collate: Any, expected: str) -> None:
    # Of curricle before the walk over tensors was shared; stores and runs hold such digests.
    data = TensorDataset(torch.arange(12.0).view(4, 3), torch.arange(4))
    assert stream(DataLoader(data, batch_size=2, collate_fn=collate)).fingerprint == expected


def test_an_iterable_data_set_is_refused_with_the_reason() -> None:
    class Endless(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(9))

    sentence = r"must be found again when a run resumes; got .*Endless' without '__len__'"
    with pytest.raises(DataError, match=sentence):
        stream(DataLoader(Endless(), batch_size=2))


def test_a_loader_without_batches_is_refused() -> None:
    with pytest.raises(DataError, match="'loader' must make batches; got batch_size=None"):
        stream(DataLoader(numbers(4), batch_size=None))


@pytest.mark.parametrize("count", [0, 3])
def test_less_than_one_batch_is_refused_with_the_numbers(count: int) -> None:
    with pytest.raises(DataError, match=f"one whole batch of 4 examples; got {count} examples"):
        stream(DataLoader(numbers(count), batch_size=4))


def test_batches_of_several_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="must give batches of one size; got sizes 1, 2"):
        stream(DataLoader(numbers(6), batch_sampler=[[0, 1], [2], [3, 4]]))


def test_epochs_of_different_length_are_refused() -> None:
    source = stream(DataLoader(numbers(9), batch_size=2, sampler=Unseeded(range(9))))
    with pytest.raises(DataError, match="same number of batches in every epoch: 4; got 3 in epo"):
        source.batch(4)


def test_draws_outside_torch_are_noticed() -> None:
    drawn = iter(range(100))

    def collate(items: list[Tensor]) -> Tensor:
        return torch.stack(items) + next(drawn)

    with pytest.raises(DataError, match="must give the same first batch twice; got different"):
        stream(DataLoader(Noisy(), batch_size=2, collate_fn=collate))


def test_a_collate_function_that_changes_the_number_of_rows_is_refused() -> None:
    with pytest.raises(DataError, match="must collate 2 examples into as many rows; got 3 rows"):
        of_item(torch.ones(3, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pixels_of_a_loader_are_examples_and_no_tokens(dtype: torch.dtype) -> None:
    images = TensorDataset(torch.zeros(8, 3, 5, 5, dtype=dtype), torch.arange(8))
    assert stream(DataLoader(images, batch_size=4)).tokens_per_batch == 4


def test_an_epoch_counts_the_texts_of_its_rows() -> None:
    def collate(rows: list[Tensor]) -> Batch:
        return Batch(inputs=torch.stack(rows).flatten(0, 1), group=2)

    loader: Any = DataLoader(Items([torch.zeros(2, 4)] * 40), batch_size=4, collate_fn=collate)
    data = stream(loader)
    assert (data.batch_size, data.steps_per_epoch, data.examples_per_epoch) == (8, 10, 80)
    with seeding.scoped(0, "models"):
        student, teacher = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    plan = curricle.plan(student, teacher, curricle.one_shot(total="2 epochs"), loader)
    assert plan.num_steps == 2 * len(loader) == 20


def test_a_column_of_labels_is_noted_with_its_usual_shape() -> None:
    data = TensorDataset(torch.zeros(8, 6), torch.zeros(8, 1, dtype=torch.long))
    source = stream(DataLoader(data, batch_size=4))
    assert source.note == (
        "data: labels of shape (4, 1) are read as one label an example; labels.squeeze(1) gives "
        "them the shape (4,)"
    )
    assert labels(source.batch(0)) == [0] * 4
