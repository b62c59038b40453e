"""The kernel of fused losses against float64; on a GPU, or with TRITON_INTERPRET=1 on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from curricle.models.heads import LinearHead
from curricle.objectives import fused
from curricle.objectives.divergences import JSD, Divergence, ForwardKL, ReverseKL, TotalVariation
from curricle.objectives.fused import FusedLoss, Tiling
from curricle.objectives.losses import cross_entropy
from tests.parts import drawn, kernel_device

DEVICE = kernel_device()
# The interpreter computes by numpy, which warns of infinities that a mask removes.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
ROWS, WIDTH = 3, 8
# The interpreter truncates to bfloat16 where a GPU rounds.
PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DIVERGENCES: dict[str, Divergence | None] = {
    "labels": None,
    "forward_kl": ForwardKL(),
    "reverse_kl": ReverseKL(),
    "jsd": JSD(),
    "jsd_of_little_teacher": JSD(beta=0.1),
    "total_variation": TotalVariation(),
}
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=[*DIVERGENCES])


def head(classes: int, dtype: torch.dtype, *, seed: int, **fields: Any) -> LinearHead:
    return LinearHead(
        states=drawn(ROWS, WIDTH, seed=seed).to(DEVICE, dtype),
        weight=drawn(classes, WIDTH, seed=seed + 1).to(DEVICE, dtype),
        **fields,
    )


def check(loss: FusedLoss, *, tolerance: float) -> None:
    """Compare values and gradients of the kernel with those of float64."""
    rows = slice(0, ROWS)
    product = loss.product(rows)
    logits = product.double().requires_grad_()
    finished = loss.student.finished(logits)
    expected = torch.zeros((), dtype=torch.float64, device=DEVICE)
    if loss.divergence is not None and loss.teacher is not None:
        expected = loss.divergence(
            finished,
            loss.teacher.finished(loss.teacher.product().double()),
            student_temperature=loss.student_temperature,
            teacher_temperature=loss.teacher_temperature,
        )
    if loss.labels is not None:
        expected = expected + loss.label_weight * cross_entropy(finished, loss.labels)
    (gradient,) = torch.autograd.grad(expected, logits)
    total = loss.overwrite(product, rows)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)
    # Float32 rounds probabilities near 1, whose differences may be the gradient.
    assert (product.double() - gradient).norm() <= tolerance * gradient.norm() + 1e-6


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("classes", [2, 37, 300])
@every_divergence
def test_value_and_gradient_are_those_of_float64(
    divergence: Divergence | None,
    classes: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Several blocks of classes, with a remainder.
    monkeypatch.setattr(fused, "TILING", Tiling(lanes=16))
    loss = FusedLoss(
        student=head(classes, dtype, seed=0),
        teacher=None if divergence is None else head(classes, dtype, seed=2),
        divergence=divergence,
        labels=torch.arange(ROWS, device=DEVICE) % classes if divergence is None else None,
    )
    check(loss, tolerance=PRECISIONS[dtype])


@pytest.mark.parametrize("temperatures", [(1.0, 3.0), (2.5, 1.0), (0.1, 0.2)])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(
    ("divergence", "has_labels"),
    # Without both there is no loss.
    [
        (divergence, has_labels)
        for divergence in DIVERGENCES.values()
        for has_labels in (False, True)
        if divergence is not None or has_labels
    ],
)
def test_temperatures_soft_caps_and_labels(
    divergence: Divergence | None,
    cap: float | None,
    temperatures: tuple[float, float],
    has_labels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "TILING", Tiling(lanes=16))
    loss = FusedLoss(
        student=head(150, torch.float32, seed=0, soft_cap=cap, scale=0.7),
        teacher=None
        if divergence is None
        else head(150, torch.float32, seed=2, soft_cap=cap and 2 * cap, scale=1.4),
        divergence=divergence,
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
        labels=torch.tensor([0, 149, 70], device=DEVICE) if has_labels else None,
        label_weight=0.3,
    )
    check(loss, tolerance=3e-5)


@every_divergence
def test_absent_classes_change_nothing(divergence: Divergence | None) -> None:
    absent = torch.zeros(40, device=DEVICE)
    absent[[3, 20, 39]] = float("-inf")
    loss = FusedLoss(
        student=head(40, torch.float32, seed=0, bias=absent),
        teacher=None if divergence is None else head(40, torch.float32, seed=2, bias=absent),
        divergence=divergence,
        labels=torch.arange(ROWS, device=DEVICE),
    )
    check(loss, tolerance=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 1e-30])
def test_large_logits_do_not_overflow(temperature: float) -> None:
    student = head(40, torch.float32, seed=0)
    loss = FusedLoss(
        student=LinearHead(states=student.states * 1e4, weight=student.weight),
        teacher=LinearHead(states=student.states * 1e4, weight=student.weight + 1e-3),
        divergence=ForwardKL(),
        student_temperature=1.0,
        teacher_temperature=temperature,
    )
    check(loss, tolerance=1e-4)


@every_divergence
def test_rows_do_not_depend_on_the_rows_beside_them(divergence: Divergence | None) -> None:
    def gradients(*pieces: slice) -> Tensor:
        loss = FusedLoss(
            student=head(100, torch.float32, seed=0),
            teacher=None if divergence is None else head(100, torch.float32, seed=2),
            divergence=divergence,
            labels=torch.arange(ROWS, device=DEVICE),
        )
        rows: list[Tensor] = []
        for piece in pieces:
            product = loss.product(piece)
            loss.overwrite(product, piece)
            rows.append(product.clone())
        return torch.cat(rows)

    # The products themselves may differ in the last bit between numbers of rows.
    torch.testing.assert_close(
        gradients(slice(0, ROWS)), gradients(slice(0, 1), slice(1, ROWS)), rtol=1e-5, atol=1e-6
    )
