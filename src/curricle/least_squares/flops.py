"""FLOPs of a warm start: counted while it runs; those of a fit of blocks estimated before.

Counted are, beside torch's counts (matrix products, convolutions, attention), the factorizations
and solutions of linear systems, whose sizes are those of moments. Passes of the teacher are counted
apart; all else belongs to the student: its passes, moments and solutions.

Units: FLOPs, two for a multiplication with its addition.

Source:
    G. Golub, C. Van Loan, "Matrix Computations", 4th edition: counts of the factorizations, and of
    the solution of least-squares problems by the singular value decomposition.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import cast, final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from curricle.least_squares.logit_fit import ITERATIONS
from curricle.least_squares.maps import linear_map
from curricle.models.restoring import modes_kept
from curricle.models.tapped import Inputs, TappedModel

STUDENT_PASSES = 2
"""Passes of each of the student's blocks: up to the map that writes, after attention and after the
neurons."""


def _solution(matrices: Tensor, targets: Tensor) -> float:
    size = matrices.shape[-1]
    return 2 * size**3 / 3 * _number(matrices) + 2 * size * targets.numel()


def _triangular_solution(matrices: Tensor, targets: Tensor) -> float:
    return matrices.shape[-1] * targets.numel()


def _svd(matrices: Tensor, *_: object) -> float:
    rows, columns = sorted(matrices.shape[-2:], reverse=True)
    flops = 4 * rows**2 * columns + 8 * rows * columns**2 + 9 * columns**3
    return flops * _number(matrices)


def _least_squares(matrices: Tensor, *_: object) -> float:
    rows, columns = sorted(matrices.shape[-2:], reverse=True)
    return (4 * rows * columns**2 + 8 * columns**3) * _number(matrices)


def _cubic(factor: float) -> Callable[..., float]:
    return lambda matrices, *_: factor * matrices.shape[-1] ** 3 * _number(matrices)


def _number(matrices: Tensor) -> int:
    return matrices.shape[:-2].numel()


_SOLVERS: Mapping[OpOverloadPacket, Callable[..., float]] = {
    torch.ops.aten._linalg_solve_ex: _solution,  # noqa: SLF001 - torch's name
    torch.ops.aten.linalg_solve_triangular: _triangular_solution,
    torch.ops.aten._linalg_svd: _svd,  # noqa: SLF001 - torch's name
    torch.ops.aten.linalg_lstsq: _least_squares,
    torch.ops.aten._linalg_eigh: _cubic(9),  # noqa: SLF001 - torch's name
    torch.ops.aten.linalg_cholesky_ex: _cubic(1 / 3),
    torch.ops.aten.linalg_inv_ex: _cubic(2),
}


_COUNTER: ContextVar["StartFlops | None"] = ContextVar("counter of a start", default=None)


@final
class StartFlops(TorchDispatchMode):
    """Counts the FLOPs inside its context; those of the teacher's passes apart."""

    def __init__(self, teacher: nn.Module, *, computes: bool = True) -> None:
        """Begin at zero.

        Args:
            teacher: The teacher, whose passes are inside `passes_of`.
            computes: False to leave counted operations out: results are zeros of the right shape.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.teacher_module = teacher
        self._computes = computes
        self.student = 0
        """FLOPs outside the teacher's passes."""
        self.teacher = 0
        self.is_in_pass = False
        """Whether the teacher runs."""

    def __enter__(self) -> "StartFlops":
        """Return the counter, which begins to count."""
        self._token = _COUNTER.set(self)
        return cast("StartFlops", super().__enter__())  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: object) -> None:
        """Stop counting."""
        _COUNTER.reset(self._token)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Return the output of an operation, which is counted."""
        keywords = kwargs or {}
        operation, count = func._overloadpacket, 0  # noqa: SLF001 - as in torch's own counter
        is_counted = operation in _SOLVERS or operation in flop_registry
        compute = func if self._computes or not is_counted else partial(_zeros, func)
        output = compute(*args, **keywords)
        if operation in _SOLVERS:
            count = int(_SOLVERS[operation](*args))
        elif operation in flop_registry:
            count = flop_registry[operation](*args, **keywords, out_val=output)
        if self.is_in_pass:
            self.teacher += count
        else:
            self.student += count
        return output


def _zeros(
    func: Callable[..., object],
    *args: object,
    **keywords: object,
) -> object:
    """Return zeros in the shape of an operation's output."""
    tensors = [entry for entry in tree_leaves((args, keywords)) if isinstance(entry, Tensor)]
    shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, keywords))
    output: object = tree_map_only(
        Tensor,
        lambda tensor: tensors[0].new_zeros(tensor.shape, dtype=tensor.dtype),
        func(*shapes[0], **shapes[1]),
    )
    return output


@contextmanager
def passes_of(module: nn.Module) -> Iterator[None]:
    """Count passes of a module as the teacher's, if it is the teacher of the start that runs.

    Yields:
        Nothing.
    """
    counter = _COUNTER.get()
    if counter is None or counter.teacher_module is not module or counter.is_in_pass:
        yield
        return
    counter.is_in_pass = True
    try:
        yield
    finally:
        counter.is_in_pass = False


def planned_flops(
    student: TappedModel, teacher: TappedModel, inputs: tuple[Inputs, Inputs], number: int
) -> tuple[int, int]:
    """Return the FLOPs of a fit of blocks, of the student and of the teacher, estimated.

    Left out are costs that do not grow with the calibration: solutions, the map of the stream, and
    the examples by which roles are determined.

    Args:
        student: The student.
        teacher: The teacher.
        inputs: Inputs of both in a batch.
        number: Number of batches.
    """
    passes = []
    for model, batch in zip((student, teacher), inputs, strict=True):
        counter = StartFlops(teacher.module)
        with modes_kept(model.module), torch.no_grad():
            # As in the fit, where nothing is dropped out.
            model.module.eval()
            with counter, model.open_taps((), logits=True) as forward:
                logits = forward(batch).logits
        passes.append(counter.student)
    rows = 0 if logits is None else logits.numel() // logits.shape[-1]
    moments = 0
    for model, squares in ((student, True), (teacher, False)):
        for path, module in model.module.named_modules():
            linear = linear_map(path, module)
            if linear is None:
                continue
            outputs, size = linear.sizes
            if squares or size > outputs:
                # Inputs of the student's maps, and the neurons of the teacher's.
                moments += 2 * rows * size * size
            if squares and outputs > max(size, 1000):
                moments += 4 * (ITERATIONS + 1) * rows * size * outputs
    return number * (STUDENT_PASSES * passes[0] + moments), number * passes[1]
