"""How are several strategies and seeds run side by side?

Every run is independent and deterministic, so they may run in any order and in several processes
at once; with more than one process each uses one thread, which keeps their seconds comparable.
Finished runs are left alone, so a comparison that was interrupted goes on where it stopped.
"""

import multiprocessing
import queue
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any

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
    """
    runs = student_runs(spec)
    if jobs == 1:
        for run in runs:
            train_student(spec, run, [partial(watch, run)])
        return
    single = replace(spec, engine=replace(spec.engine, threads=1))
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_connect, initargs=(messages,)
    ) as pool:
        futures = [pool.submit(_work, single, number) for number in range(len(runs))]
        try:
            _listen(futures, messages, lambda number, record: watch(runs[number], record))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _listen(
    futures: list[Future[None]],
    messages: Any,
    tell: Callable[[int, Record], None],  # noqa: ANN401
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


_MESSAGES: list[Any] = []
"""The queue to the parent, in a worker process."""


def _connect(messages: Any) -> None:  # noqa: ANN401 - a multiprocessing queue has no public type
    _MESSAGES.append(messages)


def _work(spec: RunSpec, number: int) -> None:
    run = student_runs(spec)[number]
    train_student(spec, run, [lambda record: _MESSAGES[0].put((number, record))])
