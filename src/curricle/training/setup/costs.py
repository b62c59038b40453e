"""Cost of a computation in FLOPs and bytes, counted while it runs once.

A `Meter` counts FLOPs and the bytes that autograd keeps for the backward pass. It can run over
several blocks, such as a forward pass and later its backward pass, and adds them up.

Units: bytes; FLOPs, two for a multiplication with its addition (matrix products, convolutions and
attention, as torch counts them; cheaper operations are left out).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@final
class Meter:
    """Counts the FLOPs and activations of computations inside its context."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Start at zero; weights and data, which lie in memory anyway, are `known`."""
        self.flops = 0
        # Autograd keeps views of the weights, so what counts is the storage, not the tensor.
        self._known = set(map(_identity, known))
        self._kept: dict[int, int] = {}
        # The identity of a storage without data is that of its object, which must live on.
        self._without_data: list[torch.UntypedStorage] = []

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Count some more tensors as lying in memory anyway."""
        self._known |= set(map(_identity, tensors))

    @property
    def saved_bytes(self) -> int:
        """Return the bytes kept for the backward pass, each storage once."""
        return sum(self._kept.values())

    def move_flops(self, flops: int, receiver: "Meter") -> None:
        """Count FLOPs as those of another meter."""
        self.flops -= flops
        receiver.flops += flops

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the computations of the block.

        Yields:
            Nothing.
        """
        # The hook hands each tensor on as it is: a copy would change what autograd keeps, and so
        # the number that is measured.
        watching = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        with FlopCounterMode(display=False) as counter, watching:
            yield
        # Read after the block has ended, and added, so that a forward pass and its backward pass
        # may run in blocks of their own.
        self.flops += counter.get_total_flops()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # An address identifies a storage here: saved tensors live until their backward pass, so no
        # address is used twice while they are counted.
        identity = _identity(tensor)
        if identity not in self._known:
            self._kept[identity] = storage.nbytes()
        if _has_no_data(storage):
            self._without_data.append(storage)
        return tensor


def _identity(tensor: Tensor) -> int:
    """Return a number by which the storage of a tensor is recognized while it lives."""
    storage = tensor.untyped_storage()
    return id(storage) if _has_no_data(storage) else storage.data_ptr()


def _has_no_data(storage: torch.UntypedStorage) -> bool:
    return bool(storage.device.type == "meta")
