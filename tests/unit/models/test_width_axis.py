"""Axes of features, told by the layers of a pass and by a shorter one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.models.tapped import Place
from curricle.models.width_axis import LayerTrace, has_features_last, width_axes
from tests.parts import drawn


def made(kind: type[nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    with seeding.scoped(0, "test model"):
        return kind(*arguments, **options)


class Applies(nn.Module):
    """A module with some parts whose forward is a function of them and of its inputs."""

    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, inputs: Tensor, **others: Tensor) -> Tensor:
        output: Tensor = self.function(self, inputs, **others)
        return output


def axis_of_output(module: nn.Module, inputs: Tensor) -> int | None:
    shape = tuple(module(inputs).shape)
    return width_axes(module, inputs, {}, {None: shape}).get(None)


class ChannelsFirst(nn.LayerNorm):
    """A normalization of channels on axis 1, as in ConvNext."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize(
    ("layer", "is_known"),
    [
        (nn.LayerNorm(4), True),
        (nn.RMSNorm(4), True),
        (nn.LayerNorm([3, 4]), False),
        (ChannelsFirst(4), False),
        (nn.Identity(), False),
    ],
)
def test_a_norm_over_one_axis_has_its_features_last(layer: nn.Module, is_known: bool) -> None:
    assert has_features_last(layer) is is_known


def convolution() -> nn.Module:
    return made(nn.Conv1d, 4, 4, 3, padding=1)


@pytest.mark.parametrize(
    ("layers", "shape", "axis"),
    [
        ([made(nn.Linear, 4, 6)], (2, 3, 3, 4), 3),
        ([made(nn.Linear, 4, 6), nn.Tanh(), nn.BatchNorm1d(5), nn.ReLU()], (2, 5, 4), 2),
        ([convolution(), nn.ReLU()], (2, 4, 4), 1),
        ([convolution(), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.MaxPool1d(2)], (2, 4, 8), 1),
        ([convolution(), nn.Flatten(1)], (2, 4, 4), None),
        ([nn.ReLU()], (2, 4, 4), None),
    ],
)
def test_layers_tell_the_axis_of_what_they_make(
    layers: list[nn.Module], shape: tuple[int, ...], axis: int | None
) -> None:
    module, trace = nn.Sequential(*layers), LayerTrace()
    with trace.watching(module):
        output = module(drawn(*shape))
    assert trace.axis(output) == axis
    assert trace.axis(output.clone()) is None
    assert not any(layer._forward_hooks for layer in module.modules())


def test_a_fused_layer_has_no_hook_inside() -> None:
    encoder = nn.TransformerEncoder(
        made(nn.TransformerEncoderLayer, 4, 2, 8, batch_first=True),  # type: ignore[arg-type]
        1,
    )
    with LayerTrace().watching(nn.Sequential(encoder)):
        inside = encoder.layers[0].modules()
        assert [layer for layer in inside if layer._forward_hooks] == []


@pytest.mark.parametrize(
    ("function", "inputs", "axis"),
    [
        (lambda _, x: torch.stack([x, x], 1).float(), torch.zeros(3, 8), 1),
        (lambda m, x: m.part(x.float()[:, None].expand(-1, 4, -1)).mT, torch.ones(3, 8), 2),
        (lambda m, x: m.part(x).relu(), drawn(3, 4, 8), 1),
        (lambda m, x: m.part(x).relu()[:, None], drawn(3, 4, 8), 1),
        (lambda _, x: x[:, :, None] * x[:, None], drawn(3, 8), 0),
        (lambda _, x: x.new_zeros(3, 5, 5), drawn(3, 8), None),
        (lambda _, x: x.unflatten(1, (2, 4)), drawn(3, 8), None),
    ],
    ids=["classes", "transposed and back", "signal", "map", "pairs", "constant", "fixed length"],
)
def test_the_axis_that_keeps_its_size_counts_features(
    function: Any, inputs: Tensor, axis: int | None
) -> None:
    assert axis_of_output(Applies(function, part=convolution()), inputs) == axis


def test_masks_and_numbers_of_positions_are_shortened_too() -> None:
    def forward(_: nn.Module, inputs: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        assert inputs.shape[1] == mask.shape[1] == mask.shape[2]
        return (inputs[:, :, None] * mask.sum(-1)[..., None] * table).float()

    module = Applies(forward)
    inputs = {"inputs": torch.ones(3, 8), "mask": torch.ones(3, 8, 8), "table": torch.ones(5)}
    assert module(**inputs).shape == (3, 8, 5)
    assert width_axes(module, inputs, {}, {None: (3, 8, 5)}) == {None: 2}


def test_places_are_told_apart_by_call_and_side() -> None:
    module = Applies(lambda m, x: m.part(m.part(x)).mT.relu(), part=convolution())
    shapes = {Place("part", 1): (3, 4, 8), Place("part", 0, "input"): (3, 4, 8), None: (3, 8, 4)}
    assert width_axes(module, drawn(3, 4, 8), {}, shapes) == {
        Place("part", 1): 1,
        Place("part", 0, "input"): 1,
        None: 2,
    }


def test_the_model_and_the_generators_stay_as_they_were() -> None:
    module = nn.Sequential(convolution(), nn.BatchNorm1d(4), nn.Dropout(), nn.Identity())
    module[3].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = seeding.global_state()
    assert axis_of_output(module.eval(), drawn(3, 4, 8)) == 1
    module.train()
    module[3].eval()
    assert width_axes(module, drawn(3, 4, 8), {}, {None: (3, 4, 8)}) == {None: 1}
    assert [layer.training for layer in module] == [True, True, True, False]
    assert seeding.global_state() == state
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("inputs", [torch.ones(3), torch.ones(3, 1)])
def test_inputs_without_a_length_tell_nothing(inputs: Tensor) -> None:
    assert width_axes(nn.Identity(), inputs, {}, {None: (3, 1, 1)}) == {}


def test_a_model_that_asserts_the_size_of_its_images_leaves_axes_open() -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert tuple(images.shape[1:]) == (2, 8, 8), "wrong size"
            return images.flatten(2).mT

    assert width_axes(Fixed(), drawn(3, 2, 8, 8), {}, {Place(""): (3, 64, 2)}) == {}
