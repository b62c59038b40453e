"""How is a loss of logits computed where all logits at once would not fit into memory?

With N positions and V classes the plain way holds several tensors of N x V numbers until the
backward pass. Here a few positions at a time are multiplied out, compared and forgotten. What stays
is the sum of the loss and its gradient to the states, the weight and the bias of the student's
head, which are made in the forward pass, chunk by chunk; the backward pass only multiplies them by
the gradient that comes from above.

Axes: row (counted positions), width (of a state), class.

Design: a chunk is compared by the very functions that compare all logits, differentiated by
autograd, so there is no second formula of any loss. Sums over the weights are float32 or better.
Up to one chunk the plain way is taken. Gradient goes to the student's head and to nothing else that
a loss may use. Products are in the precision of the states, as under autocast, which is off within.

References:
    [LK] Hsu et al. 2024, arXiv 2410.10989 (Liger Kernel): the gradient of a fused head is computed
        in the forward pass.
    [W24] Wijmans et al. 2024, arXiv 2411.09009: why the logits are what fills the memory.
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

from curricle.errors import SpecError
from curricle.models.heads import LinearHead
from curricle.objectives.divergences import Divergence
from curricle.objectives.losses import cross_entropy

Chunk = Literal["auto"] | Annotated[int, Field(gt=0)]
"""Positions of a chunk; `auto` takes as many as `CHUNK_BYTES` hold, on a CPU at most `CPU_ROWS`."""
CHUNK_BYTES = 2**28
"""Bytes of the float32 logits of one model at the positions of an `auto` chunk; while a loss
compares them, it holds several tensors of that size."""
CPU_ROWS = 512
"""Positions from which a CPU multiplies no faster; fewer logits are nearer to its caches."""

RowLoss = Callable[[Tensor, slice], Tensor]
"""Of the logits of some rows and where these rows are: the loss summed over them."""


def chunk_rows(num_classes: int, chunk: Chunk, device: torch.device) -> int:
    """Return the most positions of one chunk.

    Args:
        num_classes: Logits a position.
        chunk: The number, or `auto`.
        device: Where the logits are.

    Raises:
        SpecError: If a chunk has no positions.
    """
    if chunk == "auto":
        held = max(1, CHUNK_BYTES // (4 * num_classes))
        return min(held, CPU_ROWS) if device.type == "cpu" else held
    if chunk < 1:
        raise SpecError(f"'chunk' must be 'auto' or a positive number of positions; got {chunk}")
    return chunk


def chunked_total(head: LinearHead, loss: RowLoss, *, chunk: Chunk = "auto") -> Float[Tensor, ""]:
    """Return a loss of logits, summed over rows, without holding the logits of all rows.

    Value and gradient are those of ``loss(head.logits(), all rows)`` for any sum over rows.

    Args:
        head: The student's head at the rows that count.
        loss: Compares the logits of some rows with their targets.
        chunk: Most rows whose logits exist at one time.

    Returns:
        The sum, in the unit of the loss.

    Raises:
        SpecError: If a chunk has no positions.
    """
    head = head.flat
    number = len(head.states)
    size = chunk_rows(head.num_classes, chunk, head.states.device)
    with torch.autocast(head.states.device.type, enabled=False):
        if number <= size:
            return loss(head.logits(), slice(0, number))
        inputs = (head.states, head.weight, head.bias)
        if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in inputs):
            total: Tensor = _Chunked.apply(*inputs, head, loss, size)  # type: ignore[no-untyped-call]
            return total
        with torch.no_grad():
            still = head.detached
            parts = [loss(still.at(rows).logits(), rows) for rows in _chunks(number, size)]
            return torch.stack(parts).sum()


def chunked_cross_entropy(
    student: LinearHead, labels: Int[Tensor, "*row"], *, chunk: Chunk = "auto"
) -> Float[Tensor, ""]:
    """Return `losses.cross_entropy` of the student's logits, a chunk at a time.

    Args:
        student: The student's head at the labeled rows.
        labels: The right class of each row.
        chunk: Most rows whose logits exist at one time.

    Returns:
        Sum over rows, in nats.
    """
    flat = labels.flatten()
    return chunked_total(
        student, lambda logits, rows: cross_entropy(logits, flat[rows]), chunk=chunk
    )


def chunked_divergence(  # noqa: PLR0913 - what `MatchLogits` declares, one by one
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
    """Return a divergence of two models' outputs, a chunk of positions at a time.

    Args:
        student: The student's head at the rows that count; gets the gradient.
        teacher: The teacher's at the same rows, of any width.
        divergence: How the distributions are compared.
        student_temperature: Softening of the student; dimensionless, positive.
        teacher_temperature: Softening of the teacher; dimensionless, 0 or positive.
        num_classes: How many classes count, the first ones, where heads are padded; None for all.
        labels: The right class of each row, whose cross-entropy at temperature 1 is added; None
            adds nothing.
        label_weight: Factor of that cross-entropy.
        chunk: Most rows whose logits exist at one time.

    Returns:
        Sum over rows of the divergence, plus `label_weight` times the cross-entropy; in nats.

    Raises:
        SpecError: If numbers of rows or classes differ, or a chunk has no positions.
    """
    student, teacher = student.flat, teacher.flat
    flat = None if labels is None else labels.flatten()
    _check(student, teacher, flat, num_classes)
    student, teacher = student.first(num_classes), teacher.first(num_classes).detached

    memory = _Memory()

    def compare(logits: Float[Tensor, "row class"], rows: slice) -> Float[Tensor, ""]:
        # Before the divergence, which may use the memory of the logits.
        fit = None if flat is None else label_weight * cross_entropy(logits, flat[rows])
        part = teacher.at(rows)
        total = divergence(
            logits,
            part.finished(memory.product(part)),
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            overwrites=True,
        )
        return total if fit is None else total + fit

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
            f"'num_classes' must be given where the heads of student and teacher differ, and be at "
            f"most that of either; got {num_classes} with {classes[0]} and {classes[1]} classes"
        )


def _chunks(number: int, size: int) -> Iterator[slice]:
    """Yield slices of about equal length, at most `size`, that cover a number of rows."""
    even = math.ceil(number / math.ceil(number / size))
    for start in range(0, number, even):
        yield slice(start, min(start + even, number))


@final
class _Chunked(torch.autograd.Function):
    """The sum of a loss over chunks, with gradients made in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes by position
        ctx: Any,  # noqa: ANN401 - torch types only a part of it
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LinearHead,
        loss: RowLoss,
        size: int,
    ) -> Tensor:
        still, wanted = head.detached, ctx.needs_input_grad
        sums = _Sums(still, states=wanted[0], weight=wanted[1], bias=wanted[2])
        totals = [sums.add(rows, loss) for rows in _chunks(len(states), size)]
        ctx.save_for_backward(sums.states, sums.weight, sums.bias)
        ctx.dtypes = [None if one is None else one.dtype for one in (states, weight, bias)]
        return torch.stack(totals).sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        scale: Tensor,
    ) -> tuple[Tensor | None, ...]:
        # Not in place: a graph that is kept may be asked again.
        each = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        own = [None if grad is None else (grad * scale).to(dtype) for grad, dtype in each]
        return (*own, None, None, None)


@final
class _Memory:
    """Takes the products of one chunk after the other, for which none is made anew."""

    def __init__(self) -> None:
        """Begin without any."""
        self._buffer: Tensor | None = None

    def product(self, head: LinearHead) -> Float[Tensor, "row class"]:
        """Return the product of a head, which holds until the next is asked for; no gradient."""
        rows, classes = len(head.states), head.num_classes
        with torch.no_grad():
            if self._buffer is None or len(self._buffer) < rows:
                self._buffer = head.states.new_empty(rows, classes)
            return head.product(self._buffer[:rows])


@final
class _Sums:
    """The gradient of a loss to a head, added up chunk by chunk."""

    def __init__(self, head: LinearHead, *, states: bool, weight: bool, bias: bool) -> None:
        self._head, self._memory = head, _Memory()
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        self.states = torch.empty_like(head.states) if states else None
        self.weight = torch.zeros_like(head.weight, dtype=wide) if weight else None
        self.bias = (
            torch.zeros_like(head.bias, dtype=wide) if bias and head.bias is not None else None
        )

    def add(self, rows: slice, loss: RowLoss) -> Tensor:
        """Return the loss of some rows after adding its gradient."""
        part = self._head.at(rows)
        product = self._memory.product(part).detach().requires_grad_()
        # What a chunk keeps for its own gradient is nobody else's to store or count.
        with torch.enable_grad(), saved_tensors_hooks(lambda one: one, lambda one: one):
            total = loss(part.finished(product), rows)
            (grad,) = torch.autograd.grad(total, product)
        if self.states is not None:
            torch.mm(grad, part.weight, out=self.states[rows])
        if self.weight is not None:
            if self.weight.dtype == grad.dtype:
                torch.addmm(self.weight, grad.T, part.states, out=self.weight)
            else:
                self.weight += grad.T @ part.states
        if self.bias is not None:
            self.bias += grad.sum(0, dtype=self.bias.dtype)
        return total.detach()
