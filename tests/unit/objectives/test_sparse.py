"""Sparse targets: values and gradients equal those of full distributions."""

import pytest
import torch
from torch import Tensor

from curricle.objectives.losses import forward_kl
from curricle.objectives.sparse import SparseTarget, sparse_forward_kl
from tests.parts import drawn

ROWS, CLASSES = 3, 6


def entropy(probabilities: Tensor) -> Tensor:
    actual: Tensor = torch.special.entr(probabilities).sum(-1)
    return actual


def sparse_target(probabilities: Tensor, ids: Tensor, *, has_bucket: bool) -> SparseTarget:
    weights = probabilities.gather(-1, ids)
    remaining_mass = 1 - weights.sum(-1)
    buckets = torch.cat([weights, remaining_mass.unsqueeze(-1)], dim=-1)
    coarse = buckets if has_bucket else weights
    return SparseTarget(
        ids=ids,
        weights=weights,
        remaining_mass=remaining_mass if has_bucket else None,
        constant=-entropy(coarse),
    )


def teacher() -> Tensor:
    return drawn(ROWS, CLASSES, seed=1).double()


def student() -> Tensor:
    return drawn(ROWS, CLASSES, seed=2).double().requires_grad_()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_with_all_classes_it_is_the_forward_divergence(temperature: float) -> None:
    everything = torch.arange(CLASSES).expand(ROWS, -1).flip(-1)
    ours, theirs = student(), student()
    actual = sparse_forward_kl(
        ours,
        sparse_target(teacher().softmax(-1), everything, has_bucket=False),
        student_temperature=temperature,
    )
    expected = forward_kl(
        theirs, teacher(), student_temperature=temperature, teacher_temperature=1.0
    )
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, ours), torch.autograd.grad(expected, theirs)
    )


def test_with_a_bucket_it_is_the_divergence_of_the_joined_classes() -> None:
    ids = torch.tensor([[0, 4], [2, 1], [5, 3]])
    probabilities, ours = teacher().softmax(-1), student()
    actual = sparse_forward_kl(
        ours, sparse_target(probabilities, ids, has_bucket=True), student_temperature=1.0
    )
    joined = torch.zeros((), dtype=torch.float64)
    for row in range(ROWS):
        others = [number for number in range(CLASSES) if number not in ids[row]]
        sides = [
            torch.cat([one[row, ids[row]], one[row, others].sum().reshape(1)])
            for one in (probabilities, ours.softmax(-1))
        ]
        joined = joined + (sides[0] * (sides[0] / sides[1]).log()).sum()
    torch.testing.assert_close(actual, joined)
    assert torch.isfinite(torch.autograd.grad(actual, ours)[0]).all()


def test_some_rows_are_those_of_the_whole() -> None:
    ids = torch.tensor([[0, 4], [2, 1], [5, 3]])
    target = sparse_target(teacher().softmax(-1), ids, has_bucket=True)
    ours = student()
    totals = [
        sparse_forward_kl(ours[rows], target.at(rows), student_temperature=1.0)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    expected = sparse_forward_kl(ours, target, student_temperature=1.0)
    torch.testing.assert_close(torch.stack(totals).sum(), expected)


def test_low_precision_is_compared_in_float32() -> None:
    target = sparse_target(
        teacher().softmax(-1).float(), torch.tensor([[0], [1], [2]]), has_bucket=True
    )
    actual = sparse_forward_kl(student().bfloat16(), target, student_temperature=1.0)
    assert actual.dtype == torch.float32
