"""Reentrant activation checkpoints: refused wherever weights inside would be missed."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from curricle import seeding
from curricle.curriculum.strategies import from_labels
from curricle.errors import BindError
from curricle.models.wrapping import tapped
from curricle.training.binding.recomputing import check_recomputation
from tests.parts import bound


class Adapted(nn.Module):
    """A frozen base, weights inside of a checkpoint that are trained, and a head behind it.

    The first state needs a gradient, as `enable_input_require_grads` of transformers has it.
    """

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.low, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.first.requires_grad_(False)
        self._reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.first(inputs).requires_grad_()
        state = checkpoint(self.low, state, use_reentrant=self._reentrant)
        logits: Tensor = self.head(state)
        return logits


def adapted(*, reentrant: bool) -> Adapted:
    with seeding.scoped(0, "test model"):
        return Adapted(reentrant=reentrant)


def test_weights_inside_of_a_reentrant_checkpoint_are_not_taken_for_unreached() -> None:
    student = tapped(adapted(reentrant=True))
    with pytest.raises(BindError, match="got 'use_reentrant' True; set it to False"):
        bound(from_labels(total="2 steps"), student=student)


def test_weights_inside_of_another_checkpoint_are_trained() -> None:
    student = tapped(adapted(reentrant=False))
    (stage,) = bound(from_labels(total="2 steps"), student=student).stages
    assert stage.trained == {"low.weight", "low.bias", "head.weight", "head.bias"}


def test_a_graph_without_checkpoints_passes_and_one_with_a_reentrant_one_does_not() -> None:
    weight = torch.ones(3, requires_grad=True)
    check_recomputation((weight * 2 + weight).sum())
    with pytest.raises(BindError, match="must not have reentrant activation checkpoints"):
        check_recomputation(checkpoint(torch.exp, weight, use_reentrant=True).sum())
