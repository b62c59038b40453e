"""Checkpoints written in the background are those of the step that has saved them."""

import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from curricle.curriculum.strategies import extraction
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.errors import CheckpointError
from curricle.models.tapped import TappedModel
from curricle.objectives.projections import Learned
from curricle.records import RECORDS, Record, RecoveryRecord, StepRecord, read_records
from curricle.training.distill import execute
from curricle.training.loop.checkpoints import CHECKPOINTS, checkpoints_in, read_state
from curricle.training.loop.resuming import FINISHED
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.save_thread import SaveThread
from curricle.training.setup.divergence import RollBack
from curricle.training.setup.interrupts import Interrupted
from curricle.training.setup.optimizers import AdamW
from tests.parts import INPUTS, bound, parity
from tests.runs import contents

STEPS = 12
Write = Callable[[], None]


def evaluate(model: TappedModel) -> dict[str, float]:
    """Return the mean squared output, which tells any two students apart."""
    return {"accuracy": float(model.module(torch.ones(3, INPUTS)).square().mean())}


def trained(
    folder: Path,
    *observers: Callable[[Record], None],
    resume: bool = False,
    stream: Stream | None = None,
    **settings: Any,
) -> dict[str, Tensor]:
    """Return the weights after a run with a trained projection that saves every third step."""
    every = {"log_every": 1, "eval_every": 2, "save_every": 3, "keep_checkpoints": 9}
    run = bound(
        extraction(total=f"{STEPS} steps", projection=Learned()),
        optimizer=AdamW(learning_rate=0.01),
        settings={**every, **settings},
        stream=stream or parity(),
    )
    outputs = Outputs(folder=folder, observers=observers)
    execute(run, evaluate, metric="accuracy", outputs=outputs, resume=resume)
    return {name: tensor.clone() for name, tensor in run.student.module.state_dict().items()}


def tensors_of(folder: Path) -> dict[str, bytes]:
    """Return the files with tensors of all checkpoints in a run folder."""
    return contents(folder / CHECKPOINTS, "*.safetensors")


def killing_at(step: int) -> Callable[[Record], None]:
    """Return an observer that ends the run after a step."""

    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == step:
            raise RuntimeError("killed")

    return observe


@pytest.fixture
def slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write each checkpoint at the last moment, where the run waits for it."""
    pending: list[Write] = []

    def start(thread: SaveThread, write: Write) -> None:
        thread.wait()
        pending.append(write)

    def wait(_: SaveThread) -> None:
        while pending:
            pending.pop()()

    monkeypatch.setattr(SaveThread, "start", start)
    monkeypatch.setattr(SaveThread, "wait", wait)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every file of a checkpoint."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("curricle.training.loop.checkpoints.save_file", full)


FULL = r"student.safetensors' cannot be written: .*No space left on device"


# --- the thread -----------------------------------------------------------------------------------


def test_a_checkpoint_is_begun_after_the_end_of_the_one_before() -> None:
    thread, gate = SaveThread(), threading.Event()
    written: list[str] = []

    def first() -> None:
        gate.wait()
        written.append("first")

    thread.start(first)
    opener = threading.Thread(target=gate.set)
    opener.start()
    thread.start(lambda: written.append("second"))
    assert written[0] == "first"
    thread.wait()
    assert written == ["first", "second"]
    opener.join()
    thread.close()


def test_an_error_is_raised_once_by_the_next_wait() -> None:
    def fail() -> None:
        raise CheckpointError("'x' cannot be written: no space")

    thread = SaveThread()
    thread.start(fail)
    with pytest.raises(CheckpointError, match=r"^'x' cannot be written: no space$"):
        thread.wait()
    thread.wait()
    thread.close()


def test_closing_waits_and_logs_an_error_beside_the_one_on_its_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise CheckpointError("'x' cannot be written: no space")

    thread = SaveThread()
    thread.start(fail)
    thread.close()
    assert caplog.messages == ["curricle: 'x' cannot be written: no space"]


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slowest")
@pytest.mark.parametrize("keep_best", [False, True])
def test_files_written_as_late_as_possible_are_those_of_a_save_within_the_step(
    tmp_path: Path, keep_best: bool
) -> None:
    expected = trained(tmp_path / "within", keep_best=keep_best)
    weights = trained(tmp_path / "behind", keep_best=keep_best, async_save=True)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    files = tensors_of(tmp_path / "within")
    # Student, adapters and the state of each, by a quarter of the run's steps.
    assert len([name for name in files if "best" not in name]) >= 2 * STEPS // 3
    assert tensors_of(tmp_path / "behind") == files


@pytest.mark.parametrize("stop", [4, 6, 7, 11])
@pytest.mark.parametrize("keep_best", [False, True])
def test_a_run_that_saves_in_the_background_resumes_bit_equal(
    stop: int, keep_best: bool, tmp_path: Path
) -> None:
    expected = trained(tmp_path / "whole", keep_best=keep_best)
    settings: dict[str, Any] = {"keep_best": keep_best, "async_save": True}
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path / "cut", killing_at(stop), **settings)
    newest = checkpoints_in(tmp_path / "cut" / CHECKPOINTS)[-1]
    # A step's record precedes its save, so the one of step 6 is not begun where the run ends there.
    assert read_state(newest).usage.steps == (stop - 1) // 3 * 3
    weights = trained(tmp_path / "cut", resume=True, **settings)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "whole")


def test_a_checkpoint_counts_no_record_of_a_later_step(tmp_path: Path) -> None:
    trained(tmp_path, async_save=True)
    for checkpoint in checkpoints_in(tmp_path / CHECKPOINTS):
        state = read_state(checkpoint)
        head = (tmp_path / RECORDS).read_bytes()[: state.records_bytes]
        (tmp_path / "head.jsonl").write_bytes(head)
        steps = [record.usage.steps for record in read_records(tmp_path / "head.jsonl")
                 if isinstance(record, StepRecord)]  # fmt: skip
        assert steps == list(range(1, state.usage.steps + 1))


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_ends_the_run_at_the_next_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=FULL):
        trained(tmp_path, async_save=True)
    steps = [r.usage.steps for r in read_records(tmp_path / RECORDS) if isinstance(r, StepRecord)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert checkpoints_in(tmp_path / CHECKPOINTS) == []


@pytest.mark.usefixtures("full_disk")
def test_a_run_whose_last_checkpoint_fails_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=FULL):
        trained(tmp_path, async_save=True, save_every=STEPS)
    assert not (tmp_path / FINISHED).exists()
    assert not any(record.kind == "end" for record in read_records(tmp_path / RECORDS))


@pytest.mark.usefixtures("slowest")
def test_the_checkpoint_of_a_signal_is_written_before_the_run_ends(tmp_path: Path) -> None:
    def observe(record: Record) -> None:
        if isinstance(record, StepRecord) and record.usage.steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as raised:
        trained(tmp_path, observe, async_save=True)
    assert raised.value.checkpoint is not None
    assert read_state(raised.value.checkpoint).usage.steps == 7
    steps = [read_state(path).usage.steps for path in checkpoints_in(tmp_path / CHECKPOINTS)]
    assert steps == [3, 6, 7]


class Transient:
    """Stream with a batch of NaN at one step, until the run has returned to a checkpoint."""

    fingerprint, batch_size, tokens_per_batch = "transient", 8, 8

    def __init__(self) -> None:
        self.actions: list[str] = []

    def batch(self, step: int) -> Batch:
        batch = parity().batch(step)
        is_bad = step == 7 and not self.actions
        return replace(batch, inputs=batch.leading * math.nan) if is_bad else batch

    def observe(self, record: Record) -> None:
        if isinstance(record, RecoveryRecord):
            self.actions.append(record.action)


@pytest.mark.usefixtures("slowest")
def test_a_return_waits_for_the_checkpoint_to_which_it_leads(tmp_path: Path) -> None:
    for name, is_async in (("within", False), ("behind", True)):
        stream = Transient()
        trained(
            tmp_path / name,
            stream.observe,
            stream=stream,
            on_divergence=RollBack(),
            async_save=is_async,
        )
        assert stream.actions == ["rolled back to step 6, learning rates times 0.5"]
    assert tensors_of(tmp_path / "behind") == tensors_of(tmp_path / "within")
