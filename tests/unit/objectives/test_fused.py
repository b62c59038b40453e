"""Losses by the kernel of a GPU: their selection and bookkeeping, with a kernel by torch."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from curricle.models.heads import LinearHead
from curricle.objectives import chunked, fused
from curricle.objectives.chunked import chunked_cross_entropy, chunked_divergence
from curricle.objectives.divergences import (
    JSD,
    Divergence,
    ForwardKL,
    ReverseKL,
    SquaredError,
    TotalVariation,
)
from curricle.objectives.fused import FusedLoss, fused_loss
from curricle.objectives.losses import cross_entropy
from tests.parts import drawn

ROWS, CLASSES, WIDTH = 12, 70, 5
SOFT: Any = {"student_temperature": 1.5, "teacher_temperature": 2.0}


def head(seed: int, *, dtype: torch.dtype = torch.float32, **fields: Any) -> LinearHead:
    return LinearHead(
        states=drawn(ROWS, WIDTH, seed=seed).to(dtype).requires_grad_(),
        weight=drawn(CLASSES, WIDTH, seed=seed + 1).to(dtype).requires_grad_(),
        **fields,
    )


def labels() -> Tensor:
    return torch.arange(ROWS) % CLASSES


def launch(loss: FusedLoss, product: Tensor, target: Tensor, rows: slice) -> Tensor:
    """Do what the kernel does, row by row in float64."""
    losses = torch.empty(len(product))
    for row in range(len(product)):
        logits = product[row : row + 1].double().requires_grad_()
        with torch.enable_grad():
            total = torch.zeros((), dtype=torch.float64)
            finished = loss.student.finished(logits)
            if loss.divergence is not None and loss.teacher is not None:
                total = loss.divergence(
                    finished,
                    loss.teacher.finished(target[row : row + 1].double()),
                    student_temperature=loss.student_temperature,
                    teacher_temperature=loss.teacher_temperature,
                )
            if loss.labels is not None:
                label = loss.labels[rows][row : row + 1]
                total = total + loss.label_weight * cross_entropy(finished, label)
        losses[row] = total.detach()
        product[row] = torch.autograd.grad(total, logits)[0][0]
    return losses


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Run losses in chunks as on a GPU, and return the rows and classes of each launch."""
    launches: list[tuple[int, int]] = []

    def record(*arguments: Any) -> Tensor:
        launches.append(tuple(arguments[1].shape))
        return launch(*arguments)

    monkeypatch.setattr(fused, "PROCESSORS", ("cpu",))
    monkeypatch.setattr(fused, "_runs_on", lambda _: True)
    monkeypatch.setattr(fused, "_launch", record)
    return launches


def solved(one: LinearHead, total: Tensor) -> list[Tensor]:
    leaves = [leaf for leaf in (one.states, one.weight, one.bias) if leaf is not None]
    return [total.detach(), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("chunk", ["auto", 5, 12, 100])
@pytest.mark.parametrize(
    "divergence", [ForwardKL(), ReverseKL(), JSD(beta=0.3), TotalVariation()], ids=lambda d: d.kind
)
def test_value_and_gradients_are_those_of_all_logits(
    kernel: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    divergence: Divergence,
    chunk: Any,
) -> None:
    # Two rows of the teacher at a time: 70 classes are padded to 128.
    monkeypatch.setattr(fused, "TEACHER_BYTES", 2 * 128 * 4)
    student, teacher = head(0, soft_cap=2.0, bias=drawn(CLASSES).requires_grad_()), head(5)
    total = chunked_divergence(
        student, teacher, divergence, **SOFT, labels=labels(), label_weight=0.3, chunk=chunk
    )
    expected = divergence(student.logits(), teacher.logits().detach(), **SOFT)
    expected = expected + 0.3 * cross_entropy(student.logits(), labels())
    for actual, other in zip(solved(student, total), solved(student, expected), strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-5)
    assert kernel == [(2, CLASSES)] * 6


def test_cross_entropy_needs_no_teacher(kernel: list[tuple[int, int]]) -> None:
    student = head(0)
    total = chunked_cross_entropy(student, labels(), chunk=5)
    expected = cross_entropy(student.logits(), labels())
    for actual, other in zip(solved(student, total), solved(student, expected), strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-5)
    assert kernel == [(4, CLASSES)] * 3


def test_padding_of_vocabularies_does_not_count(kernel: list[tuple[int, int]]) -> None:
    student, teacher = head(0), head(5)
    total = chunked_divergence(student, teacher, ForwardKL(), **SOFT, num_classes=40, chunk=6)
    expected = ForwardKL()(student.logits()[:, :40], teacher.logits()[:, :40].detach(), **SOFT)
    for actual, other in zip(solved(student, total), solved(student, expected), strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-5)
    assert kernel == [(6, 40)] * 2


def test_without_gradient_the_value_is_the_same(kernel: list[tuple[int, int]]) -> None:
    student, teacher = head(0), head(5)
    total = chunked_divergence(student, teacher, ForwardKL(), **SOFT, chunk=5)
    with torch.no_grad():
        value = chunked_divergence(student, teacher, ForwardKL(), **SOFT, chunk=5)
    assert not value.requires_grad
    assert torch.equal(value, total)
    assert len(kernel) == 6


def test_a_retained_graph_may_run_backwards_twice(kernel: list[tuple[int, int]]) -> None:
    student = head(0)
    total = chunked_divergence(student, head(5), ForwardKL(), **SOFT, chunk=5)
    twice = torch.autograd.grad(2 * total, student.weight, retain_graph=True)
    first = torch.autograd.grad(total, student.weight)
    torch.testing.assert_close(2 * first[0], twice[0])
    assert kernel


@pytest.mark.parametrize(("most", "dtype"), [(16, torch.bfloat16), (2, torch.float32)])
def test_few_chunks_of_bfloat16_weights_sum_their_gradient_in_bfloat16(
    kernel: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(chunked, "MOST_ROUNDINGS", most)
    monkeypatch.setattr(chunked, "SLAB_BYTES", 30 * WIDTH * 2)
    student, teacher = head(0, dtype=torch.bfloat16), head(5, dtype=torch.bfloat16)
    total = chunked_divergence(student, teacher, ForwardKL(), **SOFT, chunk=4)
    assert total.grad_fn is not None
    saved: Any = total.grad_fn
    assert saved.saved_tensors[1].dtype == dtype
    wide = [
        LinearHead(states=one.states.float(), weight=one.weight.float())
        for one in (student, teacher)
    ]
    expected = ForwardKL()(wide[0].logits(), wide[1].logits().detach(), **SOFT)
    for actual, other in zip(solved(student, total), solved(student, expected), strict=True):
        assert (actual.float() - other.float()).norm() < 0.02 * other.float().norm()
    assert kernel == [(4, CLASSES)] * 3


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"divergence": SquaredError()}, {}),
        ({"teacher_temperature": 0.0}, {}),
        ({}, {"scale": -1.0}),
        ({}, {"states": drawn(ROWS, WIDTH).double(), "weight": drawn(CLASSES, WIDTH).double()}),
        ({}, {"states": drawn(0, WIDTH)}),
        ({}, {"weight": FakeTensorMode().from_tensor(drawn(CLASSES, WIDTH))}),
    ],
)
def test_other_losses_take_the_operations_of_torch(
    kernel: list[tuple[int, int]], changes: dict[str, Any], fields: dict[str, Any]
) -> None:
    one = replace(head(0), **fields)
    settings = {"divergence": ForwardKL()} | changes
    assert fused_loss(one, one, **settings) is None
    assert fused_loss(head(0), head(0), ForwardKL()) is not None
    assert kernel == []


def test_a_cpu_takes_the_operations_of_torch() -> None:
    assert fused_loss(head(0), head(0), ForwardKL()) is None


def test_a_device_without_triton_takes_the_operations_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise ImportError("no module named 'triton'")

    monkeypatch.setattr(fused, "_kernels", fail)
    assert not fused._runs_on.__wrapped__(torch.device("cpu"))


def test_a_kernel_that_does_not_compile_is_reported_and_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Python.h: no such file")

    monkeypatch.setattr(fused, "_kernels", SimpleNamespace)
    monkeypatch.setattr(fused, "_launch", fail)
    with pytest.warns(UserWarning, match=r"^losses in chunks use operations of torch .* Python\.h"):
        assert not fused._runs_on.__wrapped__(torch.device("cpu"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
)
def test_a_lack_of_memory_does_not_replace_the_kernel(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Memory may be free at the next loss, which tries the kernel again."""
    errors = [error]

    def launch_unless_full(*arguments: Any) -> Tensor:
        if errors:
            raise errors.pop()
        return launch(*arguments)

    monkeypatch.setattr(fused, "_kernels", SimpleNamespace)
    monkeypatch.setattr(fused, "_launch", launch_unless_full)
    device = torch.device("cpu")
    fused._runs_on.cache_clear()
    try:
        with pytest.raises(type(error), match="out of memory"):
            fused._runs_on(device)
        assert fused._runs_on(device)
    finally:
        fused._runs_on.cache_clear()


def test_a_label_outside_the_classes_is_an_error(kernel: list[tuple[int, int]]) -> None:
    with pytest.raises(RuntimeError, match="a label is outside the classes"):
        chunked_cross_entropy(head(0), torch.full((ROWS,), -100), chunk=5)
    assert kernel == []


def test_a_chunk_fills_a_fixed_number_of_bytes() -> None:
    wide = LinearHead(states=drawn(1, 1).bfloat16(), weight=drawn(2**17, 1).bfloat16())
    assert FusedLoss(student=wide, teacher=None).chunk_rows * 2**18 == fused.STUDENT_BYTES
    odd = LinearHead(states=drawn(1, 1).bfloat16(), weight=drawn(151_665, 1).bfloat16())
    assert FusedLoss(student=odd, teacher=None).chunk_rows == 13 * 128
