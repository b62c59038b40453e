"""Signals end a run after the step at hand, with a checkpoint, and nothing is left installed."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from curricle.curriculum.strategies import one_shot
from curricle.data.batch import Batch
from curricle.data.synthetic.parity import ParityStream
from curricle.models.tapped import TappedModel
from curricle.records import EndRecord, Usage
from curricle.teachers.live import LiveTeacher
from curricle.training.distill import execute
from curricle.training.fast import multistep as compiling
from curricle.training.loop.checkpoints import CHECKPOINTS, latest_checkpoint, read_state
from curricle.training.loop.resuming import FINISHED
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.interrupts import Interrupted, Interrupts
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import bound, mlp, parity

STEPS = 12


class Signals:
    """Gives the batches of parity, and sends this process a signal with one of them."""

    fingerprint = "signals"
    batch_size, tokens_per_batch = 8, 48

    def __init__(self, number: int | None = None, *, at: int = 5) -> None:
        self._number, self._at, self._stream = number, at, parity()

    def batch(self, step: int) -> Batch:
        if step == self._at and self._number is not None:
            number, self._number = self._number, None
            os.kill(os.getpid(), number)
        return self._stream.batch(step)


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": float(model.module(torch.ones(2, 6)).square().mean())}


def executed(
    stream: Signals | ParityStream, folder: Path | None, *, resume: bool = False, compiled: int = 1
) -> tuple[EndRecord, dict[str, torch.Tensor]]:
    settings = {"log_every": 6, "eval_every": 6, "compiled_steps": compiled}
    run = bound(one_shot(total=f"{STEPS} steps"), stream=stream, settings=settings)
    outputs = Outputs(folder=folder)
    end = execute(run, evaluate, metric="accuracy", outputs=outputs, resume=resume)
    return end, run.student.module.state_dict()


def handlers() -> list[object]:
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    return [signal.getsignal(number) for number in numbers]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_at_hand_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path
) -> None:
    before = handlers()
    with pytest.raises(Interrupted, match=f"interrupted by {number.name}; resume from") as raised:
        executed(Signals(number), tmp_path)
    assert raised.value.signal_number == number
    assert raised.value.checkpoint is not None
    assert read_state(raised.value.checkpoint).usage.steps == 6
    assert not (tmp_path / FINISHED).exists()
    assert handlers() == before


def test_a_run_that_a_signal_has_ended_goes_on_bit_equal(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        executed(Signals(signal.SIGTERM), tmp_path)
    end, weights = executed(Signals(), tmp_path, resume=True)
    whole, expected = executed(Signals(), None)
    assert end.metrics == whole.metrics
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_without_a_folder_a_signal_still_ends_the_run_as_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt, match=r"interrupted by SIGTERM$") as raised:
        executed(Signals(signal.SIGTERM), None)
    assert isinstance(raised.value, Interrupted)
    assert raised.value.checkpoint is None


def test_without_a_folder_ctrl_c_has_nothing_to_wait_for() -> None:
    with Interrupts(), pytest.raises(KeyboardInterrupt) as raised:
        os.kill(os.getpid(), signal.SIGINT)
    assert type(raised.value) is KeyboardInterrupt


def test_a_second_signal_does_not_wait_for_the_step() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested == signal.SIGTERM
        with pytest.raises(Interrupted, match="SIGHUP"):
            os.kill(os.getpid(), signal.SIGHUP)
        interrupts.requested = None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_run_is_opened_does_not_wait_for_a_step(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def solving(*arguments: Any) -> Usage:
        signal.raise_signal(number)
        raise AssertionError("the signal must not let a closed-form start go on")

    before = handlers()
    with monkeypatch.context() as patch:
        patch.setattr("curricle.training.loop.engine.apply_start", solving)
        with pytest.raises(Interrupted, match=rf"^interrupted by {number.name}$"):
            executed(Signals(), tmp_path)
    assert handlers() == before
    _, weights = executed(Signals(), tmp_path, resume=True)
    _, expected = executed(Signals(), None)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_signal_that_came_before_the_opening_is_raised_there() -> None:
    interrupts = Interrupts()
    interrupts.requested = signal.SIGTERM
    with pytest.raises(Interrupted, match="SIGTERM"), interrupts.raised_at_once():
        raise AssertionError("nothing must be opened")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_within_a_step_ends_the_run_at_once(
    number: signal.Signals, tmp_path: Path
) -> None:
    class Twice(Signals):
        def batch(self, step: int) -> Batch:
            batch = super().batch(step)
            if step == 5:
                os.kill(os.getpid(), number)
                raise AssertionError("the signal must not let the step go on")
            return batch

    before = handlers()
    with pytest.raises(Interrupted, match=rf"^interrupted by {number.name}$"):
        executed(Twice(number), tmp_path)
    # Nothing of the step at hand is saved.
    assert latest_checkpoint(tmp_path / CHECKPOINTS) is None
    assert handlers() == before
    _, weights = executed(Signals(), tmp_path, resume=True)
    _, expected = executed(Signals(), None)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_signal_that_came_after_the_last_step_is_not_forgotten() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_of_the_calling_program_is_left_in_place() -> None:
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (seen, interrupts.requested) == ([signal.SIGTERM], None)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_installed() -> None:
    before, inside = handlers(), list[object]()

    def enter() -> None:
        with Interrupts():
            inside.extend(handlers())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == before


@pytest.mark.parametrize("stacked", [False, True])
def test_every_student_of_a_classroom_saves_where_it_stands(stacked: bool, tmp_path: Path) -> None:
    teacher, stream = LiveTeacher(mlp(16, 12, seed=1)), Signals(signal.SIGTERM)
    seats = [
        SharedRun(
            run=bound(
                one_shot(total=f"{STEPS} steps"),
                student=mlp(5, 4, seed=number),
                teacher=teacher,
                stream=stream,
                seed=number,
            ),
            evaluate=evaluate,
            outputs=Outputs(folder=tmp_path / str(number)),
        )
        for number in (2, 3)
    ]
    with pytest.raises(Interrupted):
        execute_shared(seats, metric="accuracy", batch_students=stacked)
    for number in (2, 3):
        saved = latest_checkpoint(tmp_path / str(number) / CHECKPOINTS)
        assert saved is not None
        # In turns, the others take one step more than the one that has seen the signal first.
        assert read_state(saved).usage.steps in (6, 7)


def test_steps_that_were_compiled_as_one_are_saved_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What torch compiles takes seconds; the traced graph takes the same steps.
    monkeypatch.setattr(compiling, "compiled", lambda traced: traced.graph)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(Interrupted) as raised:
        executed(Signals(signal.SIGTERM, at=4), tmp_path, compiled=3)
    assert raised.value.checkpoint is not None
    _, weights = executed(Signals(), tmp_path, resume=True)
    _, expected = executed(Signals(), None)
    assert all(torch.allclose(weights[name], expected[name]) for name in expected)


def test_ctrl_c_says_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Interrupted), Interrupts(saves=True):
        signal.raise_signal(signal.SIGINT)
    assert "press ctrl-C again to stop at once" in caplog.text


SCRIPT = """
import os, sys
import curricle
from tests.parts import mlp, parity

def stop(record):
    if record.kind == "step" and record.usage.steps == 3:
        os.kill(os.getpid(), int(sys.argv[1]))

curricle.distill(
    mlp(5, 4), mlp(16, 12, seed=1), curricle.one_shot(total="6 steps"), parity(),
    evaluation=[parity().batch(0)], output_dir=sys.argv[2] or None, observers=[stop],
    settings=curricle.TrainingSettings(device="cpu", log_every=1),
)
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "folder", "told"),
    [
        (signal.SIGHUP, "run", r"resume=True\) resumes from the newest checkpoint"),
        (signal.SIGTERM, "", "nothing was written, since 'output_dir' is None"),
    ],
)
def test_a_script_that_a_signal_has_ended_says_so_in_a_line_and_in_its_exit_code(
    number: signal.Signals, folder: str, told: str, tmp_path: Path
) -> None:
    place = str(tmp_path / folder) if folder else ""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(int(number)), place],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[4],
    )
    assert ended.returncode == 128 + number
    # Before it stands that the teacher, which nobody trained, is at chance.
    *_, line = ended.stderr.splitlines()
    assert re.fullmatch(rf"curricle: stopped by {number.name}; .*{told}", line)
    assert "Traceback" not in ended.stderr
    assert (latest_checkpoint(tmp_path / "run" / CHECKPOINTS) is not None) == bool(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_what_ends_a_process_is_an_exit_with_its_code_and_still_an_interrupt(
    number: signal.Signals,
) -> None:
    with pytest.raises(SystemExit) as raised, Interrupts():
        signal.raise_signal(number)
    assert isinstance(raised.value, Interrupted)
    assert isinstance(raised.value, KeyboardInterrupt)
    assert raised.value.code == 128 + number


def test_ctrl_c_is_no_exit_so_that_an_interactive_python_stays() -> None:
    with pytest.raises(Interrupted) as raised, Interrupts(saves=True):
        signal.raise_signal(signal.SIGINT)
    assert not isinstance(raised.value, SystemExit)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_survives_the_way_between_processes(number: signal.Signals) -> None:
    # A copy is made as for another process.
    copied = copy.copy(Interrupted(number, Path("checkpoint")))
    assert type(copied) is type(Interrupted(number))
    assert str(copied) == str(Interrupted(number, Path("checkpoint")))
