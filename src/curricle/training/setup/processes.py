"""Placement of a run in several processes: data-parallel training.

A launcher such as torchrun starts the processes. Each reads the whole batch of a step, computes on
its share of the examples, and takes the same update, since gradients are summed over all processes
before it. The loss is divided by the positions of the whole batch, so that result and sequence of
batches do not depend on the number of processes. `Processes` holds the common parts of all
placements in several processes; with `DataParallel` each holds both models whole, and `sharding`
divides their weights.

Design: `DistributedDataParallel` sums the gradients of the student while they are computed. It
surrounds the model for one stage, after the weights that the stage does not train are frozen: a
wrapper that outlives its stage would wait for gradients that no longer come. Numbers of the host,
such as a signal that one process has received, are exchanged on the CPU and do not wait for a GPU.

References:
    Li et al. 2020, PyTorch Distributed, arXiv 2006.15704.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from inspect import signature
from typing import final

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from curricle.colocation import moved_to
from curricle.data.batch import Batch
from curricle.errors import BindError, DataError
from curricle.models.hooked import HookedModel
from curricle.models.tapped import TappedModel
from curricle.training.setup import launchers
from curricle.training.setup.placement import (
    Device,
    Item,
    Placement,
    find_placement,
    indivisible,
    kind_of,
)
from curricle.training.setup.process_group import joined

HAS_RENAMED_BUFFERS = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
"""Whether copies of buffers in each forward pass are named as from torch 2.13 on."""


class Processes(Placement, ABC):
    """Processes that each compute on a share of every batch."""

    def __init__(self, kind: str, timeout: float) -> None:
        """Join the group of processes; see `joined`.

        Args:
            kind: `cpu` or `cuda`.
            timeout: Seconds within which a process must answer.
        """
        super().__init__(kind)
        self._group = joined(kind, timeout)
        self._rank, self._number = self._group.rank, self._group.size
        self._device = torch.device(kind)
        self._check_layout()

    @property
    def layout(self) -> dict[str, object]:
        """Return the division of models and the kind of processor, which all processes share."""
        return {"parallel": "ddp", "device": self.kind}

    def _check_layout(self) -> None:
        """Check that all processes divide models alike; otherwise their exchanges would not meet.

        Raises:
            BindError: If one does not.
        """
        layouts: list[dict[str, object]] = [{} for _ in range(self._number)]
        distributed.all_gather_object(layouts, self.layout, group=self._group.host)
        for rank, layout in enumerate(layouts):
            if layout != layouts[0]:
                words = [f"{name}={layout.get(name)!r}" for name in layout]
                raise BindError(
                    f"'parallel' must be the same in all processes; process {rank}, counted from "
                    f"0, has {', '.join(words)}, process 0 "
                    f"{', '.join(f'{name}={setting!r}' for name, setting in layouts[0].items())}"
                )

    @property
    def rank(self) -> int:
        """Return the number of this process in the group."""
        return self._rank

    @property
    def num_processes(self) -> int:
        """Return the number of processes of the group."""
        return self._number

    def place(self, module: nn.Module) -> nn.Module:
        """Return the module itself, moved."""
        return module.to(self._device)

    def moved(self, batch: Batch) -> Batch:
        """Return the whole batch, moved."""
        if self.kind == "cpu" and batch.leading.is_cpu:
            return batch
        change = batch.moved if batch.leading.is_cpu else batch.map
        return change(lambda tensor: moved_to(tensor, self._device))

    def part_of(self, batch: Batch) -> Batch:
        """Return the examples of a batch on which this process computes, moved.

        Raises:
            DataError: If the examples, or their groups, cannot be divided equally.
        """
        try:
            share = batch.split(self._number)[self.rank]
        except DataError:
            raise DataError(indivisible(batch, self._number)) from None
        return self.moved(share)

    def shared(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every n-th item for n processes, from the rank of this one on."""
        return items[self.rank :: self._number]

    def padding(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return an item where other processes handle one more, which costs no time beside it."""
        rest = len(items) % self._number
        return items[:1] if rest and self._rank >= rest else ()

    def total(self, number: float) -> float:
        """Return the sum of a number over all processes, in float64."""
        summed = torch.tensor(number, dtype=torch.float64)
        distributed.all_reduce(summed, group=self._group.host)
        return float(summed)

    def gathered(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items of all processes in the order of the sequence that was `shared`."""
        lists: list[Sequence[Item]] = [[] for _ in range(self._number)]
        # A tensor would arrive on the GPU of the process that has sent it.
        on_cpu = tree_map_only(Tensor, Tensor.cpu, list(items))
        distributed.all_gather_object(lists, on_cpu, group=self._group.host)
        longest = max(map(len, lists))
        return [part[index] for index in range(longest) for part in lists if index < len(part)]

    def summed(self, totals: list[Tensor]) -> list[Tensor]:
        """Return the sums of tensors without axes over all processes."""
        stacked = torch.stack(totals)
        distributed.all_reduce(stacked)
        return list(stacked.unbind())

    def agreed(self, number: int | None) -> int | None:
        """Return the largest number that any process has; None if all have none."""
        largest = torch.tensor(-1 if number is None else number)
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX, group=self._group.host)
        return None if largest < 0 else int(largest)

    def of_first(self, item: Item) -> Item:
        """Return the item of the first process, which must be one that can be pickled."""
        items = [item]
        device = torch.device("cpu")
        distributed.broadcast_object_list(items, group=self._group.host, device=device)
        return items[0]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        # A barrier of NCCL would be queued on the GPU.
        self.total(0.0)

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        with torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the mean of gradients over all processes, for parameters outside of the student."""
        for parameter in parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self._number

    def lost_process_errors(self) -> AbstractContextManager[None]:
        """Return a context in which the processes that are lost are named in the error.

        An error of this process alone is noted for the others.
        """
        return self._group.lost_process_errors()

    @abstractmethod
    @contextmanager
    def synchronized(
        self, model: TappedModel
    ) -> Iterator[Callable[[], AbstractContextManager[object]]]:
        """Take the mean of a model's gradients over all processes while a stage is open.

        Yields:
            As in the base.
        """
        yield nullcontext


@final
class DataParallel(Processes):
    """Processes that each hold both models."""

    @contextmanager
    def synchronized(
        self, model: TappedModel
    ) -> Iterator[Callable[[], AbstractContextManager[object]]]:
        """Take the mean of a model's gradients over all processes while a stage is open.

        Yields:
            Opens the context of a micro-batch that is not the last of its step, whose gradients
            are not combined yet.

        Raises:
            BindError: If the model runs its module itself, so that no wrapper can surround it.
        """
        with hooked(model).wrapped(_wrapped) as module:
            yield module.no_sync


def hooked(
    model: TappedModel, setting: str = "'parallel' must be 'none' for a student"
) -> HookedModel:
    """Return a model that a wrapper can surround.

    Args:
        model: The model.
        setting: Setting that the model allows, as the begin of the sentence.

    Raises:
        BindError: If the model runs its module itself.
    """
    if not isinstance(model, HookedModel):
        raise BindError(
            f"{setting} that runs its module itself; got "
            f"{type(model).__name__!r}; curricle.tapped(module) returns one that does not"
        )
    return model


def _wrapped(module: nn.Module) -> DistributedDataParallel:
    # Buffers are copied where they are read: evaluation runs through the wrapper as well, and
    # processes evaluate different numbers of batches.
    if HAS_RENAMED_BUFFERS:
        return DistributedDataParallel(module, forward_sync_buffers=False)
    return DistributedDataParallel(module, broadcast_buffers=False)


def data_parallel(device: Device, timeout: float) -> Placement:
    """Return the placement of this process in a group whose processes hold whole models.

    Args:
        device: Value of the setting; `auto` takes a GPU if there is one.
        timeout: Seconds within which a process must answer.
    """
    return _member(kind_of(device), timeout) if is_launched() else find_placement(device)


def is_launched() -> bool:
    """Return whether this is a process of a group.

    Without a launcher or a group there is one process, as where a stored spec is looked at.

    Raises:
        BindError: If the environment names several processes, but no group of them.
    """
    absent = launchers.absent_variables()
    if absent and not distributed.is_initialized():
        number = launchers.num_processes()
        if number > 1:
            raise BindError(
                f"'WORLD_SIZE' must be 1 where no launcher has described the group; got {number} "
                f"without {absent[0]}; 'torchrun --nproc-per-node {number} SCRIPT' sets all "
                f"of them"
            )
        return False
    return True


@cache
def _member(kind: str, timeout: float) -> DataParallel:
    # One for each kind of processor: settings look it up at every pass.
    return DataParallel(kind, timeout)
