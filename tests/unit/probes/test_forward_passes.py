"""Forward passes of probes on models in any mode, which is restored."""

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.mlp import MLP
from curricle.models.wrapping import tapped
from curricle.probes import forward_passes
from curricle.probes.forward_passes import (
    hidden_rows,
    hidden_states,
    numbered_taps,
    selected_logits,
    selected_rows,
)


class Tokens(nn.Module):
    """Embeds each token as a vector of two numbers, which are also its logits."""

    def __init__(self) -> None:
        super().__init__()
        vectors = torch.arange(12.0).reshape(6, 2)
        self.embedding = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.head = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        activations: Tensor = self.head(self.embedding(tokens))
        return activations


TOKENS = Batch(
    inputs=torch.tensor([[0, 1, 2], [3, 4, 5]]),
    labels=torch.tensor([1, 0]),
    selected=torch.tensor([1, 5]),
    valid=torch.tensor([[True, True, False], [True, True, True]]),
)


def test_every_numbered_tap_is_listed() -> None:
    with seeding.scoped(0, "model"):
        model = tapped(MLP(4, (3, 3), 2))
    assert numbered_taps(model) == (0, 1, 2)


def test_taps_without_numbers_must_be_named() -> None:
    with pytest.raises(
        BindError, match=r"^'taps' must be named for a model without numbered blocks; got 'Tokens'$"
    ):
        numbered_taps(tapped(Tokens()))


def test_states_keep_their_positions_and_rows_leave_padding_out() -> None:
    model = tapped(Tokens())
    states = hidden_states(model, TOKENS, ["embedding"])["embedding"]
    assert states.shape == (2, 3, 2)
    rows = hidden_rows(model, TOKENS, ["embedding"])["embedding"]
    assert rows[:, 0].tolist() == [0, 2, 6, 8, 10]


def test_selected_rows_are_those_that_are_scored() -> None:
    rows = selected_rows(tapped(Tokens()), TOKENS, ["embedding"])["embedding"]
    assert rows[:, 0].tolist() == [2, 10]


def test_rows_of_sequences_must_be_selected() -> None:
    with pytest.raises(
        BindError,
        match=r"^'selected' must be set for tap 'embedding', which has more than one position per "
        r"example; got 6 positions of 2 examples$",
    ):
        selected_rows(tapped(Tokens()), Batch(inputs=TOKENS.inputs), ["embedding"])


def test_some_tap_is_read() -> None:
    with pytest.raises(BindError, match=r"^'taps' must name at least one tap; got none$"):
        hidden_states(tapped(Tokens()), TOKENS, [])


def test_a_model_in_training_is_read_without_dropout_and_goes_on_training() -> None:
    model = tapped(Tokens())
    logits = selected_logits(model, TOKENS)
    assert logits.tolist() == [[2, 3], [10, 11]]
    assert all(part.training for part in model.module.modules())


def test_chunks_give_the_states_of_the_full_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tapped(Tokens())
    full = hidden_states(model, TOKENS, ["embedding"])["embedding"]
    monkeypatch.setattr(forward_passes, "MOST_POSITIONS", 3)
    parts = list(forward_passes.chunks(model, TOKENS))
    assert [part.num_examples for part in parts] == [1, 1]
    assert torch.equal(hidden_states(model, TOKENS, ["embedding"])["embedding"], full)
    assert selected_logits(model, TOKENS).tolist() == [[2, 3], [10, 11]]


def test_flat_examples_count_one_place_each() -> None:
    batch = Batch(inputs=torch.zeros(5000, 3))
    sizes = [part.num_examples for part in forward_passes.chunks(tapped(nn.Identity()), batch)]
    assert sizes == [4096, 904]
