"""Models that a run can take: what a student and a teacher must be like before anything runs.

Each rule is about one kind of weights or wrapper for which torch itself would give an error that
does not name the cause, or none at all.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import nn

from curricle.errors import BindError, CurricleError
from curricle.models.tapped import Reader

LOW_PRECISION = (torch.float16, torch.bfloat16)
SHARDED = ("torch.nn.parallel.distributed", "torch.distributed")
"""Modules of torch whose classes spread a model over processes."""


def check_present(module: nn.Module, who: str) -> None:
    """Check that a model has all of its weights, in this process.

    Args:
        module: The model.
        who: `student` or `teacher`.

    Raises:
        BindError: If not; the first weight or part is named.
    """
    for path, part in module.named_modules():
        if type(part).__module__.startswith(SHARDED):
            raise BindError(
                f"{who!r} must not be wrapped for several processes, since a run is one process; "
                f"{path or who!r} is a {type(part).__name__}; pass the module inside"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if type(tensor).__module__.startswith(SHARDED):
            raise BindError(
                f"{who!r} must have whole weights; {name!r} is a {type(tensor).__name__}, a part "
                f"of one that several processes share"
            )
        if nn.parameter.is_lazy(tensor):
            raise BindError(
                f"{who!r} must have weights; {name!r} gets its shape from the first forward pass; "
                f"run one on a batch before"
            )
        if tensor.is_meta:
            raise BindError(
                f"{who!r} must have weights; {name!r} is a meta tensor, which holds none; "
                f"build it on the CPU or load them"
            )


def check_trainable(module: nn.Module) -> None:
    """Check that the weights which a student would train can be trained.

    Raises:
        BindError: If not; the first that cannot is named.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_inference():
            raise BindError(
                f"'student' must have weights that were made outside of torch.inference_mode, "
                f"inside of which they cannot be trained; {name!r} was made inside; build it "
                f"outside"
            )
        if parameter.requires_grad and parameter.dtype in LOW_PRECISION:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise BindError(
                f"'student' must have float32 weights where it trains, since updates round away "
                f"in less; {name!r} is {dtype}; pass student.float(), and "
                f"EngineSettings(precision='bfloat16') for fast passes"
            )
        if parameter.requires_grad and not parameter.is_leaf:
            raise BindError(
                f"'student' must have weights that are leaves of autograd; {name!r} is computed "
                f"from other tensors"
            )


def check_real(module: nn.Module) -> None:
    """Check that no weight which trains is complex, which fused AdamW cannot move.

    Raises:
        BindError: If one is.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise BindError(
                f"'student' must have real weights to be trained by AdamW; {name!r} is {dtype}; "
                f"keep torch.view_as_real of it, or take SGD"
            )


def check_savable(module: nn.Module) -> None:
    """Check that a student's whole state can be written as tensors.

    Raises:
        BindError: If not; what cannot be is named.
    """
    for name, item in module.state_dict().items():
        if not isinstance(item, torch.Tensor):
            raise BindError(
                f"'student' must keep its state in parameters and buffers to be saved; {name!r} is "
                f"a {type(item).__name__}, which a file of tensors cannot hold"
            )


@contextmanager
def readable(who: str, reading: AbstractContextManager[Reader]) -> Iterator[Reader]:
    """Open a reading, which scripted modules refuse.

    Args:
        who: Whose model it is, for people.
        reading: A reading that is not open yet.

    Yields:
        Its forward pass.

    Raises:
        BindError: If torch lets nobody read inside the model.
        RuntimeError: If an error of ours, which is one, says what is wrong.
    """
    with ExitStack() as stack:
        try:
            forward = stack.enter_context(reading)
        except RuntimeError as error:
            if isinstance(error, CurricleError):
                raise
            raise BindError(
                f"{who!r} must be a module in Python for its hidden states to be read; torch says: "
                f"{error}; pass the module that it was scripted from"
            ) from error
        yield forward


def weight_notes(module: nn.Module) -> Iterator[str]:
    """Yield what about a student's weights its owner may not know, one sentence each."""
    parameters = list(module.parameters())
    wide = [one for one in parameters if one.requires_grad and one.dtype == torch.float64]
    if wide:
        yield "the student is float64; student.float() makes it float32, which is faster"
    frozen = sum(one.numel() for one in parameters if not one.requires_grad)
    if frozen:
        total = sum(one.numel() for one in parameters)
        yield (
            f"{frozen:,} of the student's {total:,} parameters are frozen (requires_grad is off) "
            f"and stay as they are"
        )
    low = {one.dtype for one in parameters if not one.requires_grad} & {*LOW_PRECISION}
    if low:
        names = " and ".join(sorted(str(one).removeprefix("torch.") for one in low))
        yield f"frozen parameters of the student are {names}"
