"""End of the worker processes of a `DataLoader`.

An iterator of torch ends its workers when its last reference goes. Error tracebacks and cycles of
references keep one much longer, and the garbage collector then waits five seconds for each worker,
or meets the iterator in a forked child, which must not wait for processes that are not its own.
Workers are therefore ended explicitly, when the run that reads them is over.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader

from curricle.data.streams import Stream


def end_workers(stream: Stream) -> None:
    """End the worker processes that a stream has started; a later batch starts new ones.

    Args:
        stream: The stream; one without a method `end_workers` has none.
    """
    end = getattr(stream, "end_workers", None)
    if end is not None:
        end()


@contextmanager
def ended_workers(stream: Stream) -> Iterator[None]:
    """End the worker processes of a stream after the block, also after an error.

    Args:
        stream: The stream.

    Yields:
        Nothing.
    """
    try:
        yield
    finally:
        end_workers(stream)


def items_of_pass(loader: DataLoader[object]) -> list[object]:
    """Return the items of one pass over a loader, whose workers end also after an error.

    Args:
        loader: The loader; with `persistent_workers=True` it keeps its workers.
    """
    iterator = iter(loader)
    try:
        return list(iterator)
    finally:
        if not loader.persistent_workers:
            end_workers_of(iterator)


def end_workers_of(iterator: Iterator[object] | None) -> None:
    """End the worker processes of an iterator over a loader, if it has any.

    Args:
        iterator: Iterator of torch, of which nothing more is read.
    """
    # Torch has no public name for it. Without workers there is no such method.
    end = getattr(iterator, "_shutdown_workers", None)
    if end is not None:
        end()
