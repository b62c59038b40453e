"""Signals while the public calls open data and bind models, before there is a step to wait for."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import curricle
from tests.parts import mlp, parity

ROOT = Path(__file__).parents[4]
ENDING = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
CPU = curricle.TrainingSettings(device="cpu", log_every=1)


class Signaling(Dataset[dict[str, torch.Tensor]]):
    """Held-out items, at the first of which a signal arrives."""

    def __init__(self, number: int) -> None:
        """Begin with the signal ahead."""
        self.number = number

    def __len__(self) -> int:
        """Return the number of items."""
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return an item after the signal."""
        os.kill(os.getpid(), self.number)
        return {"inputs": torch.zeros(16), "labels": torch.tensor(index % 2)}


def signaling_model(number: int, seed: int = 0) -> nn.Module:
    """Return a model at whose first pass, which binding makes, a signal arrives."""
    module = mlp(16, 12, seed=seed).module
    module.register_forward_hook(lambda *_: os.kill(os.getpid(), number))
    return module


def distilled(folder: Path | None, number: int, place: str) -> object:
    teacher = signaling_model(number, 1) if place == "binding" else mlp(16, 12, seed=1)
    return curricle.distill(
        mlp(16, 8), teacher, curricle.one_shot(total="2 steps"), parity(),
        evaluation=held_out(number, place), output_dir=folder, settings=CPU,
        resume=folder is not None,
    )  # fmt: skip


def taught(folder: Path | None, number: int, place: str) -> object:
    assert folder is not None
    model = signaling_model(number) if place == "binding" else mlp(16, 12)
    return curricle.teach(
        model, parity(), total="2 steps", checkpoints=1,
        evaluation=held_out(number, place), output_dir=folder, settings=CPU, resume=True,
    )  # fmt: skip


def compared(folder: Path | None, number: int, place: str) -> object:
    teacher = signaling_model(number, 1) if place == "binding" else mlp(16, 12, seed=1)
    return curricle.compare(
        lambda seed: mlp(16, 8, seed=seed), teacher, parity(), strategies=["one_shot"], seeds=(0,),
        budget="2 steps", evaluation=held_out(number, place), output_dir=folder, settings=CPU,
        resume=folder is not None,
    )  # fmt: skip


def captured(folder: Path | None, number: int, place: str) -> object:
    assert folder is not None
    teacher = signaling_model(number, 1) if place == "binding" else mlp(16, 12, seed=1)
    data: Any = parity()
    if place == "data":
        data = DataLoader(Signaling(number), batch_size=2)
    return curricle.capture_targets(
        mlp(16, 8), teacher, curricle.one_shot(total="2 steps"), data, folder=folder, settings=CPU
    )


def held_out(number: int, place: str) -> Any:
    if place == "data":
        return DataLoader(Signaling(number), batch_size=2)
    return [parity(purpose="evaluation").batch(0)]


Call = Callable[[Path | None, int, str], object]
CALLS: dict[str, Call] = {
    "distill": distilled,
    "teach": taught,
    "compare": compared,
    "capture_targets": captured,
}
AGAIN = {
    "distill": ", resume=True) starts anew, since no checkpoint was written yet",
    "teach": ", resume=True) starts anew, since no checkpoint was written yet",
    "compare": ", resume=True) keeps the students that are trained and resumes the others from "
    "their newest checkpoints",
    "capture_targets": ") captures the targets that are still missing",
}
EVERY_CALL = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(autouse=True)
def raising_interrupts() -> Iterator[None]:
    """Raise on ctrl-C, also if a shell in the background has the tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@EVERY_CALL
def test_ctrl_c_before_the_first_step_is_a_plain_keyboard_interrupt_with_a_note(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as raised:
        CALLS[name](folder, signal.SIGINT, "binding")
    assert type(raised.value) is KeyboardInterrupt
    argument = "folder" if name == "capture_targets" else "output_dir"
    call = f"curricle.{name}(..., {argument}={str(folder)!r}"
    assert raised.value.__notes__ == [f"curricle: stopped; {call}{AGAIN[name]}"]
    # Python prints the note below the traceback; a line of the log would be a second one.
    assert not caplog.messages
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@EVERY_CALL
@pytest.mark.parametrize("place", ["data", "binding"])
def test_what_ends_the_process_raises_its_exit_code_writes_nothing_and_the_call_goes_on_later(
    name: str, place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as raised:
        CALLS[name](folder, signal.SIGTERM, place)
    assert raised.value.code == 128 + signal.SIGTERM
    (line,) = caplog.messages
    assert line.startswith(f"curricle: stopped by SIGTERM; curricle.{name}(..., ")
    assert line.endswith(AGAIN[name])
    assert not files(folder)
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in ENDING)
    CALLS[name](folder, 0, "nowhere")
    assert files(folder)


@pytest.mark.parametrize("name", ["distill", "compare"])
def test_without_a_folder_the_note_says_that_nothing_was_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = partial(TemporaryDirectory, dir=tmp_path)
    monkeypatch.setattr("curricle.runs.compare.TemporaryDirectory", temporary)
    with pytest.raises(SystemExit) as raised:
        CALLS[name](None, signal.SIGTERM, "binding")
    note = "curricle: stopped; nothing was written, since 'output_dir' is None"
    assert raised.value.__notes__ == [note]
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
@EVERY_CALL
def test_a_script_ends_with_the_exit_code_of_the_signal_and_a_line(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    script = (
        "from pathlib import Path; from tests.unit.training.setup import test_interrupts_of_calls "
        f"as calls; calls.CALLS[{name!r}](Path({str(folder)!r}), {int(signal.SIGTERM)}, 'binding')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.splitlines()[-1].startswith("curricle: stopped by SIGTERM; curricle.")
    assert "Traceback" not in ended.stderr
    assert not files(folder)


@EVERY_CALL
def test_a_handler_of_the_calling_program_stays(name: str, tmp_path: Path) -> None:
    class OwnError(Exception):
        """End of the program's own making."""

    def handler(*_: object) -> None:
        raise OwnError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(OwnError):
            CALLS[name](tmp_path / "run", signal.SIGTERM, "binding")
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
