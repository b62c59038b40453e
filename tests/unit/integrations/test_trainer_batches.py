"""Batches of a Trainer, and the first of them as a stream."""

from collections.abc import Iterable

import pytest
import torch

from curricle.errors import DataError
from curricle.integrations.transformers.trainer_batches import BatchReader, FirstBatches

ITEMS = [
    {"input_ids": torch.full((2, length), length), "labels": torch.ones(2, length).long()}
    for length in (3, 5, 4)
]


def first_batches(items: Iterable[object]) -> FirstBatches:
    return FirstBatches(
        lambda: items, BatchReader(next_token=False), batch_size=4, accumulation=2, seed=0
    )


def test_the_first_batches_repeat() -> None:
    batches = first_batches(ITEMS)
    lengths = [batches.batch(step).positions[1] for step in (0, 1, 2, 3, 4)]
    assert lengths == [3, 5, 4, 3, 5]


def test_a_step_has_the_positions_of_its_micro_batches() -> None:
    batches = first_batches(ITEMS)
    assert batches.tokens_per_batch == 2 * 2 * 3
    assert batches.batch_size == 4


def test_an_epoch_has_whole_steps_of_micro_batches() -> None:
    # Three micro-batches are two steps, as the Trainer counts them.
    assert first_batches(ITEMS).examples_per_epoch == 2 * 4


def test_a_loader_without_a_length_has_no_epoch() -> None:
    assert first_batches(iter(ITEMS)).examples_per_epoch is None


def test_reading_leaves_the_random_numbers_of_the_training_alone() -> None:
    def drawn() -> Iterable[object]:
        for item in ITEMS:
            yield item | {"noise": torch.rand(1)}

    before = torch.get_rng_state()
    first_batches(drawn()).batch(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_without_items_is_refused() -> None:
    with pytest.raises(DataError, match="'train_dataset' must have examples; got none"):
        first_batches([]).batch(0)


def test_labels_are_shifted_for_next_tokens() -> None:
    ids = torch.arange(6)[None]
    batch = BatchReader(next_token=True)({"input_ids": ids, "labels": ids})
    assert batch.labels is not None
    assert batch.selected is not None
    assert batch.labels.tolist() == [1, 2, 3, 4, 5]
    assert batch.selected.tolist() == [0, 1, 2, 3, 4]
