"""Losses in chunks by the kernel against float64; on a GPU, or with TRITON_INTERPRET=1 on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from curricle.models.heads import LinearHead
from curricle.objectives import chunked_cross_entropy, chunked_divergence, fused
from curricle.objectives.divergences import JSD, Divergence, ForwardKL, ReverseKL, TotalVariation
from curricle.objectives.losses import cross_entropy
from tests.parts import drawn, kernel_device

DEVICE = kernel_device()
pytestmark = [
    pytest.mark.integration,
    # The interpreter computes by numpy, which warns of infinities that a mask removes.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
CLASSES, PADDED, WIDTH = 5003, 5010, 64
# The interpreter takes a row at a time.
ROWS = 300 if DEVICE == "cuda" else 20
SOFT: Any = {"student_temperature": 1.5, "teacher_temperature": 2.0}


def linear_head(dtype: torch.dtype, *, seed: int, **fields: Any) -> LinearHead:
    """Return a head whose logits have a standard deviation of 1."""
    states = drawn(ROWS, WIDTH, seed=seed).to(DEVICE, dtype).requires_grad_()
    weight = (drawn(PADDED, WIDTH, seed=seed + 1) / 8).to(DEVICE, dtype).requires_grad_()
    return LinearHead(states=states, weight=weight, **fields)


def in_float64(head: LinearHead) -> LinearHead:
    states, weight = (leaf.detach().double() for leaf in (head.states, head.weight))
    return LinearHead(
        states=states.requires_grad_(),
        weight=weight.requires_grad_(),
        scale=head.scale,
        soft_cap=head.soft_cap,
    )


def solved(head: LinearHead, total: Tensor) -> list[Tensor]:
    """Return a loss and its gradients."""
    leaves = (head.states, head.weight)
    return [result.double() for result in (total.detach(), *torch.autograd.grad(total, leaves))]


def check_equal(actual: list[Tensor], expected: list[Tensor], *, tolerance: float) -> None:
    for result, exact in zip(actual, expected, strict=True):
        assert (result - exact).norm() <= tolerance * exact.norm()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several chunks of the rows, each of several pieces of the teacher."""
    rows = ROWS // 6
    monkeypatch.setattr(fused, "PROCESSORS", (DEVICE,))
    monkeypatch.setattr(fused, "STUDENT_BYTES", 4 * 5056 * rows)
    monkeypatch.setattr(fused, "TEACHER_BYTES", 4 * 5056 * max(1, rows // 4))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.02)])
@pytest.mark.parametrize(
    "divergence", [ForwardKL(), ReverseKL(), JSD(beta=0.3), TotalVariation()], ids=lambda d: d.kind
)
def test_the_kernel_computes_losses_of_padded_heads(
    divergence: Divergence, dtype: str, tolerance: float
) -> None:
    precision = getattr(torch, dtype)
    student = linear_head(precision, seed=0, soft_cap=20.0)
    teacher = linear_head(precision, seed=2, scale=0.8)
    labels = torch.arange(ROWS, device=DEVICE)
    assert fused.fused_loss(student, teacher, divergence) is not None
    total = chunked_divergence(
        student, teacher, divergence, **SOFT, num_classes=CLASSES, labels=labels, label_weight=0.3
    )
    wide, target = in_float64(student), in_float64(teacher).logits()[:, :CLASSES].detach()
    logits = wide.logits()[:, :CLASSES]
    expected = divergence(logits, target, **SOFT) + 0.3 * cross_entropy(logits, labels)
    check_equal(solved(student, total), solved(wide, expected), tolerance=tolerance)


@pytest.mark.parametrize("cast", ["bfloat16", "float32"])
def test_weights_in_float32_get_gradients_of_products_in_bfloat16(cast: str) -> None:
    student = linear_head(torch.float32, seed=0)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=cast == "bfloat16"):
        states = student.states.to(getattr(torch, cast))
        head = LinearHead(states=states, weight=student.weight)
        total = chunked_cross_entropy(head, torch.arange(ROWS, device=DEVICE))
    wide = in_float64(student)
    expected = cross_entropy(wide.logits(), torch.arange(ROWS, device=DEVICE))
    tolerance = 0.02 if cast == "bfloat16" else 1e-3
    check_equal(solved(student, total), solved(wide, expected), tolerance=tolerance)


def test_the_kernel_gives_equal_bits_in_each_run() -> None:
    results = []
    for _ in range(2):
        student, teacher = (linear_head(torch.bfloat16, seed=seed) for seed in (0, 2))
        results.append(solved(student, chunked_divergence(student, teacher, JSD(), **SOFT)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
