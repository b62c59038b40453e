"""Modules come back as they were, submodule by submodule."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from curricle import seeding
from curricle.models.restoring import (
    buffers_kept,
    frozen_but,
    held_low,
    hold_low,
    looked_at,
    modes_kept,
)


@pytest.fixture
def module() -> nn.Sequential:
    with seeding.scoped(0, "model"):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))


def test_each_submodule_gets_its_own_mode_back(module: nn.Sequential) -> None:
    module[1].eval()
    with modes_kept(module):
        module.eval()
    assert [part.training for part in module] == [True, False, True, True]
    assert module.training


def test_what_is_looked_at_learns_nothing_and_gets_its_modes_back(module: nn.Sequential) -> None:
    with looked_at(module):
        assert not module(torch.ones(5, 3)).requires_grad
        assert not any(part.training for part in module)
    assert module.training
    assert torch.is_grad_enabled()
    assert torch.equal(dict(module.named_buffers())["1.running_mean"], torch.zeros(4))


def test_running_statistics_come_back(module: nn.Sequential) -> None:
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with seeding.scoped(0, "dropout"), buffers_kept(module):
        module(torch.ones(5, 3))
        assert not torch.equal(dict(module.named_buffers())["1.running_mean"], torch.zeros(4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_only_named_parameters_train(module: nn.Sequential) -> None:
    with frozen_but(module, {"3.weight"}):
        free = [name for name, one in module.named_parameters() if one.requires_grad]
    assert free == ["3.weight"]
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_what_was_frozen_before_stays_so(module: nn.Sequential) -> None:
    module[0].weight.requires_grad_(False)
    with frozen_but(module, {"0.weight", "0.bias"}):
        assert not module[0].weight.requires_grad
        assert module[0].bias.requires_grad
    assert not module[0].weight.requires_grad


def test_everything_comes_back_after_an_error(module: nn.Sequential) -> None:
    mean = module.get_buffer("1.running_mean")

    def fail() -> None:
        with modes_kept(module), buffers_kept(module), frozen_but(module, ()):
            module.eval()
            mean.fill_(5)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert module.training
    assert torch.equal(mean, torch.zeros(4))
    assert module.get_parameter("0.weight").requires_grad


class Router(nn.Module):
    """Has parts that autocast does not reach, and one that is read as a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.first = nn.Linear(4, 4)
        self.gate = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        state = self.first(self.embedding(ids))
        with torch.autocast("cpu", enabled=False):
            state = state.float() + self.gate(state.float()) @ self.gate.weight
        found: Tensor = self.tied(state)
        return found


@pytest.fixture
def router() -> Router:
    with seeding.scoped(0, "test model"):
        return Router()


def test_weights_that_are_held_low_change_no_result(router: Router) -> None:
    ids = torch.tensor([[0, 1, 2], [3, 4, 0]])

    def shown() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            low = router(ids)
        with torch.no_grad():
            return low, router(ids)

    plain = shown()
    with held_low(router, torch.bfloat16):
        held = shown()
        assert all(one.dtype == torch.float32 for one in router.parameters())
    assert all(torch.equal(*pair) for pair in zip(held, plain, strict=True))
    assert plain[0].dtype == torch.bfloat16


def test_held_weights_are_used_and_let_go(router: Router) -> None:
    states = torch.ones(1, 4)

    def shown() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found: Tensor = router.tied(states)
        return found

    before = shown()
    with held_low(router, torch.bfloat16):
        with torch.no_grad():
            router.tied.weight.add_(1)
        assert torch.equal(shown(), before)
    assert not torch.equal(shown(), before)
    assert not any("forward" in vars(part) for part in router.modules())


def test_a_copy_holds_its_own_weights(router: Router) -> None:
    ids = torch.tensor([[0, 1, 2]])
    with held_low(router, torch.bfloat16), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        copied = copy.deepcopy(router)
        for one in copied.parameters():
            one.mul_(2)
        hold_low(copied, torch.bfloat16)
        held = copied(ids)
        hold_low(copied, None)
        assert torch.equal(held, copied(ids))
        assert not torch.equal(held, router(ids))


class Scaled(nn.Linear):
    """Does more with its weight than a linear map does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.weight.sum()


def test_parts_with_a_forward_pass_of_their_own_are_left_alone(router: Router) -> None:
    with seeding.scoped(0, "test model"):
        scaled = Scaled(4, 4)
    router.add_module("scaled", scaled)
    before = router.gate.forward
    vars(router.gate)["forward"] = before
    with held_low(router, torch.bfloat16):
        assert vars(router.gate)["forward"] is before
        assert "forward" not in vars(scaled)
    assert vars(router.gate)["forward"] is before


def test_weights_that_are_made_at_every_pass_are_left_alone(router: Router) -> None:
    prune.l1_unstructured(router.first, "weight", amount=0.5)
    ids = torch.tensor([[0, 1, 2]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = router(ids)
        with held_low(router, torch.bfloat16):
            assert "forward" not in vars(router.first)
            assert torch.equal(router(ids), plain)
