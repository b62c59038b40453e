"""Tensors of which each process of a group holds a share, as `fully_shard` makes weights.

Sharded weights are `DTensor`s: gathering one is a collective operation that every process of the
group must call, dividing a whole tensor that every process has needs no communication.

Design: nothing here imports `torch.distributed.tensor`, which takes about a second; a share exists
only where something else has imported it.
"""

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from curricle.colocation import beside, copied_to_host

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SHARES = "torch.distributed.tensor"
"""Module of torch with the class of shares."""


def is_share(tensor: Tensor) -> bool:
    """Return whether a tensor is a share of this process."""
    return type(tensor).__module__.startswith(SHARES)


def is_sharded(module: nn.Module) -> bool:
    """Return whether a module has parameters of which this process holds a share."""
    return any(is_share(parameter) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor without gradient; of shares in every process at once."""
    share = tensor.detach()
    return cast("DTensor", share).full_tensor() if is_share(tensor) else share


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the share of a whole tensor, divided as another tensor is.

    Args:
        tensor: The whole tensor, equal in every process.
        like: A share of a tensor of the same shape, or a whole one.

    Returns:
        The share, or the tensor itself where nothing is divided.
    """
    if not is_share(like):
        return tensor
    share = cast("DTensor", like)
    divided: Tensor = importlib.import_module(SHARES).distribute_tensor(
        beside(tensor.detach(), like), share.device_mesh, share.placements, src_data_rank=None
    )
    return divided


def share_in_memory(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor that this process holds, as a plain tensor."""
    share = tensor.detach()
    return cast("DTensor", share).to_local() if is_share(tensor) else share


def whole_parts(module: nn.Module, *, keeps: bool) -> dict[str, Tensor]:
    """Return copies of the whole parameters and buffers of a sharded module, tied ones once.

    The copies lie on the CPU. Every process calls it. One tensor at a time is gathered where the
    weights lie.

    Args:
        module: The module.
        keeps: Whether this process keeps the tensors; otherwise the result is empty.
    """
    owners: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        owners.setdefault(id(tensor), (name, tensor))
    return whole_copies(owners.values(), keeps=keeps)


def whole_copies(tensors: Iterable[tuple[str, Tensor]], *, keeps: bool) -> dict[str, Tensor]:
    """Return copies of whole tensors on the CPU; of shares every process calls it.

    Args:
        tensors: Names and tensors, of which one at a time is gathered where it lies.
        keeps: Whether this process keeps the copies; otherwise the result is empty.
    """
    gathered = ((name, whole(tensor)) for name, tensor in tensors)
    if keeps:
        return copied_to_host(gathered)
    for _ in gathered:
        pass
    return {}
