"""Heads and neurons are found whatever the maps are called and however they are fused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curricle.least_squares.calibrated import CalibratedModel
from curricle.least_squares.roles import Roles, roles
from curricle.least_squares.sublayers import BlockCall, anatomy
from curricle.models.wrapping import tapped
from tests.parts import drawn
from tests.unit.least_squares import families

LENGTH, WIDTH = 5, 8


class Attention(nn.Module):
    """Attention and a gated sublayer under names that say nothing, with permuted columns."""

    def __init__(self, order: Tensor, *, is_causal: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.a, self.b = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c, self.d = nn.Linear(WIDTH, 12), nn.Linear(6, WIDTH)
        self.order, self.is_causal = order, is_causal

    def forward(self, states: Tensor) -> Tensor:
        columns = self.a(self.first(states))[..., self.order]
        queries, keys, values = columns.unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=self.is_causal
        )
        states = states + self.b(mixed.transpose(1, 2).flatten(2))
        gates, factors = self.c(self.second(states)).chunk(2, -1)
        changed: Tensor = states + self.d(factors * nn.functional.gelu(gates))
        return changed


@pytest.mark.parametrize("is_causal", [True, False])
def test_roles_follow_a_permutation_of_the_columns(is_causal: bool) -> None:
    order = torch.randperm(3 * WIDTH, generator=torch.Generator().manual_seed(0))
    block = Attention(order, is_causal=is_causal).eval()
    state, call = drawn(1, LENGTH, WIDTH), BlockCall((), {})
    sublayers = anatomy(block, call, state).sublayers
    assert [sublayer.output.path for sublayer in sublayers] == ["b", "d"]
    heads = roles(block, call, state, sublayers[0]).heads
    size = WIDTH // 2
    for number, head in enumerate(heads):
        expected = [
            set(order[start : start + size].tolist())
            for start in (size * number, WIDTH + size * number, 2 * WIDTH + size * number)
        ]
        assert [set(columns.tolist()) for columns in (head.queries, head.keys, head.values)] == (
            expected
        )
        # A value is where its output is.
        assert head.values.tolist() == order[2 * WIDTH + head.outputs].tolist()
        assert head.num_rotary == 0
        assert head.scale == pytest.approx(size**-0.5, rel=1e-3)
    neurons = roles(block, call, state, sublayers[1]).neurons
    assert neurons is not None
    assert neurons.activated.tolist() == list(range(6))
    assert neurons.multiplied is not None
    assert neurons.multiplied.tolist() == list(range(6, 12))


def of_family(family: str, **fields: Any) -> tuple[Roles, ...]:
    pytest.importorskip("transformers")
    module = families.model(family, **fields)
    model = CalibratedModel(tapped(module), [families.inputs(family, 0)], [None])
    found = model.understood(0)
    assert not found.reason
    assert not any(role.reason for role in found.roles)
    return found.roles


@pytest.mark.parametrize(
    ("family", "num_rotary"),
    [("llama", 8), ("modernbert", 8), ("phi", 4), ("gpt_neox", 4), ("gpt2", 0), ("bert", 0)],
)
def test_columns_that_rotate_are_counted(family: str, num_rotary: int) -> None:
    heads = of_family(family)[0].heads
    assert [head.num_rotary for head in heads] == [num_rotary] * 2
    assert not any(head.are_interleaved for head in heads)


def test_heads_may_share_keys_and_values() -> None:
    first, second = of_family("llama")[0].heads
    assert first.group == second.group
    assert torch.equal(first.keys, second.keys)
    assert torch.equal(first.values, second.values)
    assert not torch.equal(first.queries, second.queries)


@pytest.mark.parametrize(("family", "has_gates"), [("llama", True), ("bert", False)])
def test_gates_are_distinguished_from_plain_neurons(family: str, has_gates: bool) -> None:
    neurons = of_family(family)[1].neurons
    assert neurons is not None
    assert (neurons.multiplied is not None) == has_gates


def test_a_part_that_is_neither_has_a_reason() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)

        def forward(self, states: Tensor) -> Tensor:
            changed: Tensor = states + self.down(self.up(states).softmax(-1))
            return changed

    block, state, call = Mixer().eval(), drawn(1, LENGTH, WIDTH), BlockCall((), {})
    sublayer = anatomy(block, call, state).sublayers[0]
    assert (
        roles(block, call, state, sublayer).reason == "a column of it reaches no neuron, or several"
    )
