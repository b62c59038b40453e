"""Modules come back as they were, submodule by submodule."""

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.models.restoring import (
    buffers_kept,
    evaluation_mode,
    frozen_but,
    hooks_kept,
    mode_notes,
    modes_kept,
    modes_of,
    train,
    weights_kept,
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
    with evaluation_mode(module):
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


def test_weights_and_statistics_come_back(module: nn.Sequential) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with weights_kept(module), torch.no_grad():
        for value in module.state_dict().values():
            value.add_(1)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


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


class Merging(nn.Module):
    """Does something when its mode changes, as adapters that are merged for evaluation do."""

    def __init__(self) -> None:
        super().__init__()
        self.merged = False

    def train(self, mode: bool = True) -> "Merging":
        self.merged = not mode
        super().train(mode)
        return self


def test_modes_are_put_back_by_the_method_that_sets_them() -> None:
    merging = Merging()
    module = nn.Sequential(merging)
    with modes_kept(module):
        module.eval()
        assert merging.merged
    assert not merging.merged


def test_a_part_of_two_modules_gets_its_own_mode_back() -> None:
    shared = nn.Dropout()
    module = nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared)])
    module[1].eval()
    shared.train()
    before = modes_of(module)
    with modes_kept(module):
        module.train()
    assert modes_of(module) == before


@pytest.mark.parametrize("mode", [True, False])
def test_a_part_in_evaluation_mode_stays_there_in_a_module_that_trains(mode: bool) -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train(mode)
    module[1].eval()
    modes = [state for _, state in train(module)]
    assert modes == ([True, True, False] if mode else [True, True, True])
    assert len(list(mode_notes(module))) == int(mode)


def test_the_note_of_frozen_parts_names_the_first_and_changes_no_mode() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    module[1:].eval()
    before = modes_of(module)
    assert next(mode_notes(module)).startswith("2 submodules of the student stay in evaluation")
    assert "'1' is the first" in next(mode_notes(module))
    assert modes_of(module) == before


def test_hooks_of_a_pass_are_removed_and_those_before_it_stay(module: nn.Sequential) -> None:
    calls: list[str] = []
    module[0].register_forward_hook(lambda *_: calls.append("before"))
    with hooks_kept(module):
        module[0].register_forward_hook(lambda *_: calls.append("inside"))
        module[3].register_forward_hook(lambda *_: calls.append("inside"), with_kwargs=True)
    module.eval()(torch.ones(5, 3))
    assert calls == ["before"]
