"""Damaged checkpoints are set aside for an older one, on request and never silently."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from curricle.checksums import SEAL
from curricle.curriculum.strategies import extraction
from curricle.errors import CheckpointError
from curricle.locks import locked
from curricle.models.tapped import TappedModel
from curricle.records import RECORDS, Record, RecoveryRecord, StepRecord, read_records
from curricle.training.distill import Result, distill, execute
from curricle.training.loop.checkpoints import CHECKPOINTS, OPTIMIZER, STATE, STUDENT
from curricle.training.loop.fallback import NOTES, read_fallbacks, set_damaged_aside
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.settings import TrainingSettings
from tests.parts import INPUTS, bound, mlp, parity

STOP = 10
NEWEST, OLDER = "step-000000008", "step-000000004"


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": float(model.module(torch.ones(3, INPUTS)).square().mean())}


def run_to(
    folder: Path, stop: int | None = None, *, seed: int = 0, keep: int = 2, resume: bool = False
) -> dict[str, Tensor]:
    """Return the weights after a run, which an observer may end after a step."""

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == stop:
            raise RuntimeError("killed")

    settings = {"log_every": 1, "eval_every": 50, "save_every": 4, "keep_checkpoints": keep}
    run = bound(extraction(total="16 steps"), settings=settings, seed=seed)
    outputs = Outputs(folder=folder, observers=(observe,))
    execute(run, evaluate, metric="accuracy", outputs=outputs, resume=resume)
    return dict(run.student.module.state_dict())


def killed(folder: Path, *, seed: int = 0, keep: int = 2) -> Path:
    """Return the newest checkpoint of a run that was ended within its last stage."""
    with pytest.raises(RuntimeError, match="killed"):
        run_to(folder, STOP, seed=seed, keep=keep)
    return folder / CHECKPOINTS / NEWEST


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def swap(checkpoint: Path) -> None:
    other = killed(checkpoint.parents[2] / "other", seed=1)
    shutil.rmtree(checkpoint)
    shutil.copytree(other, checkpoint)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda path: flip(path / STUDENT), "must have the SHA-256"),
    "truncated": (
        lambda path: (path / OPTIMIZER).write_bytes((path / OPTIMIZER).read_bytes()[:-9]),
        "must hold",
    ),
    "lost": (lambda path: (path / STUDENT).unlink(), "must exist"),
    "without manifest": (lambda path: (path / SEAL).unlink(), "must hold 'manifest.json'"),
    "state": (lambda path: flip(path / STATE), "state"),
    "swapped": (swap, "must begin with the"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_returns_to_the_checkpoint_before_a_damaged_one(damage: str, tmp_path: Path) -> None:
    expected = run_to(tmp_path / "whole")
    newest = killed(tmp_path / "run")
    act, rule = DAMAGES[damage]
    act(newest)
    (fallback,) = set_damaged_aside(tmp_path / "run")
    assert rule in fallback.fault
    assert fallback.action == (
        f"{NEWEST!r} was renamed to 'damaged-{NEWEST}'; the run returns to {OLDER}"
    )
    weights = run_to(tmp_path / "run", resume=True)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    (record,) = recoveries(tmp_path / "run")
    assert (record.fault, record.action) == (fallback.fault, fallback.action)
    assert record.usage.steps == 4


def recoveries(folder: Path) -> list[RecoveryRecord]:
    records = read_records(folder / RECORDS)
    return [record for record in records if isinstance(record, RecoveryRecord)]


def test_without_the_request_a_damaged_checkpoint_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    flip(killed(tmp_path) / STUDENT)
    with pytest.raises(
        CheckpointError, match=r"^'curricle resume --fallback', in Python .*SHA-256"
    ):
        run_to(tmp_path, resume=True)


@pytest.mark.parametrize("stop", [5, 9])
def test_the_note_survives_a_further_interruption_once(stop: int, tmp_path: Path) -> None:
    flip(killed(tmp_path) / STUDENT)
    set_damaged_aside(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run_to(tmp_path, stop, resume=True)
    run_to(tmp_path, resume=True)
    assert len(recoveries(tmp_path)) == 1


def test_records_that_are_damaged_after_the_checkpoint_are_cut_there(tmp_path: Path) -> None:
    expected = run_to(tmp_path / "whole")
    killed(tmp_path / "run")
    path = tmp_path / "run" / RECORDS
    data = path.read_bytes()
    path.write_bytes(data[:-40] + b"x" + data[-39:])
    (fallback,) = set_damaged_aside(tmp_path / "run")
    assert "'records.jsonl' was copied to 'damaged-records.jsonl' and cut" in fallback.action
    assert (path.parent / "damaged-records.jsonl").read_bytes() != data
    weights = run_to(tmp_path / "run", resume=True)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert len(recoveries(tmp_path / "run")) == 1


def test_records_that_are_damaged_before_the_newest_checkpoint_cost_it(tmp_path: Path) -> None:
    killed(tmp_path)
    path = tmp_path / RECORDS
    lines = path.read_bytes().splitlines(keepends=True)
    # Behind the records of the first four steps.
    path.write_bytes(b"".join([*lines[:7], lines[8], *lines[9:]]))
    assert len(set_damaged_aside(tmp_path)) == 2
    run_to(tmp_path, resume=True)
    assert len(recoveries(tmp_path)) == 2


def test_a_run_with_damaged_checkpoints_only_is_left_as_it_is(tmp_path: Path) -> None:
    newest = killed(tmp_path, keep=1)
    flip(newest / STUDENT)
    with pytest.raises(
        CheckpointError, match=r"must hold a whole checkpoint to fall back to; all 1 are damaged: "
    ):
        set_damaged_aside(tmp_path)
    assert newest.is_dir()


def test_whole_checkpoints_stay_where_they_are(tmp_path: Path) -> None:
    newest = killed(tmp_path)
    assert set_damaged_aside(tmp_path) == []
    assert sorted(path.name for path in newest.parent.iterdir()) == [OLDER, NEWEST]


def test_a_finished_run_needs_no_checkpoint(tmp_path: Path) -> None:
    run_to(tmp_path)
    for checkpoint in (tmp_path / CHECKPOINTS).iterdir():
        flip(checkpoint / STATE)
    assert len(set_damaged_aside(tmp_path)) == 2
    run_to(tmp_path, resume=True)


def test_a_finished_run_returns_nowhere_and_has_no_note(tmp_path: Path) -> None:
    run_to(tmp_path)
    records = (tmp_path / RECORDS).read_bytes()
    newest = max((tmp_path / CHECKPOINTS).glob("step-*"))
    flip(newest / STATE)
    (fallback,) = set_damaged_aside(tmp_path)
    assert fallback.action == (
        f"{newest.name!r} was renamed to 'damaged-{newest.name}'; the run is finished"
    )
    assert read_fallbacks(tmp_path / CHECKPOINTS) == []
    run_to(tmp_path, resume=True)
    assert (tmp_path / RECORDS).read_bytes() == records


def test_a_second_fallback_keeps_the_copy_of_the_first(tmp_path: Path) -> None:
    killed(tmp_path)
    path, copies = tmp_path / RECORDS, []
    for name in ("damaged-records.jsonl", "damaged-records-2.jsonl"):
        data = path.read_bytes()
        copies.append(data[:-40] + b"x" + data[-39:])
        path.write_bytes(copies[-1])
        (fallback,) = set_damaged_aside(tmp_path)
        assert f"was copied to {name!r} and cut" in fallback.action
        with pytest.raises(RuntimeError, match="killed"):
            run_to(tmp_path, STOP, resume=True)
    names = ("damaged-records.jsonl", "damaged-records-2.jsonl")
    assert [(tmp_path / name).read_bytes() for name in names] == copies
    assert len(recoveries(tmp_path)) == 2


def test_a_run_that_goes_on_elsewhere_is_left_alone(tmp_path: Path) -> None:
    flip(killed(tmp_path) / STUDENT)
    with locked(tmp_path), pytest.raises(CheckpointError, match="must have one writer at a time"):
        set_damaged_aside(tmp_path)


def test_damaged_notes_are_named(tmp_path: Path) -> None:
    flip(killed(tmp_path) / STUDENT)
    set_damaged_aside(tmp_path)
    flip(tmp_path / CHECKPOINTS / NOTES)
    with pytest.raises(CheckpointError, match=r"fallbacks.json' must hold notes of 'resume"):
        read_fallbacks(tmp_path / CHECKPOINTS)


def test_a_call_from_python_falls_back_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def student() -> TappedModel:
        return mlp(5, 4)

    def call(*observers: Callable[[Record], None], resume: bool | Literal["fallback"]) -> Result:
        return distill(
            student(),
            mlp(16, 12, seed=1),
            extraction(total="16 steps"),
            parity(),
            evaluation=evaluate,
            settings=TrainingSettings(device="cpu", log_every=1, eval_every=50, save_every=4),
            output_dir=tmp_path,
            observers=observers,
            resume=resume,
        )

    def stop(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == STOP:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        call(stop, resume=False)
    flip(tmp_path / CHECKPOINTS / NEWEST / STUDENT)
    assert call(resume="fallback").usage.steps == 16
    assert (
        f"{NEWEST!r} was renamed to 'damaged-{NEWEST}'; the run returns to {OLDER}" in caplog.text
    )
