"""Shares of tensors, which one process gathers and divides alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from curricle import seeding
from curricle.models.shares import (
    is_sharded,
    is_share,
    share_in_memory,
    share_of,
    whole,
    whole_parts,
)
from curricle.models.weights import check_weights, load_weights, save_weights


@pytest.fixture(scope="module", autouse=True)
def single_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Open a process group of one process, which reaches no network."""
    store: Path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Draw the weights of a test from a stream."""
    with seeding.scoped(0, "test"):
        yield


def share(tensor: Tensor) -> Tensor:
    return distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])


def sharded(rows: float = 0.0) -> nn.Module:
    """Return two maps in shares, of which the second has the weight of the first."""
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    for name, weight in list(module[0].named_parameters()):
        setattr(module[0], name, nn.Parameter(share(torch.full_like(weight, rows))))
    module[1].weight, module[1].bias = module[0].weight, nn.Parameter(share(torch.ones(3)))
    return module


def test_a_share_is_told_from_a_whole_tensor() -> None:
    assert is_share(share(torch.ones(2)))
    assert not is_share(torch.ones(2))
    assert is_sharded(sharded())
    assert not is_sharded(nn.Linear(2, 2))


def test_a_divided_tensor_is_gathered_as_it_was() -> None:
    tensor = torch.arange(6.0).view(3, 2)
    divided = share_of(tensor, share(torch.zeros(3, 2)))
    assert is_share(divided)
    assert torch.equal(whole(divided), tensor)
    assert torch.equal(share_in_memory(divided), tensor)


def test_whole_tensors_stay_as_they_are() -> None:
    tensor = torch.ones(2)
    assert share_of(tensor, torch.zeros(2)) is tensor
    assert torch.equal(whole(tensor), tensor)
    assert torch.equal(share_in_memory(tensor), tensor)


def test_only_the_process_that_keeps_parts_gets_them_and_tied_ones_once() -> None:
    parts = whole_parts(sharded(2.0), keeps=True)
    assert {name: part.mean().item() for name, part in parts.items()} == {
        "0.weight": 2.0,
        "0.bias": 2.0,
        "1.bias": 1.0,
    }
    assert whole_parts(sharded(), keeps=False) == {}


def test_a_file_of_shares_is_that_of_whole_weights(tmp_path: Path) -> None:
    save_weights(sharded(2.0), tmp_path / "weights")
    assert not any(is_share(tensor) for tensor in load_file(tmp_path / "weights").values())
    plain = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    plain[1].weight = plain[0].weight
    check_weights(plain, tmp_path / "weights")
    other = sharded()
    load_weights(other, tmp_path / "weights")
    assert torch.equal(whole(other.get_parameter("1.weight")), torch.full((3, 3), 2.0))


def test_a_process_that_hands_over_its_shares_writes_nothing(tmp_path: Path) -> None:
    for module in (sharded(), nn.Linear(2, 2)):
        save_weights(module, None)
    assert not list(tmp_path.iterdir())
