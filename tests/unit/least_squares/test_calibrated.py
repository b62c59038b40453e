"""Blocks that run by themselves give the states of the whole pass."""

import pytest
import torch

from curricle.least_squares.calibrated import CalibratedModel
from curricle.models.wrapping import tapped
from tests.unit.least_squares import families
from tests.unit.least_squares.families import FAMILIES, inputs, model

pytest.importorskip("transformers")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_one_by_one_make_the_states_of_a_pass(family: str) -> None:
    taps = tapped(model(family))
    batches = [inputs(family, seed) for seed in range(2)]
    calibrated = CalibratedModel(taps, batches, [None, None])
    assert not calibrated.obstacle
    assert calibrated.width == 16
    for number, place in enumerate(calibrated.places):
        calibrated.advance(number)
        with taps.open_taps([place], logits=False) as forward, torch.no_grad():
            for batch, state in zip(batches, calibrated.states, strict=True):
                assert torch.equal(state, forward(batch).hidden[place])


def test_rows_are_those_that_count() -> None:
    counted = torch.zeros(8, families.LENGTH, dtype=torch.bool)
    counted[:, :3] = True
    calibrated = CalibratedModel(tapped(model("bert")), [inputs("bert", 0)], [counted])
    state = calibrated.states[0]
    expected = state[:, :3].reshape(24, 16).double()
    assert torch.equal(calibrated.rows(0, state), expected)
    # Also of a tensor whose examples and positions are one axis.
    assert torch.equal(calibrated.rows(0, state.flatten(0, 1)), expected)
    # A tensor of other rows, as behind a pooler, is taken whole.
    assert len(calibrated.rows(0, state[:, 0])) == 8


def test_blocks_that_share_weights_are_an_obstacle() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=24,
        embedding_size=8, num_hidden_layers=2,
    )  # fmt: skip
    taps = tapped(transformers.AlbertForMaskedLM(config).eval())
    calibrated = CalibratedModel(taps, [inputs("bert", 0)], [None])
    assert calibrated.obstacle == "its blocks share their weights"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_passes_around_the_blocks_give_the_logits_without_running_them(family: str) -> None:
    module, batch = model(family), inputs(family, 0)
    taps = tapped(module)
    calibrated = CalibratedModel(taps, [batch], [None])
    for number in range(len(calibrated.blocks)):
        calibrated.advance(number)
    expected = families.logits(module, batch)
    calls = list[str]()
    block = calibrated.blocks[0]
    kept = block.forward
    inner = next(child for child in block.modules() if not any(child.children()))
    handle = inner.register_forward_hook(lambda *_: calls.append(""))
    with calibrated.around_blocks(0):
        actual = families.logits(module, batch)
    handle.remove()
    assert torch.equal(actual, expected)
    assert calls == []
    # The blocks are whole again.
    assert block.forward == kept
    assert torch.equal(families.logits(module, batch), expected)


def test_arguments_of_further_batches_need_no_run_of_the_blocks() -> None:
    module = model("llama")
    taps, calls = tapped(module), list[str]()
    module.get_submodule("model.layers.0.mlp").register_forward_hook(lambda *_: calls.append(""))
    batches = [inputs("llama", seed) for seed in range(3)]
    calibrated = CalibratedModel(taps, batches, [None] * 3)
    calibrated.restart()
    assert len(calls) == 1
