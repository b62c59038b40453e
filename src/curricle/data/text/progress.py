"""Progress of data preparation, reported to a watcher.

Preparation runs deep below the calls that start it, in a library that prints nothing. A caller that
wants a bar installs a watcher with `watched`; readers report how far they are with `advance`, and
without a watcher that costs one look-up.

Design: watcher and job are context variables, since a bar changes no result and every signature
between the command line and a file would have to carry it otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Watcher = Callable[[str, int, int], None]
"""Receives the name of a job, how much of it is done, and how much it is in all."""

_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
_JOB: ContextVar[str] = ContextVar("job", default="")


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Report all preparation within the block to a watcher.

    Args:
        watcher: Called after every piece of data that was read.

    Yields:
        Nothing.
    """
    before = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(before)


@contextmanager
def job(name: str) -> Iterator[None]:
    """Name the job inside the block; without a name nothing is reported.

    Args:
        name: A few words, such as `tokenizing train`.

    Yields:
        Nothing.
    """
    before = _JOB.set(name)
    try:
        yield
    finally:
        _JOB.reset(before)


def advance(done: int, total: int) -> None:
    """Report how far the present job is.

    Args:
        done: Bytes or rows read.
        total: Bytes or rows in all.
    """
    watcher, name = _WATCHER.get(), _JOB.get()
    if watcher is not None and name:
        watcher(name, done, total)
