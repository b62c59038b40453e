"""Losses of logits computed chunk by chunk, for vocabularies too large for full logits in memory.

With N positions and V classes, a loss of full logits keeps several N x V tensors alive until the
backward pass. Here the logits of a few positions at a time are computed, compared and freed. Only
the sum of the loss and its gradients with respect to the states, weight and bias of the student's
head remain. They are accumulated in the forward pass, chunk by chunk; the backward pass multiplies
them by the incoming gradient.

Axes: row (counted positions), width (of a state), class.

Design: each chunk uses the same loss functions as full logits, differentiated by autograd, so no
loss has a second formula. On a GPU with triton, divergences and cross-entropy of logits take the
kernel of `objectives.fused` instead. Weight gradients are accumulated in float32 or wider, except
that the kernel's chunks sum those of bfloat16 weights in bfloat16, at most `MOST_ROUNDINGS` of
them: each of n chunks adds a rounding, which makes the error about sqrt(n / 2) times that of a
gradient rounded once. Without the kernel, inputs of at most one chunk take the ordinary path; with
it, they are one chunk. Only the student's head gets a gradient, no other tensor used by a loss.
Matrix products run in the precision of the states, as under autocast, which is disabled inside.

References:
    [LK] Hsu et al. 2024, arXiv 2410.10989 (Liger Kernel): the gradient of a fused head is computed
        in the forward pass.
    [W24] Wijmans et al. 2024, arXiv 2411.09009: logits dominate the memory of large vocabularies.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from curricle.colocation import processor_kind
from curricle.errors import SpecError
from curricle.models.heads import LinearHead
from curricle.objectives.divergences import Divergence
from curricle.objectives.fused import FusedLoss, fused_loss
from curricle.objectives.losses import cross_entropy

Chunk = Literal["auto"] | Annotated[int, Field(gt=0)]
"""Positions per chunk; `auto` fits them into `CHUNK_BYTES`, on a CPU at most `CPU_ROWS`, and with
the kernel of a GPU into `fused.STUDENT_BYTES`."""
CHUNK_BYTES = 2**28
"""Bytes of the float32 logits of one model in an `auto` chunk; a loss holds several tensors of that
size while it runs."""
CPU_ROWS = 512
"""Positions beyond which a CPU gains no throughput; smaller chunks stay closer to its caches."""
MOST_ROUNDINGS = 16
"""Number of chunks from which a gradient of bfloat16 weights is summed in float32."""
SLAB_BYTES = 2**27
"""Bytes of a product that is computed before it is added to a wider sum."""

RowLoss = Callable[[Tensor, slice], Tensor]
"""Loss summed over some rows, as a function of their logits and their slice."""


def chunk_rows(num_classes: int, chunk: Chunk, *, is_cpu: bool) -> int:
    """Return the maximum number of positions in a chunk.

    Args:
        num_classes: Logits per position.
        chunk: The number, or `auto`.
        is_cpu: Whether logits are computed on a CPU.

    Raises:
        SpecError: If the number of positions is below 1.
    """
    if chunk == "auto":
        rows = max(1, CHUNK_BYTES // (4 * num_classes))
        return min(rows, CPU_ROWS) if is_cpu else rows
    if chunk < 1:
        raise SpecError(f"'chunk' must be 'auto' or a positive number of positions; got {chunk}")
    return chunk


def chunked_total(head: LinearHead, loss: RowLoss, *, chunk: Chunk = "auto") -> Float[Tensor, ""]:
    """Return a loss of logits, summed over rows, without storing the logits of all rows.

    Value and gradient equal those of ``loss(head.logits(), all rows)`` for any sum over rows.

    Args:
        head: The student's head at the counted rows.
        loss: Compares the logits of some rows with their targets.
        chunk: Maximum number of rows with logits in memory.

    Returns:
        The sum, in the unit of the loss.

    Raises:
        SpecError: If the number of positions is below 1.
    """
    head = head.flat
    number = len(head.states)
    size = chunk_rows(head.num_classes, chunk, is_cpu=head.states.is_cpu)
    with torch.autocast(processor_kind(head.states), enabled=False):
        if number <= size:
            return loss(head.logits(), slice(0, number))
        inputs = (head.states, head.weight, head.bias)
        needs_grad = any(tensor is not None and tensor.requires_grad for tensor in inputs)
        if torch.is_grad_enabled() and needs_grad:
            total: Tensor = _Chunked.apply(*inputs, head, loss, size)  # type: ignore[no-untyped-call]
            return total
        with torch.no_grad():
            detached = head.detached
            totals = [loss(detached.at(rows).logits(), rows) for rows in _chunks(number, size)]
            return torch.stack(totals).sum()


def _fused_total(head: LinearHead, loss: FusedLoss, chunk: Chunk) -> Float[Tensor, ""]:
    """Return the loss of the kernel, summed over rows, with gradients of a flat head."""
    size = loss.chunk_rows
    if chunk != "auto":
        size = chunk_rows(head.num_classes, chunk, is_cpu=False)
    inputs = (head.states, head.weight, head.bias)
    needs_grad = any(tensor is not None and tensor.requires_grad for tensor in inputs)
    with torch.autocast(processor_kind(head.states), enabled=False):
        if torch.is_grad_enabled() and needs_grad:
            total: Tensor = _Chunked.apply(*inputs, head, loss, size)  # type: ignore[no-untyped-call]
            return total
        with torch.no_grad():
            slices = _chunks(len(head.states), size)
            return torch.stack([loss.overwrite(loss.product(rows), rows) for rows in slices]).sum()


def chunked_cross_entropy(
    student: LinearHead, labels: Int[Tensor, "*row"], *, chunk: Chunk = "auto"
) -> Float[Tensor, ""]:
    """Return `losses.cross_entropy` of the student's logits, computed in chunks.

    Args:
        student: The student's head at the labeled rows.
        labels: The correct class of each row.
        chunk: Maximum number of rows with logits in memory.

    Returns:
        Sum over rows, in nats.
    """
    flat, student = labels.flatten(), student.flat
    fused = fused_loss(student, None, labels=flat) if len(flat) == len(student.states) else None
    if fused is not None:
        return _fused_total(student, fused, chunk)
    return chunked_total(
        student, lambda logits, rows: cross_entropy(logits, flat[rows]), chunk=chunk
    )


def chunked_divergence(  # noqa: PLR0913 - the fields of `MatchLogits`
    student: LinearHead,
    teacher: LinearHead,
    divergence: Divergence,
    *,
    student_temperature: float,
    teacher_temperature: float,
    num_classes: int | None = None,
    labels: Int[Tensor, "*row"] | None = None,
    label_weight: float = 1.0,
    chunk: Chunk = "auto",
) -> Float[Tensor, ""]:
    """Return a divergence of two models' outputs, computed in chunks of positions.

    Args:
        student: The student's head at the counted rows; gets the gradient.
        teacher: The teacher's head at the same rows, of any width.
        divergence: Divergence of the two distributions.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, 0 or positive.
        num_classes: Number of leading classes to compare, for padded heads; None for all.
        labels: The correct class of each row; their cross-entropy at temperature 1 is added. None
            adds no cross-entropy.
        label_weight: Factor of that cross-entropy.
        chunk: Maximum number of rows with logits in memory.

    Returns:
        Sum over rows of the divergence, plus `label_weight` times the cross-entropy; in nats.

    Raises:
        SpecError: If numbers of rows or classes differ, or a chunk is below 1 position.
    """
    student, teacher = student.flat, teacher.flat
    flat = None if labels is None else labels.flatten()
    _check(student, teacher, flat, num_classes)
    student, teacher = student.first(num_classes), teacher.first(num_classes).detached
    fused = fused_loss(
        student,
        teacher,
        divergence,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        labels=flat,
        label_weight=label_weight,
    )
    if fused is not None:
        return _fused_total(student, fused, chunk)

    buffer = _ProductBuffer()

    def compare(logits: Float[Tensor, "row class"], rows: slice) -> Float[Tensor, ""]:
        # Computed first, because the divergence may overwrite the logits.
        label_loss = None if flat is None else label_weight * cross_entropy(logits, flat[rows])
        teacher_chunk = teacher.at(rows)
        total = divergence(
            logits,
            teacher_chunk.finished(buffer.product(teacher_chunk)),
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            overwrites=True,
        )
        return total if label_loss is None else total + label_loss

    return chunked_total(student, compare, chunk=chunk)


def _check(
    student: LinearHead, teacher: LinearHead, labels: Tensor | None, num_classes: int | None
) -> None:
    rows = [len(student.states), len(teacher.states)] + ([] if labels is None else [len(labels)])
    if len(set(rows)) > 1:
        raise SpecError(f"'student', 'teacher' and 'labels' must have the same rows; got {rows}")
    classes = [student.num_classes, teacher.num_classes]
    are_equal = classes[0] == classes[1]
    if not are_equal if num_classes is None else num_classes > min(classes):
        raise SpecError(
            f"'num_classes' must be set if the heads of student and teacher differ, to at most the "
            f"smaller number of classes; got {num_classes} with {classes[0]} and {classes[1]} "
            f"classes"
        )


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _chunks(number: int, size: int) -> Iterator[slice]:
    """Yield slices of nearly equal length, at most `size`, that cover `number` rows."""
    even = math.ceil(number / math.ceil(number / size))
    for start in range(0, number, even):
        yield slice(start, min(start + even, number))


@final
class _Chunked(torch.autograd.Function):
    """Sum of a loss over chunks, with gradients computed in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes by position
        ctx: Any,  # noqa: ANN401 - torch types only a part of it
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LinearHead,
        loss: RowLoss | FusedLoss,
        size: int,
    ) -> Tensor:
        states_grad, weight_grad, bias_grad = ctx.needs_input_grad[:3]
        chunks = [*_chunks(len(states), size)]
        rounds = isinstance(loss, FusedLoss) and len(chunks) <= MOST_ROUNDINGS
        sums = _GradientSums(
            loss.student if isinstance(loss, FusedLoss) else head.detached,
            states=states_grad,
            weight=weight_grad,
            bias=bias_grad,
            is_narrow=rounds and weight.dtype == states.dtype == torch.bfloat16,
        )
        totals = [sums.add(rows, loss) for rows in chunks]
        ctx.save_for_backward(sums.states, sums.weight, sums.bias)
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in (states, weight, bias)]
        return torch.stack(totals).sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        scale: Tensor,
    ) -> tuple[Tensor | None, ...]:
        # Not in place if the graph is retained, whose backward pass may run again.
        multiply = torch.mul if _keeps_graph() else Tensor.mul_
        gradients = [
            None if grad is None else multiply(grad, scale).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None, None)


def _keeps_graph() -> bool:
    """Return whether the running backward pass retains its graph, or torch does not expose that."""
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # noqa: SLF001
    return keeps_graph is None or bool(keeps_graph())


@final
class _ProductBuffer:
    """Buffer reused for the matrix products of all chunks, which saves an allocation per chunk."""

    def __init__(self) -> None:
        """Create the buffer without memory; the first product allocates it."""
        self._buffer: Tensor | None = None

    def product(self, head: LinearHead) -> Float[Tensor, "row class"]:
        """Return the product of a head, valid until the next call; no gradient."""
        rows, classes = len(head.states), head.num_classes
        with torch.no_grad():
            if self._buffer is None or len(self._buffer) < rows:
                self._buffer = head.states.new_empty(rows, classes)
            return head.product(self._buffer[:rows])


@final
class _GradientSums:
    """Gradients of a loss with respect to a head, accumulated chunk by chunk."""

    def __init__(
        self, head: LinearHead, *, states: bool, weight: bool, bias: bool, is_narrow: bool
    ) -> None:
        """Allocate the sums.

        Args:
            head: The head, without gradient.
            states: Whether the states get a gradient.
            weight: Whether the weight gets one.
            bias: Whether the bias gets one.
            is_narrow: Whether the weight gradient has the precision of the weight.
        """
        self._head, self._buffer = head, _ProductBuffer()
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        narrow = head.weight.dtype if is_narrow else wide
        self.states = torch.empty_like(head.states) if states else None
        self.weight = torch.zeros_like(head.weight, dtype=narrow) if weight else None
        self.bias = (
            torch.zeros_like(head.bias, dtype=wide) if bias and head.bias is not None else None
        )

    def add(self, rows: slice, loss: RowLoss | FusedLoss) -> Tensor:
        """Return the loss of some rows after adding its gradient."""
        head = self._head.at(rows)
        if isinstance(loss, FusedLoss):
            grad = loss.product(rows)
            total = loss.overwrite(grad, rows)
        else:
            total, grad = self._differentiate(head, rows, loss)
        if self.states is not None:
            torch.mm(grad, head.weight, out=self.states[rows])
        if self.weight is not None:
            if self.weight.dtype == grad.dtype:
                # Without reading a sum of zeros; on a CPU read, which keeps its bits as they were.
                beta = 0 if isinstance(loss, FusedLoss) and rows.start == 0 else 1
                torch.addmm(self.weight, grad.T, head.states, beta=beta, out=self.weight)
            elif isinstance(loss, FusedLoss):
                self._add_in_slabs(self.weight, grad, head.states)
            else:
                self.weight += grad.T @ head.states
        if self.bias is not None:
            self.bias += grad.sum(0, dtype=self.bias.dtype)
        return total.detach()

    def _differentiate(
        self, head: LinearHead, rows: slice, loss: RowLoss
    ) -> tuple[Tensor, Float[Tensor, "row class"]]:
        """Return the loss of some rows, and its gradient with respect to their products."""
        product = self._buffer.product(head).detach().requires_grad_()
        # The inner hooks shield the chunk's own graph from outer ones that offload or count saved
        # tensors.
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            total = loss(head.finished(product), rows)
            (grad,) = torch.autograd.grad(total, product)
        return total, grad

    @staticmethod
    def _add_in_slabs(total: Tensor, grad: Tensor, states: Tensor) -> None:
        """Add ``grad.T @ states`` to a wider sum, some classes at a time."""
        size = max(1, SLAB_BYTES // (states.shape[1] * states.element_size()))
        for start in range(0, len(total), size):
            slab = slice(start, start + size)
            total[slab] += grad[:, slab].T @ states
