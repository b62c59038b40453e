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
