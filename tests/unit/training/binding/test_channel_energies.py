"""Each depth has the same weight, and examples are counted once."""

import pytest
import torch

from curricle.errors import BindError
from curricle.models.mlp import MLP
from curricle.models.wrapping import tapped
from curricle.training.binding.channel_energies import ChannelEnergies
from curricle.training.setup.placement import SingleDevice
from tests.parts import INPUTS, mlp, parity


def energies(*widths: int, batches: int = 3) -> ChannelEnergies:
    return ChannelEnergies(
        teacher=mlp(*widths), stream=parity(), placement=SingleDevice("cpu"), batches=batches
    )


def test_shares_at_each_depth_are_those_of_the_sums_of_squares() -> None:
    measured = energies(INPUTS, INPUTS)
    module = measured.teacher.module
    assert isinstance(module, MLP)
    states = torch.cat([torch.as_tensor(parity().batch(step).inputs) for step in range(3)])
    expected = []
    with torch.no_grad():
        for block in (torch.nn.Identity(), *module.blocks):
            states = block(states)
            squares = states.double().square().sum(0)
            expected.append(squares / squares.sum())
    torch.testing.assert_close(measured.roots(INPUTS).square(), torch.stack(expected))


def test_the_examples_of_all_batches_are_usage() -> None:
    measured, stream = energies(INPUTS, batches=5), parity()
    assert measured.usage.examples == 5 * stream.batch_size
    assert measured.usage.tokens == 5 * stream.tokens_per_batch


def test_the_teacher_is_read_in_evaluation_and_keeps_its_mode() -> None:
    dropout = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Identity()).train()
    measured = ChannelEnergies(
        teacher=tapped(dropout, blocks=["0", "1"]),
        stream=parity(),
        placement=SingleDevice("cpu"),
        batches=1,
    )
    # Inputs are -1 and +1: without dropout all channels have the same share.
    torch.testing.assert_close(
        measured.roots(INPUTS).square(), torch.full((3, INPUTS), 1 / INPUTS).double()
    )
    assert dropout.training


def test_states_of_another_width_are_an_error() -> None:
    with pytest.raises(BindError, match=r"as wide as its embeddings; got widths 5 and 6$"):
        energies(5).roots(INPUTS)
