"""Requirements of a run on its student and teacher, checked before anything runs.

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
"""Modules of torch with classes that shard a model over processes."""


def check_present(module: nn.Module, role: str) -> None:
    """Check that a model has all of its weights, in this process.

    Args:
        module: The model.
        role: `student` or `teacher`.

    Raises:
        BindError: If not; the first weight or part is named.
    """
    for path, submodule in module.named_modules():
        if type(submodule).__module__.startswith(SHARDED):
            raise BindError(
                f"{role!r} must not be wrapped for several processes, since a run is one process; "
                f"{path or role!r} is a {type(submodule).__name__}; pass the module inside"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if type(tensor).__module__.startswith(SHARDED):
            raise BindError(
                f"{role!r} must have whole weights; {name!r} is a {type(tensor).__name__}, a part "
                f"of one that several processes share"
            )
        if nn.parameter.is_lazy(tensor):
            raise BindError(
                f"{role!r} must have weights; {name!r} gets its shape from the first forward pass; "
                f"run one on a batch before"
            )
        if tensor.is_meta:
            raise BindError(
                f"{role!r} must have weights; {name!r} is a meta tensor, which holds none; "
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
        BindError: If an entry of the state is no tensor; it is named.
    """
    for name, item in module.state_dict().items():
        if not isinstance(item, torch.Tensor):
            raise BindError(
                f"'student' must keep its state in parameters and buffers to be saved; {name!r} is "
                f"a {type(item).__name__}, which a file of tensors cannot hold"
            )


@contextmanager
def readable(role: str, reading: AbstractContextManager[Reader]) -> Iterator[Reader]:
    """Open a reading, which scripted modules refuse.

    Args:
        role: Role of the model, for the error sentence.
        reading: A reading that is not open yet.

    Yields:
        Its forward pass.

    Raises:
        BindError: If torch does not allow hooks inside the model.
        RuntimeError: If an error of this package is one; it is passed on.
    """
    with ExitStack() as stack:
        try:
            forward = stack.enter_context(reading)
        except RuntimeError as error:
            if isinstance(error, CurricleError):
                raise
            raise BindError(
                f"{role!r} must be a module in Python for its hidden states to be read; torch "
                f"says: {error}; pass the module that it was scripted from"
            ) from error
        yield forward


def weight_notes(module: nn.Module) -> Iterator[str]:
    """Yield notes on unexpected properties of a student's weights, one sentence each."""
    parameters = list(module.parameters())
    wide = [
        parameter
        for parameter in parameters
        if parameter.requires_grad and parameter.dtype == torch.float64
    ]
    if wide:
        yield "the student is float64; student.float() makes it float32, which is faster"
    frozen = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
    if frozen:
        total = sum(parameter.numel() for parameter in parameters)
        yield (
            f"{frozen:,} of the student's {total:,} parameters are frozen (requires_grad is off) "
            f"and stay as they are"
        )
    low = {parameter.dtype for parameter in parameters if not parameter.requires_grad} & {
        *LOW_PRECISION
    }
    if low:
        names = " and ".join(sorted(str(parameter).removeprefix("torch.") for parameter in low))
        yield f"frozen parameters of the student are {names}"
