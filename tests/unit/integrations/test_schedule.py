"""Learning rates that depend on the open stage."""

import torch
from torch import nn

from curricle.integrations.transformers.schedule import StageRates


def test_rates_are_set_again_when_the_stage_of_a_step_is_known() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scales = [1.0]
    rates = StageRates(optimizer, lambda step: scales[0] / (step + 1))
    assert rates.get_last_lr() == [2.0]
    optimizer.step()
    rates.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
    scales[0] = 0.5
    rates.refresh()
    assert optimizer.param_groups[0]["lr"] == rates.get_last_lr()[0] == 0.5


def test_the_state_holds_the_step_and_no_function() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    rates = StageRates(optimizer, lambda step: 1 / (step + 1))
    optimizer.step()
    rates.step()
    state = rates.state_dict()
    assert state["lr_lambdas"] == [None]
    other = StageRates(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0), lambda step: 1.0)
    other.load_state_dict(state)
    assert other.last_epoch == 1
