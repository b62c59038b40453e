"""Signals to a command in several processes, to its launcher or to one of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from curricle.locks import locked
from curricle.training.loop.checkpoints import latest_checkpoint
from tests.parts import child_processes

SPEC = Path(__file__).parents[2] / "recipes" / "parity.yaml"
SECONDS = 90
"""Time in which something must happen, many times what it takes."""
pytestmark = [
    pytest.mark.integration,
    pytest.mark.xdist_group("launched"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists processes by /proc"),
]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def launched(
    folder: Path, *options: str
) -> Iterator[tuple["subprocess.Popen[str]", list[int], Callable[[], str]]]:
    """Start a long run of two processes, which has a checkpoint.

    Yields:
        The launcher, its processes, and a function that waits for its end and returns its errors.
    """
    sizes = [
        "teacher.total=20 steps",
        "budget=3M steps",
        "task.batch_size=8",
        "curriculum.durations=[8 steps]",
        "engine.save_every=20",
        "engine.eval_every=1000000",
        f"output_dir={folder}",
        *options,
    ]
    sets = [part for size in sizes for part in ("--set", size)]
    program = [sys.executable, "-W", "ignore", "-m", "curricle", "distill", str(SPEC), *sets]
    with (folder.parent / "errors").open("w") as errors:
        launcher = subprocess.Popen(
            [*program, "--nproc", "2"],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            # A session of its own, and signals with their default actions, as in a terminal.
            start_new_session=True,
            preexec_fn=lambda: [  # noqa: PLW1509 - no thread of the test is forked
                signal.signal(number, signal.SIG_DFL)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
            ],
        )
    ranks: list[int] = []

    def ended() -> str:
        launcher.wait(SECONDS)
        return (folder.parent / "errors").read_text()

    try:
        wait_until(lambda: latest_checkpoint(folder / "checkpoints") or launcher.poll() is not None)
        ranks += child_processes(launcher.pid)
        assert len(ranks) == 2, (folder.parent / "errors").read_text()
        yield launcher, ranks, ended
    finally:
        for pid in (launcher.pid, *ranks):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.wait()


def stopped(number: signal.Signals, folder: Path) -> str:
    """Return the sentence about a run that a signal has ended with a checkpoint."""
    name = "" if number == signal.SIGINT else f" by {number.name}"
    command = f"curricle resume {folder}"
    return f"curricle: stopped{name}; {command!r} resumes from the newest checkpoint"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_the_run_with_a_checkpoint_and_one_sentence(
    number: signal.Signals, tmp_path: Path
) -> None:
    with launched(tmp_path / "run") as (launcher, ranks, ended):
        launcher.send_signal(number)
        errors = ended()
        assert launcher.returncode == 128 + number
        assert all(map(has_ended, ranks))
    assert errors.splitlines()[-1] == stopped(number, tmp_path / "run")
    assert errors.count("curricle: stopped") == 1


def test_a_signal_to_one_process_ends_all_as_one_to_the_launcher(tmp_path: Path) -> None:
    with launched(tmp_path / "run") as (launcher, ranks, ended):
        os.kill(ranks[1], signal.SIGUSR1)
        errors = ended()
        assert launcher.returncode == 128 + signal.SIGUSR1
    assert errors.splitlines()[-1] == stopped(signal.SIGUSR1, tmp_path / "run")


def test_a_killed_process_is_the_cause_that_is_named(tmp_path: Path) -> None:
    with launched(tmp_path / "run") as (launcher, ranks, ended):
        os.kill(ranks[1], signal.SIGKILL)
        errors = ended()
        assert launcher.returncode == 128 + signal.SIGKILL
    assert errors.splitlines()[-1] == (
        "curricle: process 1, counted from 0, was ended by SIGKILL; the run goes on by resuming it"
    )
    assert "stopped" not in errors


def test_a_process_that_hangs_is_named_by_the_other(tmp_path: Path) -> None:
    with launched(tmp_path / "run", "engine.timeout=4") as (launcher, ranks, ended):
        os.kill(ranks[1], signal.SIGSTOP)
        errors = ended()
        assert launcher.returncode == 2
    assert errors.splitlines()[-1].startswith(
        "curricle: process 1 of 2, counted from 0, must answer within the 4 seconds of 'timeout'"
    )


def test_processes_end_with_a_killed_launcher_and_leave_their_folder(tmp_path: Path) -> None:
    with launched(tmp_path / "run") as (launcher, ranks, _):
        launcher.kill()
        wait_until(lambda: all(map(has_ended, ranks)))
    with locked(tmp_path / "run"):
        assert latest_checkpoint(tmp_path / "run" / "checkpoints") is not None
