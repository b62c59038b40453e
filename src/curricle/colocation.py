"""Tensors and modules beside other tensors, so that code need not name a processor.

Design: where models and batches of a run lie is decided by `training.setup.placement` alone.
Everything else makes its tensors where those lie that it was given.
"""

from collections.abc import Iterable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

Movable = TypeVar("Movable", bound=Tensor | nn.Module)
MOST_PINNED_BYTES = 2**28
"""Size of the largest tensor that is copied to or from a GPU by way of pinned memory, which torch
keeps."""


def beside(movable: Movable, like: Tensor) -> Movable:
    """Return a tensor or a module moved to the memory of another tensor, in its own precision.

    Args:
        movable: The tensor, copied only if it lies elsewhere, or the module, moved in place.
        like: A tensor that lies where the result is to lie.
    """
    if isinstance(movable, Tensor):
        return cast("Movable", moved_to(movable, like.device))
    # Copies to a GPU need not be waited for; a copy to the CPU would be read before it is there.
    return cast("Movable", movable.to(like.device, non_blocking=not like.is_cpu))


def moved_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a copy to a GPU is not waited for.

    Args:
        tensor: The tensor, copied only if it lies elsewhere.
        device: The device.
    """
    if needs_pinning(tensor, device):
        # The driver may let a copy from other memory wait for all kernels that are queued. The
        # allocator of torch reuses the pinned memory only after the copy.
        tensor = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
    return tensor.to(device, non_blocking=device.type != "cpu")


def needs_pinning(tensor: Tensor, device: torch.device) -> bool:
    """Return whether a tensor is to be copied to a device by way of pinned memory.

    Args:
        tensor: The tensor.
        device: The device.
    """
    return (
        device.type == "cuda"
        and tensor.is_cpu
        # Parameters and subclasses may copy in ways of their own.
        and type(tensor) is Tensor
        and tensor.layout == torch.strided
        and not tensor.is_nested
        and not tensor.requires_grad
        and tensor.nbytes <= MOST_PINNED_BYTES
        and not tensor.is_pinned()
    )


def copied_to_host(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU, contiguous and each with a storage of its own.

    Copies from a GPU go into pinned memory, and all of them are waited for once.

    Args:
        tensors: Names and tensors, read one after the other.
    """
    copies: dict[str, Tensor] = {}
    last: dict[torch.device, Tensor] = {}
    for name, tensor in tensors:
        copies[name] = _started_copy(tensor.detach())
        # One tensor for each GPU; a tensor whose copy is queued may be freed before the copy.
        last[tensor.device] = tensor
    for tensor in last.values():
        synchronize(tensor)
    return copies


def _started_copy(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, which of a plain tensor on a GPU may be still under way."""
    if not tensor.is_cuda or type(tensor) is not Tensor or tensor.layout != torch.strided:
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    is_pinned = tensor.nbytes <= MOST_PINNED_BYTES
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=is_pinned)
    return copy.copy_(tensor, non_blocking=True)


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
