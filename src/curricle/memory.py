"""Memory limit of the process, checks of large allocations against it, and failed allocations.

A system that overcommits memory lets a process start filling it and kills the process minutes
later. So the size of tensors that follows from a setting is compared with the limit beforehand.
"""

import os
from contextlib import AbstractContextManager

import torch

from curricle.errors import BindError, visible

try:
    import resource
except ImportError:  # pragma: no cover - Windows has no limits of this kind
    resource = None  # type: ignore[assignment]

CPU_SHORTAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
"""Words of torch's error for a failed allocation on a CPU, on Linux and on other systems."""


def unallocated() -> AbstractContextManager[object]:
    """Return a context in which models are built on torch's meta device, without memory."""
    return torch.device("meta")


def is_unallocated() -> bool:
    """Return whether models are built without memory at present."""
    return bool(torch.get_default_device().type == "meta")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation of a tensor, on a GPU or a CPU.

    Args:
        error: Any error; for the CPU torch raises a plain `RuntimeError`.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_SHORTAGES)


def check_memory(needed: int, subject: str) -> None:
    """Check that an allocation fits into the memory of this machine and the limits of the process.

    Args:
        needed: Bytes.
        subject: Subject of the error sentence.

    Raises:
        BindError: If they exceed the limit.
    """
    limit = None if is_unallocated() else memory_limit()
    if limit is not None and needed > limit:
        raise BindError(
            f"{visible(subject)} must fit into memory; it takes {needed / 1e9:,.1f} GB, and a "
            f"process gets at most {limit / 1e9:,.1f} GB here"
        )


def memory_limit() -> int | None:
    """Return the smaller of physical memory, without swap, and the limit of the process, in bytes.

    None where the system knows neither. Limits of containers are not read.
    """
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        # Negative where the system does not know.
        limits += [pages * size] if min(pages, size) > 0 else []
    if resource is not None:
        limits += [
            soft
            for soft, _ in (resource.getrlimit(resource.RLIMIT_AS),)
            if soft != resource.RLIM_INFINITY
        ]
    return min(limits, default=None)
