"""Interface of the streams that produce the batches of a run.

A `Stream` returns the batch of a step as a pure function of (seed, step), so resuming in the middle
of a stage is a lookup.
"""

from typing import Protocol, runtime_checkable

from curricle.data.batch import Batch


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
