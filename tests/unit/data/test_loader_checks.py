"""Mistakes in loaders, each with a sentence."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler, TensorDataset

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.dataloaders import held_out_items, stream
from curricle.data.loader_checks import check_numbers, check_undivided, collation_errors
from curricle.errors import DataError
from curricle.training.loop.staged import staged_loss
from tests.parts import drawn

INPUTS = drawn(16, 6)
LABELS = (INPUTS[:, 0] > 0).long()
EXAMPLES = TensorDataset(INPUTS, LABELS)
HELD_OUT = [Batch(inputs=INPUTS, labels=LABELS)]


def divided(number: int = 2, *, is_inside: bool = False) -> DataLoader[Any]:
    """Return a loader that reads a share of the examples."""
    sampler: Any = DistributedSampler(EXAMPLES, num_replicas=number, rank=0)
    if is_inside:
        return DataLoader(EXAMPLES, batch_sampler=BatchSampler(sampler, 4, drop_last=True))
    return DataLoader(EXAMPLES, batch_size=4, sampler=sampler)


def network() -> nn.Module:
    with seeding.scoped(0, "network"):
        return nn.Linear(6, 2)


class Wrapped(Sampler[int]):
    """A sampler around another, with the number of processes in accelerate's attribute."""

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self.sampler: object = None

    def __iter__(self) -> Iterator[int]:
        return iter(())


def staged(data: DataLoader[Any]) -> None:
    with staged_loss(network(), network(), curricle.one_shot(total="2 steps"), data):
        raise AssertionError


DATA: dict[str, Callable[[DataLoader[Any], Path], object]] = {
    "distill": lambda data, _: curricle.distill(
        network(), network(), curricle.one_shot(total="2 steps"), data, evaluation=HELD_OUT
    ),
    "plan": lambda data, _: curricle.plan(
        network(), network(), curricle.one_shot(total="2 steps"), data
    ),
    "plan_ranks": lambda data, _: curricle.plan_ranks(
        network(), network(), curricle.one_shot(total="2 steps"), data, world_size=2
    ),
    "compare": lambda data, _: curricle.compare(
        lambda _: network(), network(), data, evaluation=HELD_OUT, budget="2 steps"
    ),
    "teach": lambda data, folder: curricle.teach(
        network(), data, total="2 steps", evaluation=HELD_OUT, output_dir=folder
    ),
    "capture_targets": lambda data, folder: curricle.capture_targets(
        network(), network(), curricle.one_shot(total="2 steps"), data, folder=folder
    ),
    "staged_loss": lambda data, _: staged(data),
}


@pytest.mark.parametrize("name", DATA)
def test_a_sampler_that_divides_the_data_is_refused_by_every_call(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        DATA[name](divided(), tmp_path / "run")
    assert str(error.value) == (
        "'data' must give the same whole batches in every process, since curricle divides each "
        "batch among them; got a DistributedSampler for 2 processes; leave the sampler out: "
        "DataLoader(dataset, batch_size=..., shuffle=True)"
    )


def test_a_sampler_that_divides_held_out_data_is_refused() -> None:
    model = network()
    with pytest.raises(DataError, match="'evaluation' must give the same whole batches"):
        curricle.evaluate(model, divided())


def test_a_dividing_sampler_inside_of_a_batch_sampler_is_refused() -> None:
    with pytest.raises(DataError, match=r"'loader' must give the same whole batches .* for 3 proc"):
        stream(divided(3, is_inside=True))


def test_a_sampler_for_one_process_is_read() -> None:
    assert stream(divided(1)).examples_per_epoch == 16


def test_samplers_that_refer_to_each_other_are_looked_at_once() -> None:
    first, second = Wrapped(1), Wrapped(4)
    first.sampler, second.sampler = second, first
    loader: DataLoader[Any] = DataLoader(EXAMPLES, sampler=first)
    with pytest.raises(DataError, match="got a Wrapped for 4 processes"):
        check_undivided(loader, "data")
    second.num_processes = 1
    check_undivided(loader, "data")


def ragged() -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.arange(length)} for length in (5, 5, 5, 7)]


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.integration)])
def test_examples_of_several_lengths_are_refused_with_padding(num_workers: int) -> None:
    data: Any = ragged()
    source = stream(DataLoader(data, batch_size=2, num_workers=num_workers))
    source.batch(0)
    with pytest.raises(DataError) as error:
        source.batch(1)
    assert str(error.value) == (
        "'loader' must collate the examples of a batch to one shape; got (5) and (7); a "
        "'collate_fn' pads them, as transformers.DataCollatorWithPadding(tokenizer) does with an "
        "'attention_mask', or torch.nn.utils.rnn.pad_sequence"
    )


def test_held_out_examples_of_several_lengths_are_refused_by_name() -> None:
    data: Any = ragged()
    with pytest.raises(DataError, match="'evaluation' must collate the examples"):
        held_out_items(DataLoader(data, batch_size=2))


def test_other_errors_of_a_collate_function_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^mine$"), collation_errors("loader"):
        raise RuntimeError("mine")


def test_tensors_without_numbers_are_refused() -> None:
    data = TensorDataset(INPUTS.to("meta"), LABELS)
    with pytest.raises(DataError) as error:
        stream(DataLoader(data, batch_size=4))
    assert str(error.value) == (
        "'loader' must give tensors with numbers; got one on torch's meta device, which has "
        "shapes only; build the data set outside of torch.device('meta')"
    )
    with pytest.raises(DataError, match="'evaluation' must give tensors with numbers"):
        held_out_items(DataLoader(data, batch_size=4))


@pytest.mark.parametrize(
    "item",
    [
        Batch(inputs=INPUTS.to("meta"), labels=LABELS),
        {"input_ids": LABELS, "labels": LABELS.to("meta")},
        ([INPUTS], {"deep": INPUTS.to("meta")}),
    ],
)
def test_tensors_without_numbers_are_found_in_every_form_of_item(item: object) -> None:
    with pytest.raises(DataError, match="meta device"):
        check_numbers(item, "loader")
