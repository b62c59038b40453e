"""Invariants of projections of all widths, seeds and names."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curricle.objectives.projections import Gaussian, Orthogonal, Sign

Law = Gaussian | Sign | Orthogonal
laws = pytest.mark.parametrize("law", [Gaussian(), Sign(), Orthogonal()], ids=lambda law: law.kind)
widths = st.integers(1, 24)
seeds = st.integers(-(2**63), 2**63)
pair_names = st.text(max_size=12)


@laws
@given(seed=seeds, name=pair_names, student_width=widths, teacher_width=widths)
def test_a_matrix_is_a_pure_function_of_its_arguments(
    law: Law, seed: int, name: str, student_width: int, teacher_width: int
) -> None:
    first, second = (
        law.matrix(seed=seed, name=name, student_width=student_width, teacher_width=teacher_width)
        for _ in range(2)
    )
    assert first.shape == (student_width, teacher_width)
    assert first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("law", [Gaussian(), Orthogonal()], ids=lambda law: law.kind)
@given(seed=seeds, one=pair_names, other=pair_names)
def test_different_names_give_different_matrices(law: Law, seed: int, one: str, other: str) -> None:
    first, second = (
        law.matrix(seed=seed, name=name, student_width=4, teacher_width=6) for name in (one, other)
    )
    assert torch.equal(first, second) == (one == other)


@given(seed=seeds, student_width=widths, teacher_width=widths)
def test_signs_have_the_magnitude_of_the_teacher_width(
    seed: int, student_width: int, teacher_width: int
) -> None:
    matrix = Sign().matrix(
        seed=seed,
        name="h",
        student_width=student_width,
        teacher_width=teacher_width,
        dtype=torch.float64,
    )
    assert set(matrix.abs().flatten().tolist()) == {1 / math.sqrt(teacher_width)}


@given(seed=seeds, student_width=widths, teacher_width=widths)
def test_orthogonal_keeps_right_angles_and_lengths(
    seed: int, student_width: int, teacher_width: int
) -> None:
    matrix = Orthogonal().matrix(
        seed=seed,
        name="h",
        student_width=student_width,
        teacher_width=teacher_width,
        dtype=torch.float64,
    )
    rows = student_width <= teacher_width
    product = matrix @ matrix.T if rows else matrix.T @ matrix
    expected = torch.eye(len(product), dtype=torch.float64)
    expected *= 1 if rows else student_width / teacher_width
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-8)


@laws
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), student_width=widths, teacher_width=widths)
def test_the_squared_norm_is_kept_within_its_spread(
    law: Law, seed: int, student_width: int, teacher_width: int
) -> None:
    squares = torch.stack(
        [
            law.matrix(
                seed=seed + index,
                name="h",
                student_width=student_width,
                teacher_width=teacher_width,
            )
            .square()
            .sum()
            for index in range(30)
        ]
    )
    # E |A|^2 = student_width; one entry's square spreads by at most sqrt(2) of its mean.
    spread = math.sqrt(2 / (30 * student_width * teacher_width))
    assert abs(squares.mean().item() / student_width - 1) < 8 * spread + 1e-6
