"""Tensors and modules beside other tensors, so that code need not name a processor.

Design: where models and batches of a run lie is decided by `training.setup.placement` alone.
Everything else makes its tensors where those lie that it was given.
"""

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

Movable = TypeVar("Movable", bound=Tensor | nn.Module)


def beside(movable: Movable, like: Tensor) -> Movable:
    """Return a tensor or a module moved to the memory of another tensor, in its own precision.

    Args:
        movable: The tensor, copied only if it lies elsewhere, or the module, moved in place.
        like: A tensor that lies where the result is to lie.
    """
    # Copies to a GPU need not be waited for; a copy to the CPU would be read before it is there.
    return cast("Movable", movable.to(like.device, non_blocking=not like.is_cpu))


def processor_kind(tensor: Tensor) -> str:
    """Return the kind of processor that computes on a tensor, as `torch.autocast` names it."""
    return tensor.device.type


def synchronize(tensor: Tensor) -> None:
    """Wait until everything is computed that was started where a tensor lies."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def count_beside(like: Tensor, number: int | torch.SymInt) -> Tensor:
    """Return the integers from 0 on beside a tensor.

    Args:
        like: A tensor.
        number: Number of integers; symbolic while a model is traced.
    """
    return torch.arange(cast("int", number), device=like.device)
