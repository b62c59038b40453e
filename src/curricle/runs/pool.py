"""Runs of a comparison, and jobs of several comparisons, in this process or by workers.

Every run is independent and deterministic, so they may run in any order and in several processes
at once; with more than one process each uses one thread, which keeps their seconds comparable. The
students of a shared teacher share a process.
Finished runs are left alone, so a comparison that was interrupted goes on where it stopped.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import cast

from curricle.errors import CheckpointError
from curricle.records import Record
from curricle.runs.spec import RunSpec
from curricle.runs.train import StudentRun, classes, measure_teacher, train_class
from curricle.runs.workers import Job, Message, RecordWatcher, Work, Workers
from curricle.training.setup.interrupts import deferred_signals

Watcher = Callable[[StudentRun, Record], None]
"""Receives every record of every run."""
POLL_SECONDS = 0.2


def _nothing(_: object) -> tuple[()]:
    """Return no jobs."""
    return ()


def compare(spec: RunSpec, *, workers: Workers | None = None, watch: Watcher) -> None:
    """Train every student of a comparison.

    Args:
        spec: Spec of the comparison; its teacher must be trained.
        workers: Processes that train; None trains in this one.
        watch: Receives every record.

    Raises:
        CheckpointError: If a worker is lost, for example because memory has run out.
    """
    measure_teacher(spec)
    student_classes = classes(spec)
    runs = {str(run): run for students in student_classes for run in students}
    if workers is not None:
        spec = replace(spec, engine=replace(spec.engine, threads=workers.threads))
    work_off(
        range(len(student_classes)),
        partial(_train, spec),
        workers=workers,
        watch=lambda name, record: watch(runs[name], record),
        again=f"curricle resume {spec.folder}",
    )


def _train(spec: RunSpec, number: int, watch: RecordWatcher) -> None:
    """Train one student, or those taught with it."""
    train_class(spec, classes(spec)[number], lambda run, record: watch(str(run), record))


def work_off(
    first: Iterable[Job],
    work: Work[Job, Message],
    *,
    workers: Workers | None,
    watch: Callable[[str, Message], None],
    again: str,
    following: Callable[[Job], Iterable[Job]] = _nothing,
) -> None:
    """Do jobs and those that follow from them, in this process or by workers.

    Args:
        first: Jobs that can be done at once.
        work: Does a job.
        workers: Processes that do the jobs, ended at the end; None does them in this one.
        watch: Receives the messages of jobs, such as the name of a run and a record of it.
        again: Command that goes on after a failure, for error sentences.
        following: Returns the jobs that can be done because a job is done; it is called here.

    Raises:
        CheckpointError: If a worker is lost, for example because memory has run out.
    """
    if workers is None:
        waiting = deque(first)
        while waiting:
            job = waiting.popleft()
            work(job, watch)
            waiting.extend(following(job))
        return
    submitted: dict[Future[None], Job] = {}

    def submit(ready: Iterable[Job]) -> set[Future[None]]:
        futures = {workers.submit(work, job): job for job in ready}
        submitted.update(futures)
        return set(futures)

    # The threads of workers share locks with this one, which an interrupt must not leave acquired.
    # One that failed or was interrupted does not wait for the others to finish.
    with deferred_signals() as raise_interrupt, closing(workers):
        receive = partial(_receive, workers, watch, raise_interrupt)
        try:
            _listen(submit(first), receive, lambda done: submit(following(submitted[done])))
        except Exception as error:
            # A signal to the whole group has ended the workers, too.
            raise_interrupt()
            if loss := workers.loss(error):
                raise CheckpointError(f"{loss}; {again!r} goes on") from None
            raise


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


def _receive(
    workers: Workers, watch: Callable[[str, Message], None], raise_interrupt: Callable[[], None]
) -> bool:
    """Pass a message on.

    Returns:
        Whether a message came within `POLL_SECONDS`.
    """
    raise_interrupt()
    received = workers.receive(POLL_SECONDS)
    if received is not None:
        name, message = received
        # Jobs send what `watch` takes, through a queue without types.
        watch(name, cast("Message", message))
    return received is not None
