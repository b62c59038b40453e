"""Processes of this machine that do jobs."""

import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import pytest

from curricle.records import EvaluationRecord, Usage
from curricle.runs.workers import LocalWorkers, RecordWatcher, local_workers

RECORD = EvaluationRecord(stage="s", usage=Usage(), metrics={"accuracy": 0.5})


@pytest.fixture
def workers() -> Iterator[LocalWorkers]:
    workers = LocalWorkers(2)
    yield workers
    workers.close()


def double(number: int, watch: RecordWatcher) -> None:
    if number < 0:
        raise ValueError(f"{number} is negative")
    watch(f"job {number} in process {os.getpid()}", RECORD)


def exit_at_once(number: int, watch: RecordWatcher) -> None:
    os._exit(number)


def test_one_job_at_once_needs_no_other_process() -> None:
    assert local_workers(1) is None


def test_nothing_is_received_before_a_job_sends_something(workers: LocalWorkers) -> None:
    assert workers.receive(0.01) is None


@pytest.mark.integration
def test_a_job_is_done_in_another_process_and_sends_records(workers: LocalWorkers) -> None:
    end = workers.submit(double, 3)
    message = workers.receive(60)
    assert message is not None
    name, record = message
    assert name.startswith("job 3 ")
    assert name != f"job 3 in process {os.getpid()}"
    assert record == RECORD
    assert end.result(timeout=60) is None


@pytest.mark.integration
def test_an_error_of_a_job_is_no_lost_worker(workers: LocalWorkers) -> None:
    error = workers.submit(double, -1).exception(timeout=60)
    assert isinstance(error, ValueError)
    assert workers.loss(error) == ""


@pytest.mark.integration
def test_a_process_that_ends_within_a_job_is_a_lost_worker(workers: LocalWorkers) -> None:
    error = workers.submit(exit_at_once, 7).exception(timeout=60)
    assert isinstance(error, BrokenProcessPool)
    assert workers.loss(error) == (
        "'jobs' 2 must be as many as memory has room for; a process was killed"
    )
