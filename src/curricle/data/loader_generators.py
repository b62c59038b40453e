"""Random number generators of a user's `DataLoader`, seeded for a while.

A loader draws its order from torch's global generator or from explicit ones: its own and those of
its samplers. Inside the block all of them are at the state of a named stream; after it they are at
the state in which they were.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.utils.data import DataLoader

from curricle import seeding


@contextmanager
def seeded_loader(
    loader: DataLoader[object], seed: int, purpose: str, *index: int
) -> Iterator[None]:
    """Seed the generators of a loader and the global ones inside the block.

    Args:
        loader: The loader.
        seed: Seed of the run.
        purpose: Name of the random numbers.
        *index: Numbers that tell apart streams of the same purpose, such as the epoch.
    """
    with ExitStack() as stack:
        for generator in _generators(loader):
            stack.enter_context(_lent(generator, seeding.derive(seed, purpose, *index)))
        stack.enter_context(seeding.scoped(seed, purpose, *index))
        yield


def _generators(loader: DataLoader[object]) -> list[torch.Generator]:
    """Return the explicit generators from which a loader's order may be drawn."""
    batch_sampler = loader.batch_sampler
    owners = (loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    candidates = [getattr(owner, "generator", None) for owner in owners]
    return list(
        {
            id(generator): generator
            for generator in candidates
            if isinstance(generator, torch.Generator)
        }.values()
    )


@contextmanager
def _lent(generator: torch.Generator, seed: int) -> Iterator[None]:
    """Seed a user's generator inside the block and restore it afterwards."""
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
