"""Losses in chunks: values and gradients equal those of full logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from curricle.errors import SpecError
from curricle.models.heads import LinearHead
from curricle.objectives import chunked
from curricle.objectives.chunked import (
    CHUNK_BYTES,
    CPU_ROWS,
    chunk_rows,
    chunked_cross_entropy,
    chunked_divergence,
    chunked_total,
)
from curricle.objectives.divergences import JSD, Divergence, ForwardKL, ReverseKL, TotalVariation
from curricle.objectives.losses import cross_entropy
from curricle.training.setup.costs import Meter
from tests.parts import drawn

ROWS, WIDTH, TEACHER_WIDTH, CLASSES = 7, 3, 4, 5
SOFT: Any = {"student_temperature": 1.5, "teacher_temperature": 2.0}
every_divergence = pytest.mark.parametrize(
    "divergence", [ForwardKL(), ReverseKL(), JSD(beta=0.3), TotalVariation()], ids=lambda d: d.kind
)


def student(*, dtype: torch.dtype = torch.float64, padding: int = 0, **fields: Any) -> LinearHead:
    shapes = ((ROWS, WIDTH), (CLASSES + padding, WIDTH), (CLASSES + padding,))
    each = [drawn(*shape, seed=3).to(dtype).requires_grad_() for shape in shapes]
    return LinearHead(states=each[0], weight=each[1], bias=each[2], **fields)


def teacher(*, dtype: torch.dtype = torch.float64, padding: int = 0, **fields: Any) -> LinearHead:
    return LinearHead(
        states=drawn(ROWS, TEACHER_WIDTH, seed=4).to(dtype),
        weight=drawn(CLASSES + padding, TEACHER_WIDTH, seed=5).to(dtype).requires_grad_(),
        **fields,
    )


def labels() -> Tensor:
    return torch.arange(ROWS) % CLASSES


def leaves(head: LinearHead) -> list[Tensor]:
    return [one for one in (head.states, head.weight, head.bias) if one is not None]


def solved(head: LinearHead, total: Tensor) -> list[Tensor]:
    """Return a value and its gradients with respect to the head."""
    return [total.detach(), *torch.autograd.grad(total, leaves(head))]


def in_chunks(divergence: Divergence, chunk: int, **fields: Any) -> list[Tensor]:
    head = student()
    return solved(head, chunked_divergence(head, teacher(), divergence, **SOFT, chunk=chunk))


def at_once(divergence: Divergence) -> list[Tensor]:
    head = student()
    return solved(head, divergence(head.logits(), teacher().logits(), **SOFT))


@every_divergence
@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 100, "auto"])
def test_value_and_gradients_are_those_of_all_logits(divergence: Divergence, chunk: Any) -> None:
    for actual, expected in zip(in_chunks(divergence, chunk), at_once(divergence), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()], ids=lambda d: d.kind)
def test_gradients_are_those_of_finite_differences(divergence: Divergence) -> None:
    head, other = student(), teacher(soft_cap=2.0)

    def loss(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        one = LinearHead(states=states, weight=weight, bias=bias, soft_cap=3.0, scale=0.7)
        return chunked_divergence(one, other, divergence, **SOFT, labels=labels(), chunk=2)

    assert gradcheck(loss, leaves(head), fast_mode=True)


@given(
    rows=st.integers(0, 9),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 5),
    cap=st.sampled_from([None, 2.0]),
)
def test_the_size_of_a_chunk_changes_nothing(
    rows: int, chunk: int, seed: int, cap: float | None
) -> None:
    states = drawn(rows, WIDTH, seed=seed).double().requires_grad_()
    weight = drawn(CLASSES, WIDTH, seed=seed + 9).double().requires_grad_()
    head = LinearHead(states=states, weight=weight, soft_cap=cap)
    targets = drawn(rows, CLASSES, seed=seed + 3).double()

    def loss(logits: Tensor, part: slice) -> Tensor:
        return (logits - targets[part]).square().sum()

    actual = solved(head, chunked_total(head, loss, chunk=chunk))
    for one, other in zip(actual, solved(head, loss(head.logits(), slice(None))), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [3, 100])
def test_labels_are_mixed_in_at_temperature_one(chunk: int) -> None:
    head, other = student(), teacher()
    total = chunked_divergence(
        head, other, ForwardKL(), **SOFT, labels=labels(), label_weight=0.3, chunk=chunk
    )
    plain = ForwardKL()(head.logits(), other.logits(), **SOFT)
    plain = plain + 0.3 * cross_entropy(head.logits(), labels())
    for actual, expected in zip(solved(head, total), solved(head, plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("has_labels", [False, True])
@every_divergence
def test_many_logits_at_temperature_one_are_as_few(
    divergence: Divergence, has_labels: bool, soft_cap: float | None
) -> None:
    """The usual temperature and size, with reused memory of logits."""
    rows, classes, width = 60, 1000, 3

    def head(seed: int) -> LinearHead:
        return LinearHead(
            states=drawn(rows, width, seed=seed).double().requires_grad_(),
            weight=drawn(classes, width, seed=seed + 1).double().requires_grad_(),
            bias=drawn(classes, seed=seed + 2).double().requires_grad_(),
            soft_cap=soft_cap,
        )

    right = torch.arange(rows) if has_labels else None
    one, other = head(0), head(3)
    plain: Any = {"student_temperature": 1.0, "teacher_temperature": 1.0}
    total = chunked_divergence(
        one, other, divergence, **plain, labels=right, label_weight=0.3, chunk=25
    )
    expected = divergence(one.logits(), other.logits().detach(), **plain)
    if right is not None:
        expected = expected + 0.3 * cross_entropy(one.logits(), right)
    torch.testing.assert_close(solved(one, total), solved(one, expected))
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("chunk", [3, 100])
def test_cross_entropy_is_that_of_all_logits(chunk: int) -> None:
    head = student()
    actual = solved(head, chunked_cross_entropy(head, labels(), chunk=chunk))
    for one, other in zip(
        actual, solved(head, cross_entropy(head.logits(), labels())), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@every_divergence
@pytest.mark.parametrize("chunk", [3, 100])
def test_padding_of_vocabularies_does_not_count(divergence: Divergence, chunk: int) -> None:
    head, other = student(padding=2), teacher(padding=3)
    total = chunked_divergence(head, other, divergence, **SOFT, num_classes=CLASSES, chunk=chunk)
    plain = divergence(head.logits()[:, :CLASSES], other.logits()[:, :CLASSES], **SOFT)
    each = solved(head, total)
    assert not each[2][CLASSES:].any()
    for actual, expected in zip(each, solved(head, plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_rows_may_lie_on_several_axes() -> None:
    head, other = student(), teacher()
    one, two = (
        replace(each, states=each.states[:6].unflatten(0, (2, 3))) for each in (head, other)
    )
    actual = chunked_divergence(one, two, ForwardKL(), **SOFT, chunk=4)
    expected = ForwardKL()(head.logits()[:6], other.logits()[:6], **SOFT)
    torch.testing.assert_close(actual, expected)


def test_the_gradient_from_above_may_come_twice_and_in_any_size() -> None:
    head = student()
    total = chunked_divergence(head, teacher(), ForwardKL(), **SOFT, chunk=2)
    first = torch.autograd.grad(total, leaves(head), retain_graph=True)
    twice = torch.autograd.grad(total, leaves(head), torch.full_like(total, 2.0))
    for one, two in zip(first, twice, strict=True):
        torch.testing.assert_close(2 * one, two)


@pytest.mark.parametrize("frozen", ["states", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    head = student()
    getattr(head, frozen).requires_grad_(requires_grad=False)
    chunked_divergence(head, teacher(), ForwardKL(), **SOFT, chunk=2).backward()
    assert [one.grad is not None for one in leaves(head)] == [
        name != frozen for name in ("states", "weight", "bias")
    ]


@pytest.mark.parametrize("chunk", [2, 100])
def test_the_teacher_gets_no_gradient(chunk: int) -> None:
    other = teacher()
    chunked_divergence(student(), other, ForwardKL(), **SOFT, chunk=chunk).backward()
    assert other.weight.grad is None


@pytest.mark.parametrize("chunk", [2, 100])
def test_nothing_is_changed_in_place(chunk: int) -> None:
    head, other = student(soft_cap=2.0), teacher(soft_cap=2.0)
    given = [*leaves(head), *leaves(other)]
    before = [one.detach().clone() for one in given]
    chunked_divergence(head, other, JSD(), **SOFT, labels=labels(), chunk=chunk).backward()
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


def test_without_gradient_the_value_is_the_same() -> None:
    expected = at_once(ForwardKL())[0]
    with torch.no_grad():
        actual = chunked_divergence(student(), teacher(), ForwardKL(), **SOFT, chunk=2)
    assert not actual.requires_grad
    torch.testing.assert_close(actual, expected)


class Largest(TorchDispatchMode):
    """Records the largest number of elements in a tensor returned by any operation."""

    numbers = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        del types
        actual = func(*args, **(kwargs or {}))
        for one in actual if isinstance(actual, (tuple, list)) else [actual]:
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.numel())
        return actual


@every_divergence
def test_no_tensor_holds_more_logits_than_those_of_a_chunk(divergence: Divergence) -> None:
    states = drawn(60, WIDTH).requires_grad_()
    head = LinearHead(states=states, weight=drawn(50, WIDTH).requires_grad_())
    with Largest() as seen:
        chunked_divergence(
            head, head, divergence, **SOFT, labels=torch.zeros(60).long(), chunk=8
        ).backward()
    assert seen.numbers == 8 * 50


def test_nothing_is_kept_for_the_backward_pass_but_gradients() -> None:
    head = student()
    meter = Meter(leaves(head))
    with meter.running():
        chunked_divergence(head, teacher(), ForwardKL(), **SOFT, chunk=2)
    assert meter.saved_bytes == sum(one.nbytes for one in leaves(head))


def test_the_products_are_those_of_all_logits() -> None:
    def flops(chunk: int) -> int:
        with FlopCounterMode(display=False) as counter:
            in_chunks(ForwardKL(), chunk)
        return int(counter.get_total_flops())

    assert flops(2) == flops(100) > 0


def test_weights_are_multiplied_in_the_precision_of_the_states() -> None:
    head = student(dtype=torch.float32)
    states = head.states.detach().bfloat16().requires_grad_()
    half = LinearHead(states=states, weight=head.weight, bias=head.bias)
    other = teacher(dtype=torch.bfloat16)
    actual = solved(half, chunked_divergence(half, other, ForwardKL(), **SOFT, chunk=2))
    assert [one.dtype for one in actual[1:]] == [torch.bfloat16, torch.float32, torch.float32]
    plain = solved(half, ForwardKL()(half.logits(), other.logits(), **SOFT))
    for one, expected in zip(actual, plain, strict=True):
        torch.testing.assert_close(one, expected, rtol=0.02, atol=0.02)


def test_autocast_does_not_reach_inside() -> None:
    head, other = student(dtype=torch.float32), teacher(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = chunked_divergence(head, other, ForwardKL(), **SOFT, chunk=2)
    expected = chunked_divergence(head, other, ForwardKL(), **SOFT, chunk=2)
    assert torch.equal(actual, expected)


def test_a_chunk_of_its_own_size_fills_a_fixed_number_of_bytes() -> None:
    for is_cpu in (True, False):
        assert chunk_rows(256 * 1024, "auto", is_cpu=is_cpu) * 256 * 1024 * 4 == CHUNK_BYTES
        assert chunk_rows(CHUNK_BYTES, "auto", is_cpu=is_cpu) == 1
        assert chunk_rows(10, 3, is_cpu=is_cpu) == 3
    assert chunk_rows(8192, "auto", is_cpu=False) * 8192 * 4 == CHUNK_BYTES
    assert chunk_rows(8192, "auto", is_cpu=True) == CPU_ROWS


def test_chunks_are_of_about_equal_length() -> None:
    assert [part.stop - part.start for part in chunked._chunks(10, 4)] == [4, 4, 2]
    assert [part.stop - part.start for part in chunked._chunks(9, 8)] == [5, 4]


def test_a_chunk_has_positions() -> None:
    with pytest.raises(
        SpecError, match=r"^'chunk' must be 'auto' or a positive number of positions; got 0$"
    ):
        in_chunks(ForwardKL(), 0)


def test_rows_of_both_models_and_labels_are_as_many() -> None:
    with pytest.raises(
        SpecError, match=r"^'student', 'teacher' and 'labels' .* same rows; got \[7, 7, 1\]$"
    ):
        chunked_divergence(student(), teacher(), ForwardKL(), **SOFT, labels=labels()[:1])


@pytest.mark.parametrize("number", [None, CLASSES + 1])
def test_it_must_be_said_how_many_classes_count(number: int | None) -> None:
    with pytest.raises(
        SpecError, match=rf"^'num_classes' must be set .*; got {number} with 7 and 5 classes$"
    ):
        chunked_divergence(student(padding=2), teacher(), ForwardKL(), **SOFT, num_classes=number)
