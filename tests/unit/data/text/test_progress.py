"""Progress of preparation reaches its watcher, and nobody else."""

from curricle.data.text.progress import advance, job, reported_progress


def test_a_watcher_receives_job_and_progress() -> None:
    received: list[tuple[str, int, int]] = []
    with reported_progress(lambda *call: received.append(call)), job("reading"):
        advance(1, 3)
    assert received == [("reading", 1, 3)]


def test_nothing_is_reported_without_a_job_or_after_the_block() -> None:
    received: list[tuple[str, int, int]] = []
    with reported_progress(lambda *call: received.append(call)):
        advance(1, 3)
    with job("reading"):
        advance(2, 3)
    assert not received
