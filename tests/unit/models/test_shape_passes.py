"""Copies of models without weights, and their passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from curricle import seeding
from curricle.memory import unallocated
from curricle.models.huggingface import PretrainedSpec
from curricle.models.mlp import MLPSpec
from curricle.models.shape_passes import ShapePasses, block_paths
from curricle.models.wrapping import tapped
from tests.parts import mlp

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 11,
}


def test_a_copy_has_the_shapes_and_flags_of_the_model_and_no_data() -> None:
    model = mlp(5, 4)
    model.module.get_parameter("head.weight").requires_grad_(False)
    copied = ShapePasses().copied(model).module
    for name, parameter in model.module.named_parameters():
        empty = copied.get_parameter(name)
        assert (empty.shape, empty.requires_grad) == (parameter.shape, parameter.requires_grad)
        assert empty.untyped_storage().device.type == "meta"


def test_tied_weights_of_a_copy_are_tied() -> None:
    with seeding.scoped(0, "model"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    copied = ShapePasses().copied(tapped(model)).module
    assert len(list(copied.parameters())) == len(list(model.parameters()))


def test_the_model_itself_is_left_alone() -> None:
    model = mlp(5)
    before = model.module.get_parameter("head.weight")
    ShapePasses().copied(model)
    assert model.module.get_parameter("head.weight") is before


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_models_that_read_values_of_a_mask_run(family: str, has_mask: bool) -> None:
    built: nn.Module
    with unallocated():
        if family == "bert":
            built = BertForMaskedLM(BertConfig(**SIZES))
        else:
            built = LlamaForCausalLM(LlamaConfig(**SIZES))
    shapes = ShapePasses()
    model = shapes.copied(tapped(built))
    ids = shapes.emptied(torch.zeros(3, 7, dtype=torch.int64))
    inputs = {"input_ids": ids} | ({"attention_mask": ids} if has_mask else {})
    with shapes.running(), model.open_taps([model.place(1)], logits=True) as forward:
        states = forward(inputs, shapes.emptied(torch.zeros(5, dtype=torch.int64)))
    assert states.logits is not None
    assert tuple(states.logits.shape) == (5, 11)
    assert [tuple(state.shape) for state in states.hidden.values()] == [(3, 7, 8)]


def test_a_network_of_more_memory_than_the_machine_has_runs() -> None:
    widths = (10**7, 10**7)
    with unallocated():
        huge = MLPSpec(widths=widths).build(num_inputs=6, num_classes=2, num_positions=1)
    shapes = ShapePasses()
    model = shapes.copied(huge)
    with shapes.running(), model.open_taps([model.place(2)], logits=False) as forward:
        states = forward(shapes.emptied(torch.zeros(3, 6)))
    assert [tuple(state.shape) for state in states.hidden.values()] == [(3, 10**7)]


def test_of_a_folder_only_the_configuration_is_read(tmp_path: Path) -> None:
    BertConfig(**SIZES).save_pretrained(tmp_path)
    with unallocated():
        model = PretrainedSpec(path=str(tmp_path)).build(
            num_inputs=11, num_classes=2, num_positions=7
        )
    assert all(parameter.is_meta for parameter in model.module.parameters())


def test_blocks_have_the_paths_of_their_taps() -> None:
    assert block_paths(mlp(5, 4)) == ("blocks.0", "blocks.1")
