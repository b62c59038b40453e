"""How one small pass shows which blocks make the hidden states of a model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.models.tapped import Place
from curricle.models.tracing import traced_stacks


class Block(nn.Module):
    """A block with a list inside."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.drop = nn.Dropout(0.5)

    def forward(self, states: Tensor) -> tuple[Tensor]:
        for layer in self.maps:
            states = self.drop(layer(states))
        return (states,)


class Net(nn.Module):
    """A model with the interface of transformers."""

    main_input_name = "input_ids"
    order: tuple[int, ...] = (0, 1, 2)

    def __init__(self, num_blocks: int = 3, *, calls: int = 1, shift: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="tiny", vocab_size=20)
        self.embeddings = nn.Embedding(20, 4)
        self.layers = nn.ModuleList(Block() for _ in range(num_blocks))
        self.norm = nn.LayerNorm(4)
        self.calls, self.shift = calls, shift
        self.register_buffer("passes", torch.zeros(()))

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, **options: Any) -> dict[str, Any]:
        assert options["output_hidden_states"]
        assert isinstance(self.passes, Tensor)
        self.passes += 1
        states = self.embeddings(input_ids).permute(self.order)
        listed = [states]
        for block in [*self.layers] * self.calls:
            (states,) = block(states)
            listed.append(states)
        listed[-1] = self.norm(listed[-1])
        back = tuple(state.permute(self.order).contiguous() for state in listed)
        return {"hidden_states": back[self.shift :]}


class SequenceFirst(Net):
    order = (1, 0, 2)


class Refusing(Net):
    def forward(self, input_ids: Tensor, **options: Any) -> dict[str, Any]:
        raise ValueError(f"no {len(input_ids)} examples")


class Composite(Net):
    def forward(self, input_ids: Tensor, **options: Any) -> dict[str, Any]:
        part = super().forward(input_ids, **options)
        return {"logits": input_ids, "text_model_output": part}


class Maps(nn.Module):
    """Stages of convolutions that halve images."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="tiny", num_channels=3)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 2, stride=2), nn.Identity())
            for before, after in ((3, 5), (5, 7))
        )

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, pixel_values: Tensor, **_: Any) -> dict[str, Any]:
        states = [pixel_values]
        for stage in self.stages:
            states.append(stage(states[-1]))
        return {"hidden_states": tuple(states)}


def build(kind: Any, *args: Any, **fields: Any) -> Any:
    with seeding.scoped(0, "test model"):
        return kind(*args, **fields)


def test_blocks_are_the_outermost_modules_that_make_the_states() -> None:
    (stack,) = traced_stacks(build(Net), {})
    assert [str(place) for place in stack.places] == [
        "layers.0 (input)", "layers.0", "layers.1", "layers.2",
    ]  # fmt: skip
    assert [place.tap for place in stack.places] == ["0", "1", "2", "3"]
    assert (stack.name, stack.keeps_shape, stack.has_maps) == ("", True, False)
    assert all(place.order == () for place in stack.places)


@pytest.mark.parametrize(("number", "calls"), [(1, 3), (2, 2)])
def test_a_block_that_runs_several_times_is_a_tap_in_each_call(number: int, calls: int) -> None:
    (stack,) = traced_stacks(build(Net, number, calls=calls), {})
    expected = [Place(f"layers.{block}", call) for call in range(calls) for block in range(number)]
    assert list(stack.places) == [Place("layers.0", 0, "input"), *expected]


def test_states_of_sequence_first_blocks_are_put_in_order() -> None:
    (stack,) = traced_stacks(build(SequenceFirst), {})
    assert {place.order for place in stack.places} == {(1, 0, 2)}


def test_maps_have_their_channels_put_last() -> None:
    (stack,) = traced_stacks(build(Maps), {})
    assert {place.order for place in stack.places} == {(0, 2, 3, 1)}
    assert (stack.keeps_shape, stack.has_maps) == (False, True)


def test_parts_of_a_composite_are_stacks_with_names() -> None:
    (stack,) = traced_stacks(build(Composite), {})
    assert stack.name == "text"
    assert [place.tap for place in stack.places] == ["text:0", "text:1", "text:2", "text:3"]
    assert {place.stack for place in stack.places} == {"text"}


@pytest.mark.parametrize(
    "model",
    [build(Net, shift=1), build(Refusing), nn.Linear(2, 2), build(Net).to("meta")],
    ids=["a list that begins later", "no pass", "another module", "no weights"],
)
def test_a_model_that_shows_no_states_of_blocks_has_no_stack(model: Any) -> None:
    assert traced_stacks(model, {}) == ()


def test_a_model_is_left_as_it_was() -> None:
    model = build(Net)
    model.layers[1].eval()
    before = torch.get_rng_state()
    assert traced_stacks(model, {})
    assert torch.equal(before, torch.get_rng_state())
    assert model.passes == 0
    assert [block.training for block in model.layers] == [True, False, True]
    assert not any(module._forward_hooks for module in model.modules())
