"""Outputs of a run: what is written and notified by default."""

from pathlib import Path

import pytest

from curricle.curriculum.strategies import one_shot
from curricle.records import EndRecord, Record, RunRecord
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from tests.parts import bound


def test_a_run_without_outputs_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = bound(one_shot(total="2 steps"))
    execute(run, lambda _: {"none": 0.0}, metric="none", outputs=Outputs())
    assert list(tmp_path.iterdir()) == []


def test_every_observer_receives_every_record() -> None:
    received: tuple[list[Record], list[Record]] = ([], [])
    execute(
        bound(one_shot(total="2 steps")),
        lambda _: {"none": 0.0},
        metric="none",
        outputs=Outputs(observers=(received[0].append, received[1].append), task="parity"),
    )
    assert received[0] == received[1]
    first, last = received[0][0], received[0][-1]
    assert isinstance(first, RunRecord)
    assert first.task == "parity"
    assert isinstance(last, EndRecord)
