"""Positions of models that number them from 0, from their padding id, and not at all."""

from typing import Any

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.positions import unused_positions, usable_positions

hf = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "max_position_embeddings": 12,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "padding", "unused"),
    [
        ("bert", 0, 0),
        ("roberta", 1, 2),
        ("roberta", 5, 6),
        ("xlm-roberta", 1, 2),
        ("camembert", 1, 2),
        ("mpnet", 1, 2),
        ("modernbert", 1, 0),
    ],
)
def test_as_many_tokens_as_positions_can_be_read(kind: str, padding: int, unused: int) -> None:
    special = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    config = hf.AutoConfig.for_model(kind, **SIZES | special | {"pad_token_id": padding})
    with seeding.scoped(0, "model"):
        model = hf.AutoModelForMaskedLM.from_config(config).eval()
    assert unused_positions(model) == unused
    longest = usable_positions(model)
    assert longest == 12 - unused
    ids = torch.full((1, longest), 9)
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, longest, 20)
        # Rotary positions have no table to exceed.
        if kind != "modernbert":
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, longest + 1), 9))


def test_decoders_and_models_without_a_configuration() -> None:
    config = hf.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=12)
    with seeding.scoped(0, "model"):
        assert usable_positions(hf.GPT2LMHeadModel(config)) == 12
        assert usable_positions(nn.Linear(2, 2)) is None


def test_a_task_must_fit_what_is_left_of_the_positions() -> None:
    spec = HuggingFaceSpec(model_type="roberta", head="masked_lm", config=SIZES)
    sizes = {"num_inputs": 20, "num_classes": 20, "padding_token": 3}
    with seeding.scoped(0, "model"):
        assert spec.build(num_positions=8, **sizes).depth == 1
    expected = r"at least the task's 9 and 4 more, up to its padding id; got 12"
    with seeding.scoped(0, "model"), pytest.raises(BindError, match=expected):
        spec.build(num_positions=9, **sizes)
