"""Workers that do jobs beside this process: their interface to a pool, and processes here.

Design: the parent holds one end of a pipe and every worker waits at the other. When the parent
closes its end, or is killed and the system closes it, the workers end at once.
"""

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Protocol, TypeVar, final, runtime_checkable

from curricle.records import Record
from curricle.training.setup.interrupts import Interrupted, blocked_signals

if TYPE_CHECKING:
    Messages = Queue[tuple[str, object]]
else:
    # This class takes no types when code runs.
    Messages = Queue
RecordWatcher = Callable[[str, Record], None]
"""Receives the name of a run and a record of it."""
Job = TypeVar("Job")
Message = TypeVar("Message")
Work = Callable[[Job, Callable[[str, Message], None]], None]
"""Does a job, which hands messages on, each with a name; can be pickled, as the job can."""
STOPPED = 1
"""Exit code of a worker without a parent."""


@runtime_checkable
class Workers(Protocol):
    """Processes, here or elsewhere, that do jobs and send messages such as records."""

    @property
    def threads(self) -> int:
        """CPU threads of a job, alike for all so that their seconds compare."""
        ...

    @property
    def room(self) -> int:
        """Number of jobs that are done at the same time."""
        ...

    def submit(self, work: Work[Job, Message], job: Job) -> Future[None]:
        """Return the end of a job, which a worker does when there is room for it."""
        ...

    def receive(self, seconds: float) -> tuple[str, object] | None:
        """Return the next message with its name; None if none comes in time."""
        ...

    def loss(self, error: Exception) -> str:
        """Return what a worker was lost by, as an error sentence; empty for another error."""
        ...

    def close(self) -> None:
        """End all workers, also those at work.

        Nothing is lost but the steps since their last checkpoint.
        """
        ...


@final
class LocalWorkers:
    """Processes of this machine."""

    threads = 1
    """CPU threads of a job."""

    def __init__(self, jobs: int) -> None:
        """Start no process yet; each starts with a job.

        Args:
            jobs: Processes at once.
        """
        context = multiprocessing.get_context("spawn")
        # Python's own process that cleans up after the others ends by a closed terminal otherwise.
        with blocked_signals("SIGINT", "SIGHUP"):
            resource_tracker.ensure_running()
        self.room = jobs
        """Number of processes."""
        self._messages: Messages = context.Queue()
        reading_end, self._pipe_end = context.Pipe(duplex=False)
        self._strangers = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_connect, initargs=(self._messages, reading_end)
        )

    def submit(self, work: Work[Job, Message], job: Job) -> Future[None]:
        """Return the end of a job."""
        # Workers inherit the blocked signal: this process handles an interrupt, and ends them.
        with blocked_signals("SIGINT"):
            return self._pool.submit(_work, work, job)

    def receive(self, seconds: float) -> tuple[str, object] | None:
        """Return the next message with its name; None if none comes in time."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def loss(self, error: Exception) -> str:
        """Return what a worker was lost by."""
        if not isinstance(error, BrokenProcessPool):
            return ""
        return f"'jobs' {self.room} must be as many as memory has room for; a process was killed"

    def close(self) -> None:
        """End all workers."""
        self._pipe_end.close()
        # Those that are still starting do not listen yet.
        for worker in set(multiprocessing.active_children()) - self._strangers:
            worker.terminate()
        self._pool.shutdown(cancel_futures=True)


def local_workers(jobs: int) -> LocalWorkers | None:
    """Return processes of this machine; None for a single one, which is this process.

    Args:
        jobs: Processes at once.
    """
    return LocalWorkers(jobs) if jobs > 1 else None


_MESSAGES: list[Messages] = []
"""In a worker process: the queue to the parent."""


def _connect(messages: Messages, parent: Connection) -> None:
    _MESSAGES[:] = [messages]
    # A parent that no longer listens must not keep the process from ending.
    messages.cancel_join_thread()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """End this process, wherever it is, once the parent's end of the pipe is closed.

    Nothing is lost but the steps since the last checkpoint: files are written in one piece.
    """
    with suppress(EOFError, OSError):
        parent.recv_bytes()
    os._exit(STOPPED)


def _work(work: Work[Job, Message], job: Job) -> None:
    """Do a job and send the parent its messages."""
    try:
        work(job, lambda name, message: _MESSAGES[0].put((name, message)))
    except Interrupted as error:
        # A signal to the whole group; the parent has it too and says what to do.
        os._exit(128 + error.signal_number)
