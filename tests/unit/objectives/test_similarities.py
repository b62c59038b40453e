"""Similarities and margins by hand; their values and gradients are promises of the contract."""

import pytest
import torch

from curricle.objectives.similarities import (
    cosines,
    margin_error,
    margins,
    pair_error,
    similarity_error,
    similarity_kl,
)
from tests.parts import drawn

AXES = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
ROOT = 0.5**0.5


def test_cosines_of_axes_and_their_diagonal() -> None:
    expected = torch.tensor([[1, 0, ROOT], [0, 1, ROOT], [ROOT, ROOT, 1]])
    assert torch.allclose(cosines(AXES), expected)
    assert not cosines(torch.zeros(2, 3)).any()


def test_the_error_of_one_pair_counts_for_both_of_its_rows() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 5)
    assert similarity_error(student, teacher).item() == pytest.approx(2.0)


def test_widths_may_differ_and_lengths_do_not_matter() -> None:
    wide = torch.nn.functional.pad(AXES, (0, 4)) * torch.tensor([[3.0], [0.5], [9.0]])
    assert similarity_error(AXES, wide).item() == pytest.approx(0, abs=1e-12)
    assert similarity_kl(AXES, wide, temperature=0.1).item() == pytest.approx(0, abs=1e-6)


def test_a_single_row_has_no_similarities() -> None:
    row = drawn(1, 3).requires_grad_()
    for total in (similarity_error(row, row), similarity_kl(row, row, temperature=1.0)):
        (gradient,) = torch.autograd.grad(total, row)
        assert total.item() == 0
        assert not gradient.any()


def test_margins_are_those_of_the_scores() -> None:
    group = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 5.0], [3.0, 3.0]]])
    assert margins(group, "dot").tolist() == [[2, -1]]
    assert torch.allclose(margins(group, "cosine"), torch.tensor([[1, 1 - ROOT]]))
    assert margin_error(group, group * 2, score="dot").item() == pytest.approx((36 + 9) / 2)
    assert margin_error(group, group * 2, score="cosine").item() == pytest.approx(0, abs=1e-12)


def test_the_error_of_a_pair_is_added_for_each_of_its_texts() -> None:
    student = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [4.0, 0.0]])
    total = pair_error(student, torch.tensor([0.5, 0.5, -1.0, -1.0]))
    assert total.item() == pytest.approx(2 * (0.25 + 1.0))


def test_low_precision_is_compared_in_float32() -> None:
    student, teacher = drawn(6, 4).bfloat16(), drawn(6, 3, seed=1).bfloat16()
    assert similarity_error(student, teacher).dtype == torch.float32
    expected = similarity_error(student.float(), teacher.float())
    assert similarity_error(student, teacher).item() == pytest.approx(expected.item())
