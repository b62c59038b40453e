"""Sparse targets: values and gradients are those of distributions written out in full."""

import pytest
import torch
from torch import Tensor

from curricle.objectives.losses import forward_kl
from curricle.objectives.sparse import SparseTarget, sparse_forward_kl
from tests.parts import drawn

ROWS, CLASSES = 3, 6


def entropy(likely: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(likely).sum(-1)
    return found


def known(likely: Tensor, ids: Tensor, *, rest: bool) -> SparseTarget:
    weights = likely.gather(-1, ids)
    left = 1 - weights.sum(-1)
    coarse = torch.cat([weights, left.unsqueeze(-1)], dim=-1) if rest else weights
    return SparseTarget(
        ids=ids, weights=weights, rest=left if rest else None, constant=-entropy(coarse)
    )


def teacher() -> Tensor:
    return drawn(ROWS, CLASSES, seed=1).double()


def student() -> Tensor:
    return drawn(ROWS, CLASSES, seed=2).double().requires_grad_()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_with_all_classes_it_is_the_forward_divergence(temperature: float) -> None:
    everything = torch.arange(CLASSES).expand(ROWS, -1).flip(-1)
    ours, theirs = student(), student()
    found = sparse_forward_kl(
        ours,
        known(teacher().softmax(-1), everything, rest=False),
        student_temperature=temperature,
    )
    wanted = forward_kl(theirs, teacher(), student_temperature=temperature, teacher_temperature=1.0)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, ours), torch.autograd.grad(wanted, theirs)
    )


def test_with_a_rest_it_is_the_divergence_of_the_joined_classes() -> None:
    ids = torch.tensor([[0, 4], [2, 1], [5, 3]])
    likely, ours = teacher().softmax(-1), student()
    found = sparse_forward_kl(ours, known(likely, ids, rest=True), student_temperature=1.0)
    joined = torch.zeros((), dtype=torch.float64)
    for row in range(ROWS):
        others = [number for number in range(CLASSES) if number not in ids[row]]
        sides = [
            torch.cat([one[row, ids[row]], one[row, others].sum().reshape(1)])
            for one in (likely, ours.softmax(-1))
        ]
        joined = joined + (sides[0] * (sides[0] / sides[1]).log()).sum()
    torch.testing.assert_close(found, joined)
    assert torch.isfinite(torch.autograd.grad(found, ours)[0]).all()


def test_some_rows_are_those_of_the_whole() -> None:
    ids = torch.tensor([[0, 4], [2, 1], [5, 3]])
    whole = known(teacher().softmax(-1), ids, rest=True)
    ours = student()
    parts = [
        sparse_forward_kl(ours[rows], whole.at(rows), student_temperature=1.0)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    wanted = sparse_forward_kl(ours, whole, student_temperature=1.0)
    torch.testing.assert_close(torch.stack(parts).sum(), wanted)


def test_low_precision_is_compared_in_float32() -> None:
    target = known(teacher().softmax(-1).float(), torch.tensor([[0], [1], [2]]), rest=True)
    found = sparse_forward_kl(student().bfloat16(), target, student_temperature=1.0)
    assert found.dtype == torch.float32
