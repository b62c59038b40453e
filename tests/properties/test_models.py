"""What holds for taps of models of all depths."""

import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle import seeding
from curricle.models.mlp import MLP
from curricle.models.tapped import tap_number

depths = st.integers(1, 200)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(depth=depths, fraction=fractions)
def test_a_fraction_is_a_tap_between_the_first_and_the_last_block(
    depth: int, fraction: float
) -> None:
    assert 1 <= tap_number(fraction, depth) <= depth or fraction * depth < 1e-9


@given(depth=st.integers(2, 200), data=st.data())
def test_a_fraction_that_is_a_tap_exactly_is_that_tap(depth: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, depth - 1))
    assert tap_number(number / depth, depth) == number


@given(depth=depths, numerator=st.integers(1, 99), denominator=st.integers(2, 100))
def test_a_fraction_is_rounded_up_as_in_exact_arithmetic(
    depth: int, numerator: int, denominator: int
) -> None:
    exact = Fraction(numerator, denominator)
    if exact < 1:
        assert tap_number(numerator / denominator, depth) == math.ceil(exact * depth)


@given(depth=depths, one=fractions, other=fractions)
def test_a_larger_fraction_is_no_shallower(depth: int, one: float, other: float) -> None:
    low, high = sorted([one, other])
    assert tap_number(low, depth) <= tap_number(high, depth)


@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    num_examples=st.integers(1, 4),
    seed=st.integers(0, 1_000),
    data=st.data(),
)
def test_a_tap_of_an_mlp_is_the_state_after_as_many_blocks(
    widths: list[int], num_examples: int, seed: int, data: st.DataObject
) -> None:
    tap = data.draw(st.integers(0, len(widths)))
    with seeding.scoped(seed, "test model"):
        module = MLP(3, tuple(widths), 2)
    state = torch.randn(num_examples, 3, generator=seeding.generator(seed, "test inputs"))
    model = module.tapped()
    with model.open_taps([model.place(tap)], logits=False) as forward:
        found = forward(state).hidden[model.place(tap)]
    for block in list(module.blocks)[:tap]:
        state = block(state)
    assert torch.equal(found, state)
