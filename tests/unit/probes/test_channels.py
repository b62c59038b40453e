"""Gradient energies of channels against derivatives by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.mlp import MLP
from curricle.models.wrapping import tapped
from curricle.probes.channels import output_channels, output_energies
from tests.parts import drawn


def network(num_classes: int = 3) -> MLP:
    with seeding.scoped(0, "network"):
        return MLP(num_inputs=4, widths=(6,), num_classes=num_classes)


BATCHES = [Batch(inputs=drawn(5, 4, seed=seed)) for seed in (1, 2)]


def test_energies_are_mean_squares_of_the_derivative_of_a_softmax() -> None:
    model = network()
    inputs = np.concatenate([batch.inputs.numpy() for batch in BATCHES])  # type: ignore[union-attr]
    first, head = model.blocks[0][0], model.head  # type: ignore[index]
    states = np.maximum(inputs @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    logits = states @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    likely = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    # The derivative of log p of class y by the logits is e_y - p.
    gradients = (np.eye(3)[logits.argmax(-1)] - likely) @ head.weight.detach().numpy()
    actual = output_energies(model, BATCHES, tap=1)
    np.testing.assert_allclose(actual.numpy(), (gradients**2).mean(0), rtol=1e-4)


def test_a_single_output_counts_by_its_value() -> None:
    model = network(num_classes=1)
    expected = model.head.weight[0].detach().square()
    assert torch.allclose(output_energies(model, BATCHES, tap=1), expected)


def test_channels_are_those_of_the_largest_energies() -> None:
    model = network(num_classes=1)
    with torch.no_grad():
        model.head.weight[0] = torch.tensor([0.1, -3.0, 0.5, 0.0, 2.0, 1.0])
    assert output_channels(model, BATCHES, tap=1, count=3) == (1, 4, 5)


def test_a_frozen_model_in_training_mode_stays_as_it_is() -> None:
    model = network().requires_grad_(False).train()
    with torch.no_grad():
        assert output_energies(model, BATCHES, tap=1).any()
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


class Tokens(nn.Module):
    """A table of tokens under a head, with positions."""

    def __init__(self) -> None:
        super().__init__()
        with seeding.scoped(1, "tokens"):
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(input_ids))
        return logits


def test_padding_does_not_count() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    padded = Batch(inputs={"input_ids": ids}, valid=valid)
    flat = Batch(inputs={"input_ids": torch.tensor([[1, 2, 3, 4]])})
    actual, expected = (
        output_energies(tapped(Tokens()), [batch], tap="table") for batch in (padded, flat)
    )
    assert torch.allclose(actual, expected)


def test_no_batches_are_refused() -> None:
    with pytest.raises(BindError, match=r"^'batches' must hold a position .*; got none$"):
        output_energies(network(), [], tap=1)
