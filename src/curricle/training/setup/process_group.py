"""Group of the processes of a launcher, and the processes of it that are lost.

A process whose exchange with others fails notes that in the store of the group, and waits some
seconds for the others to do so; those that note nothing are lost. A process that is ended by an
error of its own notes that, too, so that others name it without a wait.

Design: there is one group in a process, in which runs of all placements exchange tensors. It is
made by the first of them, and ends with the process.
"""

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from operator import attrgetter
from typing import final

import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from curricle.errors import BindError, LostProcessError, visible
from curricle.models.shares import SHARES
from curricle.training.setup import launchers

LONGEST_REASON = 300
"""Characters of an error that others read of a process."""
READERS = ("torch._dynamo", "torch.distributed.fsdp")
"""Modules of torch that, imported after the group is made, hold it, with its threads, to the
end of the process."""
CACHES = (
    "debug:_clear_sharding_prop_cache",
    "_redistribute:clear_redistribute_planner_cache",
    "_redistribute:_gen_transform_infos.cache_clear",
    "_collective_utils:MeshTopoInfo.build_from_mesh.cache_clear",
)
"""Functions of torch that clear the caches in which shares leave their mesh, hence the group."""
MOST_WAIT = 5.0
"""Seconds in which processes find out which of them are lost."""
NCCL_MARGIN = 60.0
"""Seconds by which NCCL waits longer than gloo. Its watchdog aborts the process, which by then has
named the lost one."""


@final
class ProcessGroup:
    """The group of this process."""

    def __init__(
        self, store: Store | None, timeout: float, *, has_gpus: bool, margin: float = 0.0
    ) -> None:
        """Take the group that torch has.

        Args:
            store: Store in which processes note their ends; None for a group of the caller, whose
                store is private.
            timeout: Seconds within which a process must answer.
            has_gpus: Whether tensors of GPUs may be exchanged as well.
            margin: Seconds by which groups for tensors of models wait longer.
        """
        self.host: distributed.ProcessGroup | None = None
        """Group of all processes for numbers of the host; None for that of torch."""
        if has_gpus:
            # That of the caller may exchange tensors of GPUs alone.
            self.host = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self.store = store
        self.timeout = timeout
        """Seconds within which a process must answer."""
        self.device_timeout = timeout + margin
        """Seconds that groups for tensors of models wait."""
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        # Not the group itself, whose threads end with the last reference to it.
        self._world = id(distributed.group.WORLD)

    @property
    def is_open(self) -> bool:
        """Return whether it is the group that torch has now."""
        return self._world == id(distributed.group.WORLD)

    @contextmanager
    def lost_process_errors(self) -> Iterator[None]:
        """Name the processes that are lost, if the exchange with them fails inside the block.

        An error of this process alone is noted for the others, whose exchange with it fails when it
        ends, or after the timeout if it does not.

        Yields:
            Nothing.

        Raises:
            LostProcessError: If a process has ended, or has not answered within the timeout.
            BaseException: Any other of the block.
        """
        store = self.store
        if store is None:
            yield
            return
        forget_end(store, self.rank)
        try:
            yield
        except LostProcessError:
            # Of a block inside this one: a consequence, whose cause another process has noted.
            raise
        except BaseException as error:
            # Also an error of a pass of a model, inside of which weights or buffers are exchanged.
            if not is_failed_exchange(error):
                note_end(store, self.rank, error)
                raise
            lost, words = self._lost(store)
            if not lost:
                raise LostProcessError(
                    f"all {self.size} processes must make the same exchanges; all answer, but an "
                    f"exchange has failed or took longer than the {self.timeout:g} seconds of "
                    f"'timeout'; pass the same arguments to every process"
                ) from error
            leave(store, self.rank, [rank for rank in range(self.size) if rank not in lost])
            raise LostProcessError(
                f"{words}; the run goes on from its newest checkpoint by resuming it"
            ) from error

    def _lost(self, store: Store) -> tuple[list[int], str]:
        """Return the processes that are lost, and the words for them; wait up to `MOST_WAIT`."""
        if ends := noted_ends(store, self.size):
            # The others, if there are any, are a consequence of it or likewise a cause.
            rank = min(ends)
            words = f"process {rank} of {self.size}, counted from 0, has ended by {ends[rank]}"
            return list(ends), words
        lost = absent(store, self.rank, self.size, wait=min(MOST_WAIT, self.timeout))
        names = " and ".join(map(str, lost))
        return lost, (
            f"process {names} of {self.size}, counted from 0, must answer within the "
            f"{self.timeout:g} seconds of 'timeout'; it has ended or hangs, and its own output "
            f"has the reason"
        )


_MADE: list[ProcessGroup] = []
"""The group that was made here, if there is one."""


def joined(kind: str, timeout: float) -> ProcessGroup:
    """Return the group of this process, which is made unless there is one.

    Args:
        kind: `cpu` or `cuda`.
        timeout: Seconds within which a process must answer; of a group that is there already its
            own counts.

    Raises:
        BindError: If there is no GPU for this process.
    """
    # Also for a run on CPUs, since a later one in this process may be on GPUs.
    has_gpus = kind == "cuda" or (torch.cuda.is_available() and distributed.is_nccl_available())
    # A run on CPUs has no watchdog, and ends within its timeout.
    margin = NCCL_MARGIN if kind == "cuda" else 0.0
    if kind == "cuda":
        _take_gpu()
    if distributed.is_initialized():
        is_made_here = _MADE and _MADE[0].is_open
        if is_made_here:
            return _MADE[0]
        return ProcessGroup(None, timeout, has_gpus=has_gpus, margin=margin)
    for name in READERS:
        importlib.import_module(name)
    # Kept, so that a process can look for others when the exchange with them has failed.
    store, rank, number = next(rendezvous("env://"))
    # The store may outlive the processes, and hold addresses of those before a restart.
    store = PrefixStore(str(launchers.restarts()), store)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=number,
        timeout=timedelta(seconds=timeout + margin),
    )
    if kind == "cpu":
        # A thread of gloo that outlives the interpreter can abort the end of the process, with exit
        # code 134.
        atexit.register(_leave_group)
    notes = PrefixStore("curricle", store)
    _MADE[:] = [ProcessGroup(notes, timeout, has_gpus=has_gpus, margin=margin)]
    return _MADE[0]


def _take_gpu() -> None:
    """Compute on the GPU with the number of this process on its machine.

    A launcher may also show each process a GPU of its own, and the caller may have chosen one.

    Raises:
        BindError: If there is none.
    """
    number, gpus = launchers.local_rank(), torch.cuda.device_count()
    if torch.cuda.current_device() or (gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ):
        return
    if number >= gpus:
        raise BindError(
            f"each process of a machine must have a GPU; process {number}, counted from 0, has "
            f"none of {gpus}; start as many processes as there are GPUs, or set device='cpu'"
        )
    torch.cuda.set_device(number)


def _leave_group() -> None:
    """Destroy the group, and free all references to it: its threads end with the last reference."""
    for group in _MADE:
        group.host = None
    if distributed.is_initialized():
        distributed.destroy_process_group()
    for name in CACHES if SHARES in sys.modules else ():
        path, _, function = name.partition(":")
        # Without such a cache, as in other versions of torch, nothing is to be cleared.
        with suppress(ImportError, AttributeError):
            attrgetter(function)(importlib.import_module(f"{SHARES}.{path}"))()
    gc.collect()


def note_end(store: Store, rank: int, error: BaseException) -> None:
    """Note for other processes that an error of its own ends a process.

    Args:
        store: Store of the group.
        rank: The process.
        error: The error.
    """
    reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    # The process that holds the store may have ended first.
    with suppress(RuntimeError):
        store.set(f"ended/{rank}", visible(reason)[:LONGEST_REASON])


def forget_end(store: Store, rank: int) -> None:
    """Remove the notes of an earlier run of this process."""
    with suppress(RuntimeError):
        for note in ("ended", "failed", "left"):
            store.delete_key(f"{note}/{rank}")


def leave(store: Store, rank: int, remaining: Sequence[int]) -> None:
    """Note that a process has read the notes of others; one that holds the store waits for them.

    With the store, the notes end, and the others would take its process for a lost one. It waits up
    to `MOST_WAIT` seconds.

    Args:
        store: Store of the group.
        rank: The process.
        remaining: Ranks of the processes that are not lost.
    """
    with suppress(RuntimeError):
        store.set(f"left/{rank}", "")
        if rank == 0 and launchers.holds_store():
            keys = [f"left/{member}" for member in remaining]
            store.wait(keys, timedelta(seconds=MOST_WAIT))


def noted_ends(store: Store, number: int) -> dict[int, str]:
    """Return the errors that have ended processes, by rank.

    Args:
        store: Store of the group.
        number: Number of processes.
    """
    ends: dict[int, str] = {}
    with suppress(RuntimeError):
        for rank in range(number):
            if store.check([f"ended/{rank}"]):
                ends[rank] = store.get(f"ended/{rank}").decode()
    return ends


def is_failed_exchange(error: BaseException) -> bool:
    """Return whether an error is that of an exchange between processes."""
    # Errors of gloo are plain ones, and have the path of its source.
    return isinstance(error, distributed.DistError) or "/gloo/" in str(error)


def absent(store: Store, rank: int, number: int, *, wait: float) -> list[int]:
    """Return the ranks of the processes that do not note within some seconds that they live.

    Each process notes it when its own exchange with others has failed, as it does in all but the
    lost ones at about the same time.

    Args:
        store: Store of the group.
        rank: This process.
        number: Number of processes.
        wait: Seconds to wait for the others.
    """
    keys = {member: f"failed/{member}" for member in range(number)}
    try:
        store.set(keys[rank], "")
        with suppress(RuntimeError):
            store.wait([*keys.values()], timedelta(seconds=wait))
        return [member for member, key in keys.items() if not store.check([key])]
    except RuntimeError:
        # The store itself is lost, with the process that holds it.
        return [0] if rank and launchers.holds_store() else []
