"""Runs of a comparison, and jobs of several comparisons, in one process or several.

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
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, TypeVar

from curricle.errors import CheckpointError
from curricle.records import Record
from curricle.runs.spec import RunSpec
from curricle.runs.train import StudentRun, classes, measure_teacher, train_class
from curricle.training.setup.interrupts import Interrupted, blocked, deferred

if TYPE_CHECKING:
    Messages = Queue[tuple[str, Record]]
else:
    # This class takes no types when code runs.
    Messages = Queue
Watcher = Callable[[StudentRun, Record], None]
"""Receives every record of every run."""
RecordWatcher = Callable[[str, Record], None]
"""Receives the name of a run and a record of it."""
Job = TypeVar("Job")
POLL_SECONDS = 0.2
STOPPED = 1
"""Exit code of a worker without a parent."""


def _nothing(_: object) -> tuple[()]:
    """Return no jobs."""
    return ()


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
    runs = {str(run): run for students in student_classes for run in students}
    if jobs > 1:
        spec = replace(spec, engine=replace(spec.engine, threads=1))
    work_off(
        range(len(student_classes)),
        partial(_train, spec),
        jobs=jobs,
        watch=lambda name, record: watch(runs[name], record),
        again=f"curricle resume {spec.folder}",
    )


def _train(spec: RunSpec, number: int, watch: RecordWatcher) -> None:
    """Train one student, or those taught with it."""
    train_class(spec, classes(spec)[number], lambda run, record: watch(str(run), record))


def work_off(
    first: Iterable[Job],
    work: Callable[[Job, RecordWatcher], None],
    *,
    jobs: int,
    watch: RecordWatcher,
    again: str,
    following: Callable[[Job], Iterable[Job]] = _nothing,
) -> None:
    """Do jobs and those that follow from them, in this process or in several.

    Args:
        first: Jobs that can be done at once; a job can be pickled.
        work: Does a job, which hands its records on; can be pickled.
        jobs: Processes at once; 1 works in this process.
        watch: Receives the name of a run and a record of it.
        again: Command that goes on after a failure, for error sentences.
        following: Returns the jobs that can be done because a job is done; it is called here.

    Raises:
        CheckpointError: If a process is killed, for example because memory has run out.
    """
    if jobs == 1:
        waiting = deque(first)
        while waiting:
            job = waiting.popleft()
            work(job, watch)
            waiting.extend(following(job))
        return
    context = multiprocessing.get_context("spawn")
    # Python's own process that cleans up after the others ends by a closed terminal otherwise.
    with blocked("SIGINT", "SIGHUP"):
        resource_tracker.ensure_running()
    messages, (parent, own_end) = context.Queue(), context.Pipe(duplex=False)
    strangers = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_connect, initargs=(messages, parent)
    )
    submitted: dict[Future[None], Job] = {}

    def submit(ready: Iterable[Job]) -> set[Future[None]]:
        # Workers inherit the blocked signal: this process handles an interrupt, and ends them.
        with blocked("SIGINT"):
            futures = {pool.submit(_work, work, job): job for job in ready}
        submitted.update(futures)
        return set(futures)

    # The threads of the pool share locks with this one, which an interrupt must not leave acquired.
    with deferred() as raise_interrupt:
        receive = partial(_receive, messages, watch, raise_interrupt)
        try:
            _listen(submit(first), receive, lambda done: submit(following(submitted[done])))
        except BrokenProcessPool:
            raise CheckpointError(
                f"'jobs' {jobs} must be as many as memory has room for; a process was killed, "
                f"'{again}' goes on"
            ) from None
        finally:
            # One that failed or was interrupted does not wait for the others to finish.
            own_end.close()
            # Those that are still starting do not listen yet.
            for worker in set(multiprocessing.active_children()) - strangers:
                worker.terminate()
            pool.shutdown(cancel_futures=True)


def _listen(
    pending: set[Future[None]],
    receive: Callable[[], bool],
    follow: Callable[[Future[None]], set[Future[None]]],
) -> None:
    """Pass messages on until every job has ended and nothing more comes, or one has failed."""
    received = True
    while pending or received:
        done, pending = wait(pending, timeout=0, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
            pending |= follow(future)
        received = receive()


def _receive(messages: Messages, watch: RecordWatcher, raise_interrupt: Callable[[], None]) -> bool:
    """Pass a message on.

    Returns:
        Whether a message came within `POLL_SECONDS`.
    """
    raise_interrupt()
    try:
        name, record = messages.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return False
    watch(name, record)
    return True


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


def _work(work: Callable[[Job, RecordWatcher], None], job: Job) -> None:
    """Do a job and send the parent its records."""
    try:
        work(job, lambda name, record: _MESSAGES[0].put((name, record)))
    except Interrupted as error:
        # A signal to the whole group; the parent has it too and says what to do.
        os._exit(128 + error.signal_number)
