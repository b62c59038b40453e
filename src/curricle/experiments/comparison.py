"""How are several strategies and seeds run side by side?

Every run is independent and deterministic, so they may run in any order and in several processes
at once; with more than one process each uses one thread, which keeps their seconds comparable.
Finished runs are left alone, so a comparison that was interrupted goes on where it stopped.
"""

import multiprocessing
import queue
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from typing import Any

from curricle.errors import CheckpointError
from curricle.experiments.runner import StudentRun, student_runs, train_student
from curricle.experiments.spec import RunSpec
from curricle.records import Record

Watcher = Callable[[StudentRun, Record], None]
"""Is told of every record of every run."""
POLL_SECONDS = 0.2


def compare(spec: RunSpec, *, jobs: int, watch: Watcher) -> None:
    """Train every student of a comparison.

    Args:
        spec: What to run; its teacher must be taught.
        jobs: Processes at once; 1 runs in this process.
        watch: Told of every record.

    Raises:
        CheckpointError: If a process is killed, for example because memory has run out.
    """
    runs = student_runs(spec)
    if jobs == 1:
        for run in runs:
            train_student(spec, run, [partial(watch, run)])
        return
    single = replace(spec, engine=replace(spec.engine, threads=1))
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_connect, initargs=(messages, stop)
    ) as pool:
        futures = [pool.submit(_work, single, number) for number in range(len(runs))]
        try:
            _listen(futures, messages, lambda number, record: watch(runs[number], record))
        except BrokenProcessPool:
            raise CheckpointError(
                f"'jobs' {jobs} must be as many as memory has room for; a process was killed, "
                f"'curricle resume {spec.folder}' goes on"
            ) from None
        finally:
            # One that failed or was interrupted does not wait for the others to finish.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _listen(
    futures: list[Future[None]],
    messages: Any,  # noqa: ANN401 - a multiprocessing queue has no public type
    tell: Callable[[int, Record], None],
) -> None:
    """Pass messages on until every run has ended or one has failed."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        try:
            tell(*messages.get(timeout=POLL_SECONDS))
        except queue.Empty:
            continue
    while not messages.empty():
        tell(*messages.get())


_CHANNELS: list[Any] = []
"""In a worker process: the queue to the parent, and the event by which it asks to stop."""


def _connect(messages: Any, stop: Any) -> None:  # noqa: ANN401 - as above
    _CHANNELS[:] = messages, stop
    # The parent tells of an interrupt; here it shall end the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A parent that no longer listens must not keep the process from ending.
    messages.cancel_join_thread()


def _work(spec: RunSpec, number: int) -> None:
    """Train one student and tell the parent.

    Raises:
        CancelledError: If the parent asks to stop.
    """
    messages, stop = _CHANNELS

    def tell(record: Record) -> None:
        if stop.is_set():
            raise CancelledError
        messages.put((number, record))

    train_student(spec, student_runs(spec)[number], [tell])
