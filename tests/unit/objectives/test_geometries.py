"""CKA and Procrustes distances by hand; values and gradients are promises of the contract."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.objectives.geometries import cka_distance, procrustes_distance
from curricle.probes.representations import linear_cka
from tests.parts import drawn

Distance = Callable[[Tensor, Tensor], Tensor]
both = pytest.mark.parametrize("distance", [cka_distance, procrustes_distance])
seeds = st.integers(0, 1000)


def rotation(width: int, seed: int) -> Tensor:
    turn: Tensor = torch.linalg.qr(drawn(width, width, seed=seed).double()).Q
    return turn


@both
@given(seed=seeds)
def test_rotations_and_shifts_of_either_side_do_not_matter(distance: Distance, seed: int) -> None:
    student, teacher = drawn(9, 3, seed=seed).double(), drawn(9, 5, seed=seed + 1).double()
    expected = distance(student, teacher)
    turned = student @ rotation(3, seed + 2) + drawn(3, seed=seed + 3).double()
    other = teacher @ rotation(5, seed + 4)
    assert torch.allclose(distance(turned, other), expected, rtol=1e-9)


@both
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_scales_of_either_side_do_not_matter(distance: Distance, seed: int, scale: float) -> None:
    student, teacher = drawn(9, 3, seed=seed).double(), drawn(9, 5, seed=seed + 1).double()
    expected = distance(student, teacher)
    assert torch.allclose(distance(student * scale, teacher), expected, rtol=1e-9)
    assert torch.allclose(distance(student, teacher * scale), expected, rtol=1e-9)


@both
@given(seed=seeds)
def test_a_rotated_copy_in_a_wider_space_has_distance_0(distance: Distance, seed: int) -> None:
    student = drawn(9, 3, seed=seed).double()
    teacher = 7.0 * student @ rotation(5, seed + 1)[:3] + 2.0
    assert distance(student, teacher).item() == pytest.approx(0, abs=1e-9)


@both
@given(seed=seeds)
def test_the_distance_of_two_states_is_symmetric(distance: Distance, seed: int) -> None:
    first, second = drawn(6, 4, seed=seed).double(), drawn(6, 2, seed=seed + 1).double()
    assert torch.allclose(distance(first, second), distance(second, first))


@both
def test_uncorrelated_states_have_the_largest_distance(distance: Distance) -> None:
    # The columns of a Hadamard matrix are orthogonal to each other and to the constant.
    student = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    teacher = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    expected = 1.0 if distance is cka_distance else 2.0
    assert distance(student, teacher).item() == pytest.approx(4 * expected)


def test_cka_weighs_directions_by_their_variance_and_procrustes_by_its_root() -> None:
    # Columns of lengths 2 and 2 against 2 and 4: by hand from sums of squares of centered columns.
    axes = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    teacher = axes * torch.tensor([1.0, 2.0])
    # CKA: (16 + 64) / sqrt(32 * (16 + 256)); Procrustes: (4 + 8) / sqrt(8 * 20).
    assert cka_distance(axes, teacher).item() == pytest.approx(4 * (1 - 80 / (32 * 272) ** 0.5))
    assert procrustes_distance(axes, teacher).item() == pytest.approx(4 * (2 - 24 / 160**0.5))


def test_the_alignment_is_that_of_the_probe() -> None:
    student, teacher = drawn(9, 3).double(), drawn(9, 5, seed=1).double()
    expected = 1 - linear_cka(student, teacher, debiased=False)
    assert cka_distance(student, teacher).item() / 9 == pytest.approx(expected)


@both
@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_rows_add_nothing(distance: Distance, rows: int) -> None:
    states = drawn(rows, 3).requires_grad_()
    total = distance(states, drawn(rows, 5))
    (gradient,) = torch.autograd.grad(total, states)
    assert total.item() == 0
    assert not gradient.any()


@both
@pytest.mark.parametrize("states", [torch.ones(6, 3), drawn(6, 1).expand(6, 3), drawn(2, 3)])
def test_degenerate_states_have_finite_gradients(distance: Distance, states: Tensor) -> None:
    student = states.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(student, drawn(len(states), 4)), student)
    assert gradient.isfinite().all()


@both
def test_low_precision_is_computed_in_float32(distance: Distance) -> None:
    student, teacher = drawn(8, 3).bfloat16(), drawn(8, 5, seed=1).bfloat16()
    assert distance(student, teacher).dtype == torch.float32
    expected = distance(student.float(), teacher.float())
    assert torch.equal(distance(student, teacher), expected)
