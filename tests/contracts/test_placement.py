"""Promises of every placement: of its modules, its parts of a batch, and its sums."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.data.batch import Batch
from curricle.training.setup.placement import HOST, Placement, SingleDevice
from curricle.training.setup.processes import Processes
from tests.parts import drawn, parity

GROUPS = {"single CPU": [HOST]}
"""Placements of all processes of a run, by name."""
if torch.cuda.is_available():
    GROUPS["single GPU"] = [SingleDevice("cuda")]
groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())


def linear(inputs: int, outputs: int) -> nn.Linear:
    with seeding.scoped(0, "test model"):
        return nn.Linear(inputs, outputs)


def tensors(batch: Batch) -> Iterator[Tensor]:
    inputs = [batch.inputs] if isinstance(batch.inputs, Tensor) else batch.inputs.values()
    yield from (tensor for tensor in (*inputs, batch.labels) if tensor is not None)


def test_every_implementation_keeps_the_promises() -> None:
    # Those of several processes are held by whole runs in tests/integration/test_processes.py.
    kept = {type(placement) for group in GROUPS.values() for placement in group}
    assert kept | {Processes} == {*Placement.__subclasses__()}


@groups
def test_a_placed_module_stays_as_it_is_when_placed_again(group: list[Placement]) -> None:
    for placement in group:
        module = linear(3, 2)
        expected = {name: weight.clone() for name, weight in module.state_dict().items()}
        placed = placement.place(module)
        assert placement.place(placed) is placed
        assert {weight.device.type for weight in module.parameters()} == {placement.kind}
        torch.testing.assert_close(
            module.state_dict(), expected, rtol=0, atol=0, check_device=False
        )


@groups
def test_each_example_of_a_batch_is_in_one_part(group: list[Placement]) -> None:
    batch = parity().batch(0)
    parts = [placement.part_of(batch) for placement in group]
    for placement, part in zip(group, parts, strict=True):
        assert {tensor.device.type for tensor in tensors(part)} == {placement.kind}
    for rows in zip(*map(tensors, parts), strict=True):
        assert any(
            torch.equal(torch.cat([part.cpu() for part in rows]), tensor)
            for tensor in tensors(batch)
        )
    assert sum(part.num_examples for part in parts) == batch.num_examples


@groups
def test_a_total_is_the_sum_over_the_parts(group: list[Placement]) -> None:
    batch = parity().batch(0)
    counts = [placement.part_of(batch).num_examples for placement in group]
    for placement, count in zip(group, counts, strict=True):
        assert placement.total(count) == batch.num_examples


@groups
def test_one_process_writes(group: list[Placement]) -> None:
    assert [placement.is_writer for placement in group].count(True) == 1


@groups
def test_passes_run_in_the_precision_that_is_asked_for(group: list[Placement]) -> None:
    for placement in group:
        placed: Any = placement.place(linear(4, 2))
        inputs = drawn(3, 4).to(placement.kind)
        for precision in ("float32", "bfloat16"):
            with placement.autocast(precision):
                assert placed(inputs).dtype == getattr(torch, precision)
        assert placed.weight.dtype == torch.float32


@groups
def test_time_passes(group: list[Placement]) -> None:
    for placement in group:
        assert placement.now() <= placement.now()
