"""How is a module changed for a while and given back as it was?

Binding runs a student once to look at it, a stage freezes what it does not train, a teacher is
held in evaluation mode and its linear maps in lower precision. Each of these is a block; when it
ends, also by an exception, everything is what it was before, submodule by submodule.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put the training mode of every submodule back at the end of the block.

    Yields:
        Nothing.
    """
    # `module.train(before)` would set all submodules alike, also those frozen in evaluation mode.
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


@contextmanager
def looked_at(module: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation mode without gradients; its modes come back after.

    Yields:
        Nothing.
    """
    with modes_kept(module), torch.no_grad():
        module.eval()
        yield


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put all buffers, such as running statistics, back at the end of the block.

    Yields:
        Nothing.
    """
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@contextmanager
def frozen_but(module: nn.Module, trained: Collection[str]) -> Iterator[None]:
    """Take gradients from all parameters but the named ones; the flags come back after.

    A parameter that needed no gradient before needs none inside the block either.

    Yields:
        Nothing.
    """
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in trained)
    try:
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


@contextmanager
def held_low(module: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Hold the weights of linear maps in lower precision; they are let go at the end of the block.

    Yields:
        Nothing.
    """
    hold_low(module, dtype)
    try:
        yield
    finally:
        hold_low(module, None)


def hold_low(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let linear maps keep copies of their weights in lower precision.

    In autocast of that precision they use them, instead of casting the same weights at every pass;
    results are bit-equal. Outside it, and for whoever reads a weight, nothing is different. Left
    alone are parts of other classes, subclasses too, and those whose weight is made anew at every
    pass or whose forward pass somebody has replaced.

    Args:
        module: A model whose weights do not change from now on.
        dtype: The precision of the autocast; None lets go of what is held.
    """
    for part in module.modules():
        own = vars(part)
        # Also that of the model of which this one is a copy.
        if isinstance(own.get("forward"), _Held):
            del own["forward"]
        if dtype is not None and type(part) is nn.Linear and _is_plain(part):
            own["forward"] = _Held(part, dtype)


def _is_plain(part: nn.Linear) -> bool:
    """Return whether nobody has changed what a linear map computes, as weight norms do."""
    names = {name for name, _ in part.named_parameters(recurse=False)}
    return {"weight"} <= names <= {"weight", "bias"} and "forward" not in vars(part)


@final
class _Held:
    """The forward pass of a linear map with its weights in two precisions."""

    def __init__(self, part: nn.Linear, dtype: torch.dtype) -> None:
        self._plain, self._dtype = part.forward, dtype
        weights = dict(part.named_parameters(recurse=False))
        self._weight = weights["weight"].detach().to(dtype)
        self._bias = weights["bias"].detach().to(dtype) if "bias" in weights else None

    def __call__(self, state: Tensor) -> Tensor:
        kind = state.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == self._dtype:
            return functional.linear(state, self._weight, self._bias)
        return self._plain(state)
