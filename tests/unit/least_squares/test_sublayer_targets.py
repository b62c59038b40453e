"""Targets keep what a smaller sublayer can compute of a larger one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from curricle.least_squares.maps import LinearMap
from curricle.least_squares.roles import Head, Neurons, Roles
from curricle.least_squares.sublayer_targets import Survey, encoding, pursued
from curricle.least_squares.sublayers import Sublayer
from tests.parts import drawn

WIDTH, ROWS = 6, 400


def linear(path: str, inputs: int, outputs: int, seed: int) -> LinearMap:
    module = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.zeros_(module.bias)
    module.weight.data = drawn(outputs, inputs, seed=seed)
    return LinearMap(path, module, is_transposed=False)


def attention(
    num_heads: int, size: int, *, seed: int = 0, num_rotary: int = 0
) -> tuple[Sublayer, Roles]:
    width = num_heads * size
    sublayer = Sublayer(
        (linear("in", WIDTH, 3 * width, seed),), linear("out", width, WIDTH, seed + 1)
    )
    heads = [
        Head(
            queries=torch.arange(size) + size * number,
            keys=torch.arange(size) + width + size * number,
            values=torch.arange(size) + 2 * width + size * number,
            outputs=torch.arange(size) + size * number,
            group=number,
            num_rotary=num_rotary,
            scale=size**-0.5,
        )
        for number in range(num_heads)
    ]
    return sublayer, Roles(heads=tuple(heads))


def survey(sublayer: Sublayer, role: Roles, columns: Tensor, inputs: Tensor) -> Survey:
    rows = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1).double()
    return Survey(sublayer, role, rows.mT @ rows, inputs.double().mT @ inputs.double())


def test_a_part_of_equal_size_has_its_own_columns_as_targets() -> None:
    sublayer, role = attention(2, 3)
    teacher = survey(sublayer, role, drawn(ROWS, 18, seed=5), drawn(ROWS, 6, seed=6))
    code = encoding(role, sublayer, [teacher], torch.eye(WIDTH).double())
    assert torch.equal(code.columns[0], torch.eye(18).double())
    assert torch.equal(code.inputs[0], torch.eye(6).double())
    assert bool(code.is_set.all())


def test_the_head_that_writes_most_is_chosen() -> None:
    sublayer, role = attention(3, 2)
    inputs = drawn(ROWS, 6, seed=6) * torch.tensor([0.1, 0.1, 5.0, 5.0, 0.1, 0.1])
    teacher = survey(sublayer, role, drawn(ROWS, 18, seed=5), inputs)
    small, small_role = attention(1, 2, seed=9)
    code = encoding(small_role, small, [teacher], torch.eye(WIDTH).double())
    queries = code.columns[0][:2]
    assert queries[:, 2:4].tolist() == [[1, 0], [0, 1]]
    assert not queries[:, :2].any()
    assert not queries[:, 4:].any()


def test_narrow_queries_and_keys_have_the_product_of_least_error() -> None:
    sublayer, role = attention(1, 4)
    columns = drawn(ROWS, 12, seed=5)
    teacher = survey(sublayer, role, columns, drawn(ROWS, 4, seed=6))
    small, small_role = attention(1, 2, seed=9)
    code = encoding(small_role, small, [teacher], torch.eye(WIDTH).double())
    rows = columns.double()
    queries, keys = (rows @ code.columns[0][start : start + 2].mT for start in (0, 2))
    scores = queries @ keys.mT * 2**-0.5
    key_rows = rows[:, 4:8] - rows[:, 4:8].mean(0)
    exact = rows[:, :4] @ key_rows.mT * 4**-0.5
    # Softmax takes no notice of what all keys have in common.
    error = (scores - scores.mean(1, keepdim=True) - exact).square().sum()
    best = torch.linalg.svdvals(exact)[2:].square().sum()
    assert error <= 1.001 * best


def test_rotating_pairs_of_near_frequencies_make_the_product_of_least_error() -> None:
    sublayer, role = attention(1, 8, num_rotary=8)
    columns = drawn(ROWS, 24, seed=5)
    teacher = survey(sublayer, role, columns, drawn(ROWS, 8, seed=6))
    small, small_role = attention(1, 4, seed=9, num_rotary=4)
    code = encoding(small_role, small, [teacher], torch.eye(WIDTH).double())
    # A pair is a complex number, which a rotation multiplies: columns j and j + 4 of the teacher's,
    # j and j + 2 of the student's. The teacher's pairs 0 and 1 make the student's 0, 2 and 3 its 1.
    rows = columns.double()
    targets = rows @ code.columns[0].mT
    for number in (0, 1):
        sources = torch.tensor([2 * number, 2 * number + 1])
        queries, keys = (
            torch.complex(rows[:, first + sources], rows[:, first + sources + 4])
            for first in (0, 8)
        )
        query, key = (
            torch.complex(targets[:, first + number], targets[:, first + number + 2])
            for first in (0, 4)
        )
        exact = 8**-0.5 * queries @ keys.mH
        error = (4**-0.5 * torch.outer(query, key.conj()) - exact).abs().square().sum()
        least = torch.linalg.svdvals(exact)[1:].square().sum()
        assert least < 0.999 * exact.abs().square().sum()
        assert error <= 1.001 * least


def test_a_rotating_pair_alone_is_taken_as_it_is() -> None:
    sublayer, role = attention(1, 4, num_rotary=4)
    teacher = survey(sublayer, role, drawn(ROWS, 12, seed=5), drawn(ROWS, 4, seed=6))
    large, large_role = attention(1, 8, seed=9, num_rotary=8)
    code = encoding(large_role, large, [teacher], torch.eye(WIDTH).double())
    # Of the student's four frequencies the first and third are those of the teacher.
    factor = (4**-0.5 / 8**-0.5) ** 0.5
    expected = torch.zeros(8, 4).double()
    expected[[0, 2, 4, 6], [0, 1, 2, 3]] = factor
    torch.testing.assert_close(code.columns[0][:8, :4], expected)


def test_narrow_values_keep_the_directions_that_write_most() -> None:
    sublayer, role = attention(1, 4)
    inputs = drawn(ROWS, 4, seed=6)
    teacher = survey(sublayer, role, drawn(ROWS, 12, seed=5), inputs)
    small, small_role = attention(1, 2, seed=9)
    code = encoding(small_role, small, [teacher], torch.eye(WIDTH).double())
    rows, weight = inputs.double(), sublayer.output.affine.weight
    encode = code.columns[0][4:6, 8:12]
    back = rows @ encode.mT @ code.inputs[0].mT @ weight.mT
    error = (back - rows @ weight.mT).square().sum()
    least = torch.linalg.svdvals(rows @ weight.mT)[2:].square().sum()
    assert error <= 1.001 * least


@pytest.mark.parametrize("has_gates", [False, True])
def test_the_neurons_that_write_most_are_chosen(has_gates: bool) -> None:
    size = 5

    def feed_forward(number: int, seed: int) -> tuple[Sublayer, Roles]:
        columns = number * (2 if has_gates else 1)
        sublayer = Sublayer(
            (linear("up", WIDTH, columns, seed),), linear("down", number, WIDTH, seed + 1)
        )
        multiplied = torch.arange(number, 2 * number) if has_gates else None
        return sublayer, Roles(neurons=Neurons(torch.arange(number), multiplied))

    sublayer, role = feed_forward(size, 0)
    inputs = drawn(ROWS, size, seed=6) * torch.tensor([1.0, 9.0, 0.1, 0.2, 9.0])
    teacher = survey(sublayer, role, drawn(ROWS, size * (2 if has_gates else 1)), inputs)
    small, small_role = feed_forward(2, 9)
    code = encoding(small_role, small, [teacher], torch.eye(WIDTH).double())
    expected = torch.zeros(2, size).double()
    expected[[0, 1], [1, 4]] = 1
    assert torch.equal(code.columns[0][:2, :size], expected)
    assert torch.equal(code.inputs[0], expected.mT)
    if has_gates:
        assert torch.equal(code.columns[0][2:, size:], expected)


def test_a_neuron_that_follows_from_chosen_ones_is_not_chosen() -> None:
    rows = drawn(ROWS, 4, seed=3).double() * torch.tensor([3.0, 1.0, 1.0, 0.5]).double()
    # Both carry most, and one is a multiple of the other.
    rows[:, 1] = 0.9 * rows[:, 0]
    first, second = pursued(rows.mT @ rows, torch.eye(4).double(), 2)
    assert first in {0, 1}
    assert second == 2


@given(seed=st.integers(0, 2**16), size=st.integers(1, 6))
def test_each_neuron_pursued_leaves_the_least_error(seed: int, size: int) -> None:
    rows, written = drawn(40, 6, seed=seed).double(), drawn(3, 6, seed=seed + 1).double()
    target = rows @ written.mT

    def error(neurons: list[int]) -> float:
        inputs = rows[:, neurons]
        solution = torch.linalg.lstsq(inputs, target).solution
        return float((inputs @ solution - target).square().sum())

    chosen = pursued(rows.mT @ rows, written, size)
    for number in range(size):
        errors = [
            error([*chosen[:number], neuron])
            for neuron in range(6)
            if neuron not in chosen[:number]
        ]
        assert error(chosen[: number + 1]) <= min(errors) + 1e-9 * float(target.square().sum())


def test_columns_beyond_those_of_the_teacher_have_no_target() -> None:
    sublayer, role = attention(1, 2)
    teacher = survey(sublayer, role, drawn(ROWS, 6), drawn(ROWS, 2, seed=1))
    large, large_role = attention(2, 2, seed=9)
    code = encoding(large_role, large, [teacher], torch.eye(WIDTH).double())
    assert code.is_set.tolist() == [True, True, False, False] * 3
