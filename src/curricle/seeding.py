"""Named random streams, and the global generators seeded for a block.

Each use of randomness has a *named stream*: a generator derived from (run seed, purpose, index).
No stream shares state with another, so a run can be resumed at any step by deriving its numbers
again, and a new use of randomness never shifts existing ones.

Only this module touches the global generators: modules draw their initial weights and dropout masks
from torch's, and some draw from Python's or numpy's, which cannot be avoided. `scoped` seeds them
inside a block and restores the old states afterwards.
"""

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

_GLOBAL = threading.RLock()
"""Lock that serializes use of the global generators; prefetching runs in a second thread."""
if hasattr(os, "register_at_fork"):
    # A process that is forked in the meantime has no thread that would release the lock.
    os.register_at_fork(after_in_child=_GLOBAL._at_fork_reinit)  # type: ignore[attr-defined]  # noqa: SLF001


def derive(seed: int, purpose: str, *index: int) -> int:
    """Return a 63-bit seed that is a pure function of the arguments.

    The value is the head of a BLAKE2b hash, hence the same on every machine and library version.
    """
    text = "/".join([str(seed), purpose, *map(str, index)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """Return a fresh CPU generator for a named stream."""
    return torch.Generator().manual_seed(derive(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return a fresh numpy generator for a named stream."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *index)))


@contextmanager
def scoped(seed: int, purpose: str, *index: int, beyond_torch: bool = False) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them afterwards.

    They belong to the whole process, so a single thread at a time may be in such a block.

    Args:
        seed: Seed of the run.
        purpose: Name of the stream.
        index: Place in the stream.
        beyond_torch: Whether the global generators of Python and numpy are seeded, too. It takes
            some 50 microseconds, so that steps do it only for models that draw from them.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    number = derive(seed, purpose, *index)
    foreign_generators = foreign(number) if beyond_torch else nullcontext()
    with _GLOBAL, torch.random.fork_rng(devices=devices), foreign_generators:
        torch.manual_seed(number)
        yield


@contextmanager
def foreign(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and numpy inside the block; see `scoped`.

    Yields:
        Nothing.
    """
    python, legacy = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def global_state() -> tuple[bytes, ...]:
    """Return a copy of the global generators' states, to detect calls that draw from them."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return tuple(state.numpy().tobytes() for state in states)


def foreign_state() -> tuple[object, ...]:
    """Return a copy of the states of Python's and numpy's global generators; see `global_state`."""
    legacy = np.random.get_state(legacy=True)
    return random.getstate(), *(
        item.tobytes() if isinstance(item, np.ndarray) else item for item in legacy
    )
