"""Interface of the streams that produce the batches of a run.

A `Stream` returns the batch of a step as a pure function of (seed, step), so resuming in the middle
of a stage is a lookup.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from curricle.data.batch import Batch
from curricle.errors import BindError


@runtime_checkable
class Stream(Protocol):
    """Batches as a pure function of the step."""

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        ...

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of every batch; `batch_size` without positions."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything the batches depend on."""
        ...

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0; the same step gives the same batch."""
        ...


def examples_per_epoch(stream: Stream) -> int | None:
    """Return the number of examples after which a stream repeats; None if it has no such length.

    A stream states it by a property of this name.

    Args:
        stream: The stream.
    """
    number: int | None = getattr(stream, "examples_per_epoch", None)
    return number


def epoch_batches(stream: Stream) -> Sequence[Batch]:
    """Return the batches of an epoch of a stream, as held-out data.

    A stream with a method `held_out` gives every example once, in the order of the data; of another
    the whole batches of the first epoch are taken.

    Args:
        stream: The stream.

    Raises:
        BindError: If it has no known length, or an epoch is smaller than a batch, which would then
            hold an example twice.
    """
    held_out: Callable[[], Sequence[Batch]] | None = getattr(stream, "held_out", None)
    if held_out is not None:
        return held_out()
    number = examples_per_epoch(stream)
    if number is None:
        raise BindError(
            f"'evaluation' must be a stream of a known length, its 'examples_per_epoch'; got "
            f"{type(stream).__name__!r} without one; a list of its batches is finite, as "
            f"[stream.batch(step) for step in range(10)]"
        )
    if number < stream.batch_size:
        raise BindError(
            f"'evaluation' must be a stream with at least one batch of {stream.batch_size} "
            f"examples an epoch; got {number} of {type(stream).__name__!r}; a smaller "
            f"'batch_size' reads each example once"
        )
    return [stream.batch(step) for step in range(number // stream.batch_size)]


def numbers_in_order(count: int, batch_size: int) -> Iterator[Int[np.ndarray, " example"]]:
    """Yield the numbers of all examples in order, a batch at a time; the last may be smaller.

    Args:
        count: Number of examples.
        batch_size: Examples of a batch.
    """
    for start in range(0, count, batch_size):
        yield np.arange(start, min(start + batch_size, count))
