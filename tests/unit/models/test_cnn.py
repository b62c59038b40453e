"""Convolutional networks give what torch's layers give, and their specs state their sizes."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from curricle import seeding
from curricle.errors import BindError, SpecError
from curricle.models.cnn import CNN, CNNSpec
from curricle.models.hooked import HookedModel
from curricle.values import parse
from tests.parts import drawn


def build(**fields: Any) -> HookedModel:
    with seeding.scoped(0, "test model"):
        return CNNSpec(**({"channels": (4, 6)} | fields)).build(
            num_inputs=2, num_classes=3, num_positions=8
        )


def test_logits_are_those_of_convolutions_and_the_mean_over_the_map() -> None:
    model, images = build(stride=2), drawn(5, 2, 8, 7)
    network = model.module
    assert isinstance(network, CNN)
    state = images
    for block in network.blocks:
        convolution: Any = block[0]  # type: ignore[index]
        state = functional.conv2d(state, convolution.weight, convolution.bias, 2, 1).relu()
    assert state.shape == (5, 6, 2, 2)
    head: Any = network.head
    expected = state.mean((2, 3)) @ head.weight.T + head.bias
    torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_dense_logits_have_the_size_of_the_input(axes: int, kernel: int) -> None:
    places = (9, 8)[:axes]
    model = build(axes=axes, kernel=kernel, output="positions")
    assert model.module(drawn(5, 2, *places)).shape == (5, 3, *places)


@pytest.mark.parametrize("axes", [1, 2])
def test_taps_are_the_blocks_with_features_on_axis_1(axes: int) -> None:
    model, inputs = build(axes=axes), drawn(5, 2, *(9, 8)[:axes])
    assert model.depth == 2
    with model.open_taps([model.place(2)], logits=True) as forward:
        states = forward(inputs)
    assert states.hidden[model.place(2)].shape == (5, *(9, 8)[:axes], 6)
    assert states.logits is not None
    assert states.logits.shape == (5, 3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kernel": 2}, "'kernel' must be odd, so that maps keep a size; got 2"),
        ({"output": "positions", "stride": 2}, "'stride' must be 1 with output 'positions'"),
        ({"channels": [0]}, "'channels"),
        ({"axes": 3}, "'axes'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises((SpecError, ValidationError), match=sentence):
        parse(CNNSpec, {"kind": "cnn", "channels": [4]} | fields)


def test_a_network_beyond_the_memory_is_refused_with_its_parameters() -> None:
    channels = (10**6, 10**6)
    sizes = [9 * before * after + after for before, after in pairwise((2, *channels))]
    count = sum(sizes) + (10**6 + 1) * 3
    with pytest.raises(BindError, match=f"'channels' with {count:,} parameters for 2 channels"):
        build(channels=channels)
