"""Requirements on the weights and wrappers of students and teachers, checked before training.

Each rule is about a kind of weights or wrapper for which torch itself would raise an error without
the cause, or none at all.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import nn

from curricle.errors import BindError, CurricleError
from curricle.models.dispatching import offloaded_weights
from curricle.models.tapped import Forward

LOW_PRECISION = (torch.float16, torch.bfloat16)
SHARDED = ("torch.nn.parallel.distributed", "torch.distributed")
"""Modules of torch with classes that distribute a model over processes."""
TEACHER = "teacher"
"""Role of the model that is only read."""


def check_present(module: nn.Module, role: str) -> None:
    """Check that a model has all of its weights, in this process.

    Args:
        module: The model.
        role: `student` or `teacher`.

    Raises:
        BindError: If not; the message has the name of the first weight or module.
    """
    offloaded = offloaded_weights(module)
    for path, submodule in module.named_modules():
        if type(submodule).__module__.startswith(SHARDED):
            raise BindError(
                f"{role!r} must not be wrapped for several processes, since a run divides its work "
                f"among them itself; {path or role!r} is a {type(submodule).__name__}; "
                f"{_unwrapping('.'.join(filter(None, [role, path])), submodule)}"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name not in offloaded:
            _check_tensor(name, tensor, role)
        # Passes of a teacher read offloaded weights where they lie.
        elif role != TEACHER:
            raise BindError(
                f"{role!r} must have its weights in memory to be trained; {name!r} is offloaded by "
                f"its 'device_map'; load the model without one"
            )


def _unwrapping(name: str, wrapper: nn.Module) -> str:
    """Return the remedy for a wrapper of torch, at an attribute of the caller's model."""
    if type(wrapper).__name__ == "DistributedDataParallel":
        return f"pass {name}.module, with TrainingSettings(parallel='ddp')"
    return "pass the module as it was before, with TrainingSettings(parallel='fsdp2')"


def _check_tensor(name: str, tensor: torch.Tensor, role: str) -> None:
    """Check that a weight has its data, in this process.

    Raises:
        BindError: If not.
    """
    if type(tensor).__module__.startswith(SHARDED):
        raise BindError(
            f"{role!r} must have whole weights; {name!r} is a {type(tensor).__name__}, a shard "
            f"distributed over several processes; pass the module as it was before, with "
            f"TrainingSettings(parallel='fsdp2')"
        )
    if nn.parameter.is_lazy(tensor):
        raise BindError(
            f"{role!r} must have weights; {name!r} gets its shape from the first forward pass; "
            f"run one on a batch before"
        )
    if tensor.is_meta:
        raise BindError(
            f"{role!r} must have weights; {name!r} is a meta tensor, without data; build the "
            f"model on the CPU or load the weights"
        )


def check_trainable(module: nn.Module) -> None:
    """Check that the weights of a student can be trained.

    Raises:
        BindError: If not; the message has the name of the first such weight.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        number = sum(1 for _ in module.parameters())
        raise BindError(
            f"'student' must have weights with requires_grad to be trained; got none among its "
            f"{number}; student.requires_grad_(True) frees them, and PEFT loads an adapter to be "
            f"trained with is_trainable=True"
        )
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
                f"'student' must have float32 weights where it trains, since small updates are "
                f"lost in lower precision; {name!r} is {dtype}; pass student.float(), and "
                f"TrainingSettings(precision='bfloat16') for fast passes"
            )
        if parameter.requires_grad and not parameter.is_leaf:
            raise BindError(
                f"'student' must have weights that are leaves of autograd; {name!r} is computed "
                f"from other tensors"
            )


def check_real(module: nn.Module) -> None:
    """Check that trainable weights are not complex, which fused AdamW does not support.

    Raises:
        BindError: If a weight is complex.
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
        BindError: If not; the message has the name of the first other entry.
    """
    for name, item in module.state_dict().items():
        if not isinstance(item, torch.Tensor):
            raise BindError(
                f"'student' must keep its state in parameters and buffers to be saved; {name!r} is "
                f"a {type(item).__name__}, which a file of tensors cannot hold"
            )


@contextmanager
def readable(role: str, opening: AbstractContextManager[Forward]) -> Iterator[Forward]:
    """Open the taps of a model, which scripted modules do not allow.

    Args:
        role: `student` or `teacher`, for error messages.
        opening: Context of the forward pass.

    Yields:
        The forward pass.

    Raises:
        BindError: If torch does not allow hooks inside the model.
        RuntimeError: If it is an error of curricle.
    """
    with ExitStack() as stack:
        try:
            forward = stack.enter_context(opening)
        except RuntimeError as error:
            if isinstance(error, CurricleError):
                raise
            raise BindError(
                f"{role!r} must be a module in Python for its hidden states to be read; torch "
                f"reports: {error}; pass the module before scripting"
            ) from error
        yield forward


def weight_notes(module: nn.Module) -> Iterator[str]:
    """Yield sentences about unusual weights of a student."""
    parameters = list(module.parameters())
    frozen = [weight for weight in parameters if not weight.requires_grad]
    if any(weight.requires_grad and weight.dtype == torch.float64 for weight in parameters):
        yield "the student is float64; student.float() makes it float32, which is faster"
    if frozen_count := sum(weight.numel() for weight in frozen):
        total = sum(weight.numel() for weight in parameters)
        yield (
            f"{frozen_count:,} of the student's {total:,} parameters are frozen (requires_grad is "
            f"off) and stay as they are"
        )
    low = {weight.dtype for weight in frozen} & {*LOW_PRECISION}
    if low:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in low))
        yield f"frozen parameters of the student are {names}"
