"""Progress of data preparation, for display by a caller.

Preparation runs deep below the calls that start it, in a library that prints nothing. A caller with
a progress bar installs a watcher with `watched`; readers report their progress with `advance`,
which costs one look-up without a watcher.

Design: watcher and job are context variables, since a bar changes no result and would otherwise be
an argument of every function between the command line and a file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Watcher = Callable[[str, int, int], None]
"""Function of the name of a job, its progress and its total."""

_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
_JOB: ContextVar[str] = ContextVar("job", default="")


@contextmanager
def reported_progress(watcher: Watcher) -> Iterator[None]:
    """Report all preparation within the block to a watcher.

    Args:
        watcher: Called after every piece of data.

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
    """Name the job of the block; without a name nothing is reported.

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
    """Report the progress of the current job.

    Args:
        done: Bytes or rows read so far.
        total: Total number of bytes or rows.
    """
    watcher, name = _WATCHER.get(), _JOB.get()
    if watcher is not None and name:
        watcher(name, done, total)
