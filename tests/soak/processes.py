"""Commands of curricle in processes of their own, forked from one that has imported everything.

Importing torch takes seconds, a tiny run less than one; a forked child starts at once. The parent
never trains, so that a child finds no thread pools and no autograd threads that a fork would break.
Each child leads a process group, which is killed as a whole, its workers included.
"""

import importlib
import multiprocessing.process
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PATIENCE = 120.0
"""Seconds after which a command counts as hung; the longest of them takes about ten."""
IMPORTED = (
    # Optimizers import it at their first step; it is half of the time of a tiny run.
    "torch._dynamo",
    "curricle.cli.app",
    "curricle.runs.pool",
    "curricle.runs.demo",
    "curricle.runs.probe",
    "curricle_papers.recipes.index",
    "curricle_papers.recipes.running",
    "curricle.runs.target_folder",
    "curricle.runs.report",
    "curricle.reports.probe_tables",
    "curricle.training.setup.observers",
)
HUNG = -1
POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a command ended."""

    code: int
    """Exit code, negative signal number, or `HUNG`."""
    text: str
    """What it printed on both streams."""

    @property
    def errors(self) -> list[str]:
        """Return the lines by which the command line reports a mistake of the user."""
        return [line for line in self.text.splitlines() if line.startswith("curricle: ")]

    @property
    def is_clean_refusal(self) -> bool:
        """Return whether the command ended with code 2 and one sentence."""
        return self.code == 2 and len(self.errors) == 1 and "Traceback" not in self.text

    @property
    def last_line(self) -> str:
        """Return the last line, which of a traceback is the exception."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def warm_up() -> None:
    """Import what commands import when they run, so that children need not."""
    for name in IMPORTED:
        importlib.import_module(name)


def start(arguments: Sequence[str], *, folder: Path, log: Path) -> int:
    """Return the process id, which is also that of the group, of a command begun in a folder."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run_in_child(lambda: _command(arguments), folder, log)
    # Both sides set the group: whoever comes first, it exists before anything is killed.
    with suppress(OSError):
        os.setpgid(pid, pid)
    return pid


def run(arguments: Sequence[str], *, folder: Path, log: Path, patience: float = PATIENCE) -> Ending:
    """Return how a command ended."""
    return wait(start(arguments, folder=folder, log=log), log, patience)


def wait(pid: int, log: Path, patience: float = PATIENCE) -> Ending:
    """Return how a process ended; one that takes too long is killed with its group."""
    deadline = time.monotonic() + patience
    while (code := exit_code(pid)) is None:
        if time.monotonic() > deadline:
            kill_group(pid)
            return Ending(code=HUNG, text=_text(log))
        time.sleep(POLL_SECONDS)
    return Ending(code=code, text=_text(log))


def exit_code(pid: int) -> int | None:
    """Return the exit code of a child, or None while it runs; asking again is an error."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def kill_group(pid: int) -> None:
    """Kill a process and its workers, and wait until none of them runs."""
    # Those of torchrun are in sessions of their own.
    strangers = _descendants(pid)
    for kill, target in [(os.killpg, pid), *((os.kill, stranger) for stranger in strangers)]:
        with suppress(ProcessLookupError):
            kill(target, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    # Workers are reaped by init; a system without one keeps them, hence the bound.
    for _ in range(200):
        if not _is_group(pid) and not any(map(_is_running, strangers)):
            return
        time.sleep(0.005)


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process and these have started, where the system lists them."""
    children: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, tasks.read_text().split())
    return [*children, *(below for child in children for below in _descendants(child))]


def _is_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _run_in_child(action: Callable[[], int], folder: Path, log: Path) -> NoReturn:
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        os.chdir(folder)
        # Workers that a command spawns go to where the interpreter began.
        multiprocessing.process.ORIGINAL_DIR = str(folder)  # type: ignore[attr-defined]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = action()
    except BaseException:  # noqa: BLE001 - nothing may leave a forked child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(arguments: Sequence[str]) -> int:
    from curricle.cli.app import main

    sys.argv = ["curricle", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
