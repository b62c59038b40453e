"""FLOPs of a fit: counted while it runs, and estimated before.

Counted are, beside what torch counts (matrix products, convolutions, attention), the factorizations
and solutions of linear systems, whose sizes are those of moments. Passes of the teacher are counted
apart; all else belongs to the student: its passes, moments and solutions.

Units: FLOPs, two for a multiplication with its addition.

Source:
    G. Golub, C. Van Loan, "Matrix Computations", 4th edition: counts of the factorizations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast, final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from curricle.least_squares.logit_fit import ITERATIONS
from curricle.least_squares.maps import linear_map
from curricle.models.restoring import modes_kept
from curricle.models.tapped import Inputs, TappedModel

STUDENT_PASSES = 2
"""Passes of each of the student's blocks: up to the map that writes, after attention and after the
neurons."""


def _solved(arguments: Sequence[Any]) -> int:
    size, columns = arguments[0].shape[-1], arguments[1].shape[-1]
    return int(2 * size**3 / 3 + 2 * size**2 * columns)


def _decomposed(arguments: Sequence[Any]) -> int:
    rows, columns = sorted(arguments[0].shape[-2:], reverse=True)
    return int(4 * rows**2 * columns + 8 * rows * columns**2 + 9 * columns**3)


_SOLVERS: Mapping[Any, Callable[[Sequence[Any]], int]] = {
    torch.ops.aten._linalg_solve_ex: _solved,  # noqa: SLF001 - torch's name
    torch.ops.aten._linalg_eigh: lambda arguments: 9 * arguments[0].shape[-1] ** 3,  # noqa: SLF001
    torch.ops.aten._linalg_svd: _decomposed,  # noqa: SLF001 - torch's name
    torch.ops.aten.linalg_cholesky_ex: lambda arguments: arguments[0].shape[-1] ** 3 // 3,
    torch.ops.aten.linalg_inv_ex: lambda arguments: 2 * arguments[0].shape[-1] ** 3,
}


_COUNTER: ContextVar["FitFlops | None"] = ContextVar("counter of the fit that runs", default=None)


@final
class FitFlops(TorchDispatchMode):
    """Counts the FLOPs inside its context; those of the teacher's passes apart."""

    def __init__(self, teacher: nn.Module) -> None:
        """Begin at zero.

        Args:
            teacher: The teacher, whose passes are inside `passes_of`.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.teacher_module = teacher
        self.student = 0
        """FLOPs outside the teacher's passes."""
        self.teacher = 0
        self.is_in_pass = False
        """Whether the teacher runs."""

    def __enter__(self) -> "FitFlops":
        """Return the counter, which begins to count."""
        self._token = _COUNTER.set(self)
        return cast("FitFlops", super().__enter__())  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: object) -> None:
        """Stop counting."""
        _COUNTER.reset(self._token)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - as torch has it
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as torch has it
        """Return the output of an operation, which is counted."""
        keywords = kwargs or {}
        output = func(*args, **keywords)
        operation, count = func._overloadpacket, 0  # noqa: SLF001 - as in torch's own counter
        if operation in _SOLVERS:
            count = _SOLVERS[operation](args)
        elif operation in flop_registry:
            count = flop_registry[operation](*args, **keywords, out_val=output)
        if self.is_in_pass:
            self.teacher += count
        else:
            self.student += count
        return output


@contextmanager
def passes_of(module: nn.Module) -> Iterator[None]:
    """Count what a module computes as the teacher's, if it is the teacher of the fit that runs.

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

    Left out is what does not grow with the calibration: solutions, the map of the stream, and the
    examples by which roles are determined.

    Args:
        student: The student.
        teacher: The teacher.
        inputs: Inputs of both in a batch.
        number: Number of batches.
    """
    passes = []
    for model, batch in zip((student, teacher), inputs, strict=True):
        counter, module = FitFlops(teacher.module), model.module
        with modes_kept(module), torch.no_grad(), model.open_taps((), logits=True) as forward:
            # As the fit runs them; dropout would draw from the global generator.
            module.eval()
            with counter:
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
