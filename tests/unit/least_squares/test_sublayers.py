"""Sublayers of a block follow from what its modules hand on, whatever they are called."""

import pytest
import torch
from torch import Tensor, nn

from curricle.least_squares.sublayers import BlockCall, anatomy, read
from tests.parts import drawn

WIDTH, CALL = 6, BlockCall((), {})


class Block(nn.Module):
    """Two sublayers of one map each, with normalizations before them or of their sums."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.ups = nn.ModuleList(nn.Linear(WIDTH, 9) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(9, WIDTH) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        if self.place == "parallel":
            read = self.norms[0](states)
            first, second = (
                down(up(read).relu()) for up, down in zip(self.ups, self.downs, strict=True)
            )
            total: Tensor = states + first + second
            return total
        for number in range(2):
            read = self.norms[number](states) if self.place in {"before", "beside"} else states
            states = states + self.downs[number](self.ups[number](read).relu())
            if self.place == "after":
                states = self.norms[number](states)
        if self.place == "beside":
            states = states + self.norms[2](states)
        return states


@pytest.mark.parametrize(
    ("place", "norms", "end_norms", "stages"),
    [
        ("before", ["norms.0", "norms.1"], [None, None], [0, 1]),
        ("after", [None, None], ["norms.0", "norms.1"], [0, 1]),
        ("none", [None, None], [None, None], [0, 1]),
        ("parallel", ["norms.0", "norms.0"], [None, None], [0, 0]),
    ],
)
def test_parts_have_their_normalizations_and_states(
    place: str, norms: list[str | None], end_norms: list[str | None], stages: list[int]
) -> None:
    found = anatomy(Block(place), CALL, drawn(2, 4, WIDTH))
    # Without normalizations nothing shows that the second sublayer reads a state.
    if place == "none":
        assert found.reason == "'ups.1' neither reads nor writes its states"
        return
    assert not found.reason
    sublayers = found.sublayers
    assert [sublayer.inputs[0].path for sublayer in sublayers] == ["ups.0", "ups.1"]
    assert [sublayer.output.path for sublayer in sublayers] == ["downs.0", "downs.1"]
    assert [sublayer.norm and sublayer.norm.path for sublayer in sublayers] == norms
    assert [sublayer.end_norm and sublayer.end_norm.path for sublayer in sublayers] == end_norms
    assert [sublayer.stage for sublayer in sublayers] == stages


def test_a_normalization_beside_the_states_is_a_reason() -> None:
    found = anatomy(Block("beside"), CALL, drawn(2, 4, WIDTH))
    assert found.reason == "it has normalizations beside those of its states"


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (nn.Sequential(nn.ReLU()), "it calls no linear map"),
        (nn.Sequential(nn.Linear(WIDTH, 4)), "no map writes what '0' reads"),
        (nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 4)), "neither reads nor writes"),
        (nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)), "its states are not sums"),
    ],
)
def test_what_is_not_understood_is_said(block: nn.Module, reason: str) -> None:
    assert reason in anatomy(block, CALL, drawn(2, 4, WIDTH)).reason


def test_a_map_called_twice_is_a_reason() -> None:
    block = Block("before")
    block.ups[1] = block.ups[0]
    assert anatomy(block, CALL, drawn(2, 4, WIDTH)).reason == "it calls 'ups.0' twice"


def test_a_pass_is_read_changed_and_ended() -> None:
    block, states = Block("before"), drawn(2, 4, WIDTH)
    whole = read(block, CALL, states, ["norms.0", "downs.1"])
    assert torch.equal(whole.outputs[""], block(states))
    torch.testing.assert_close(whole.outputs["norms.0"], block.norms[0](states))
    replaced = torch.ones(2, 4, 9)
    changed = read(block, CALL, states, ["downs.0"], replacements={"ups.0": replaced})
    torch.testing.assert_close(changed.outputs["downs.0"], block.downs[0](replaced))
    ended = read(block, CALL, states, [], stop_at="downs.0")
    assert "" not in ended.outputs
    torch.testing.assert_close(ended.inputs["downs.0"], block.ups[0](block.norms[0](states)).relu())
    # No hook is left behind.
    assert not any(module._forward_hooks for module in block.modules())


def test_a_call_may_pass_the_state_by_name() -> None:
    class Named(nn.Module):
        def forward(self, *, factor: float, states: Tensor) -> tuple[Tensor]:
            return (factor * states,)

    states = drawn(2, 4, WIDTH)
    call = BlockCall((), {"factor": 2.0}, "states")
    assert torch.equal(call.run(Named(), states), 2 * states)
    half = BlockCall((states.bfloat16(), 1), {"pair": (states.bfloat16(),)}).in_float32()
    (first, number), pair = half.args, half.keywords["pair"]
    assert isinstance(first, Tensor)
    assert isinstance(pair, tuple)
    assert first.dtype == pair[0].dtype == torch.float32
    assert number == 1
