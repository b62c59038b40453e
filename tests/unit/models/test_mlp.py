"""The fully connected network of the parity experiments."""

import math

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.errors import BindError, SpecError
from curricle.models.mlp import MLP, MLPSpec
from curricle.values import parse, plain
from tests.parts import drawn


def build(*widths: int, num_inputs: int = 4, num_classes: int = 3) -> MLP:
    with seeding.scoped(0, "test model"):
        return MLP(num_inputs, widths, num_classes)


def test_it_has_the_parameters_of_its_widths() -> None:
    expected = (4 + 1) * 5 + (5 + 1) * 6 + (6 + 1) * 3
    assert sum(one.numel() for one in build(5, 6).parameters()) == expected


def test_forward_is_the_chain_of_maps_and_rectifiers() -> None:
    module = build(5, 6)
    weights = [one.detach().double().numpy() for one in module.parameters()]
    state = drawn(7, 4).double().numpy()
    for weight, bias in zip(weights[0:4:2], weights[1:4:2], strict=True):
        state = (state @ weight.T + bias).clip(min=0)
    expected = torch.from_numpy(state @ weights[4].T + weights[5])
    torch.testing.assert_close(module(drawn(7, 4)).double(), expected)


def test_weights_are_drawn_as_torch_draws_them() -> None:
    module = build(500, num_inputs=100)
    first = next(module.parameters())
    bound = 1 / math.sqrt(100)
    assert first.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert first.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_its_blocks_are_taps() -> None:
    model = build(5, 6).tapped()
    assert model.depth == 2
    assert not model.is_residual
    with model.open_taps([model.place(1), model.place(2)], logits=True) as forward:
        shown = forward(drawn(7, 4))
    assert [state.shape for state in shown.hidden.values()] == [(7, 5), (7, 6)]
    assert all((state >= 0).all() for state in shown.hidden.values())
    assert shown.logits is not None
    assert shown.logits.shape == (7, 3)


def test_a_spec_builds_the_network_for_a_task() -> None:
    with seeding.scoped(0, "test model"):
        model = MLPSpec(widths=(5,)).build(num_inputs=4, num_classes=2, num_positions=9)
    linears = [part for part in model.module.modules() if isinstance(part, nn.Linear)]
    assert [(one.in_features, one.out_features) for one in linears] == [(4, 5), (5, 2)]


def test_equal_seeds_draw_equal_weights() -> None:
    one, other = build(5).state_dict(), build(5).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_spec_survives_plain_data() -> None:
    spec = MLPSpec(widths=(5, 6))
    assert plain(spec) == {"kind": "mlp", "widths": [5, 6]}
    assert parse(MLPSpec, plain(spec)) == spec


@pytest.mark.parametrize(
    ("widths", "sentence"),
    [
        ((), r"'MLPSpec.widths' must have at least 1 item .*; got \(\)"),
        ((3, 0), r"'MLPSpec.widths.1' must be greater than 0; got 0"),
    ],
)
def test_widths_are_positive(widths: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        MLPSpec(widths=widths)


def test_a_network_of_too_many_layers_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'MLPSpec.widths' must have at most 1000 items"):
        MLPSpec(widths=(2,) * 1001)


@pytest.mark.parametrize("widths", [(10**9, 10**9), (10**13,)])
def test_a_network_that_no_memory_holds_is_refused_before_it_is_built(
    widths: tuple[int, ...],
) -> None:
    sentence = r"the network of 'widths' with [\d,]+ parameters for 3 inputs must fit into memory"
    with pytest.raises(BindError, match=sentence):
        MLPSpec(widths=widths).build(num_inputs=3, num_classes=2, num_positions=1)


def test_an_image_is_read_as_one_vector() -> None:
    spec = MLPSpec(widths=(5,), axes=2)
    with seeding.scoped(0, "test model"):
        flat = spec.build(num_inputs=2, num_classes=3, num_positions=4)
    with seeding.scoped(0, "test model"):
        plain_model = MLP(2 * 4 * 4, (5,), 3)
    image = drawn(7, 2, 4, 4)
    torch.testing.assert_close(flat.module(pixel_values=image), plain_model(image.reshape(7, 32)))
    assert flat.depth == 1


def test_axes_of_vectors_stay_unwritten() -> None:
    # Runs from before this field keep the digests of their teachers.
    assert plain(MLPSpec(widths=(5,))) == {"kind": "mlp", "widths": [5]}
