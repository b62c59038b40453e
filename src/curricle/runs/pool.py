"""Runs of a comparison in one process or several.

Every run is independent and deterministic, so they may run in any order and in several processes
at once; with more than one process each uses one thread, which keeps their seconds comparable. The
students of a shared teacher share a process.
Finished runs are left alone, so a comparison that was interrupted goes on where it stopped.

Design: the parent holds one end of a pipe and every worker waits at the other. When the parent
closes its end, or is killed and the system closes it, the workers end at once.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING

from curricle.errors import CheckpointError
from curricle.records import Record
from curricle.runs.spec import RunSpec
from curricle.runs.train import StudentRun, classes, measure_teacher, train_class
from curricle.training.setup.interrupts import Interrupted

if TYPE_CHECKING:
    Messages = Queue[tuple[str, Record]]
else:
    # This class takes no types when code runs.
    Messages = Queue
Watcher = Callable[[StudentRun, Record], None]
"""Receives every record of every run."""
POLL_SECONDS = 0.2
STOPPED = 1
"""Exit code of a worker without a parent."""


def compare(spec: RunSpec, *, jobs: int, watch: Watcher) -> None:
    """Train every student of a comparison.

    Args:
        spec: Spec of the comparison; its teacher must be trained.
        jobs: Processes at once; 1 runs in this process.
        watch: Receives every record.

    Raises:
        CheckpointError: If a process is killed, for example because memory has run out.
    """
    measure_teacher(spec)
    student_classes = classes(spec)
    if jobs == 1:
        for students in student_classes:
            train_class(spec, students, watch)
        return
    runs = {str(run): run for students in student_classes for run in students}
    single = replace(spec, engine=replace(spec.engine, threads=1))
    context = multiprocessing.get_context("spawn")
    # Python's own process that cleans up after the others ends by a closed terminal otherwise.
    with _ignoring("SIGINT", "SIGHUP"):
        resource_tracker.ensure_running()
    messages, (parent, own_end) = context.Queue(), context.Pipe(duplex=False)
    strangers = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_connect, initargs=(messages, parent)
    )
    try:
        # Workers inherit the ignored signal: this process handles an interrupt, and ends them.
        with _ignoring("SIGINT"):
            futures = [pool.submit(_work, single, number) for number in range(len(student_classes))]
        _listen(futures, messages, lambda name, record: watch(runs[name], record))
    except BrokenProcessPool:
        raise CheckpointError(
            f"'jobs' {jobs} must be as many as memory has room for; a process was killed, "
            f"'curricle resume {spec.folder}' goes on"
        ) from None
    finally:
        # One that failed or was interrupted does not wait for the others to finish.
        with _ignoring("SIGINT"):
            own_end.close()
            # Those that are still starting do not listen yet.
            for worker in set(multiprocessing.active_children()) - strangers:
                worker.terminate()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _ignoring(*names: str) -> Iterator[None]:
    """Ignore signals during a short section that must not be interrupted.

    Processes that are started within ignore them for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread is ever interrupted.
        yield
        return
    # Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _listen(
    futures: list[Future[None]],
    messages: Messages,
    tell: Callable[[str, Record], None],
) -> None:
    """Pass messages on until every run has ended and nothing more comes, or one has failed."""
    pending = set(futures)
    while True:
        done, pending = wait(pending, timeout=0, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        try:
            tell(*messages.get(timeout=POLL_SECONDS))
        except queue.Empty:
            if not pending:
                return


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


def _work(spec: RunSpec, number: int) -> None:
    """Train one student, or those taught with it, and send the parent its records."""
    try:
        train_class(
            spec,
            classes(spec)[number],
            lambda run, record: _MESSAGES[0].put((str(run), record)),
        )
    except Interrupted as error:
        # A signal to the whole group; the parent has it too and says what to do.
        os._exit(128 + error.signal_number)
