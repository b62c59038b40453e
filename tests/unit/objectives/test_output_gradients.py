"""Gradients of predictions by states, against the head's weights."""

import pytest
import torch

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.mlp import MLP
from curricle.models.wrapping import tapped
from curricle.objectives.output_gradients import output_gradient
from tests.parts import drawn


def test_the_gradient_of_a_single_output_is_the_row_of_the_head() -> None:
    with seeding.scoped(0, "network"):
        network = MLP(num_inputs=4, widths=(6,), num_classes=1)
    model, batch = tapped(network), Batch(inputs=drawn(5, 4, seed=1))
    gradient = output_gradient(model, model.place(1), batch)
    assert torch.allclose(gradient, network.head.weight.detach().expand(5, 6))


class Constant(torch.nn.Module):
    """A block whose state no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        with seeding.scoped(0, "constant"):
            self.block, self.head = torch.nn.Linear(4, 3), torch.nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.block(inputs)
        logits: torch.Tensor = self.head(inputs)
        return logits


def test_a_state_without_effect_on_the_output_is_refused() -> None:
    model = tapped(Constant())
    with pytest.raises(BindError, match=r"^the output must depend on tap 'block', .*; it does not"):
        output_gradient(model, model.place("block"), Batch(inputs=drawn(5, 4, seed=1)))
