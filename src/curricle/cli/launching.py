"""Commands in several processes of a launcher, which divide every batch among them.

As a program, `python -m curricle.cli.launching ARGUMENTS`, it is torchrun with another
end: of a failure it prints one sentence, the last line, in the place of torchrun's traceback.

Design: a process of the launcher (`cli.rank`) leaves its error sentence in the file that torchrun
names for it, since all processes make the same mistake and each would print it.
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer

from curricle.errors import CurricleError, LostProcessError, SpecError, visible
from curricle.files import write_text
from curricle.training.setup import launchers

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from curricle.runs.spec import RunSpec

LAUNCHER, RANK = "curricle.cli.launching", "curricle.cli.rank"
"""Modules of the launcher and of each of its processes."""
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that the launcher passes on to its processes."""
SHUTDOWN, GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300"
"""Variable with the seconds after a signal in which processes take a step and write a checkpoint,
before torchrun kills them, and its default here; that of torchrun is 30."""
POLL_SECONDS = 1.0
LAUNCHER_PID = "CURRICLE_LAUNCHER_PID"
"""Variable with the number of the launcher on the machine."""
STOP_NOTE = "CURRICLE_STOP_NOTE"
"""Variable with the file in which the first process leaves its sentence about a signal."""
MISTAKE = 2
"""Exit code of a user's mistake."""
KILLED_AFTER = 20
"""Seconds after another process has failed from which on the launcher may have killed a process:
torchrun waits 30."""


def launch(number: int, arguments: Sequence[str]) -> None:
    """Run a command in several processes of torchrun; return if there is to be one process.

    Args:
        number: Number of processes.
        arguments: Verb and arguments of the command.

    Raises:
        SpecError: If this is a process of a launcher already.
        Exit: After the command, with its exit code.
    """
    if number == 1:
        return
    if launchers.num_processes() > 1:
        raise SpecError(
            f"'--nproc' must be left out in a process of a launcher, which has started "
            f"{launchers.num_processes()}; got {number}"
        )
    os.environ.setdefault(SHUTDOWN, GRACE)
    torchrun = [
        *(sys.executable, "-m", LAUNCHER, "--standalone", "--nproc-per-node", str(number)),
        *("--signals-to-handle", SIGNALS),
    ]
    line = [*torchrun, "-m", RANK, *arguments]
    sys.stdout.flush()
    if hasattr(os, "fork"):
        # The launcher takes the place of this process, so that signals reach it.
        os.execv(sys.executable, line)
    raise typer.Exit(subprocess.run(line, check=False).returncode)


def divided(spec: "RunSpec") -> "RunSpec":
    """Return a spec whose batches are divided, if a launcher has started several processes.

    Args:
        spec: Spec of a run of one student or teacher.
    """
    if launchers.num_processes() == 1 or spec.engine.parallel != "none":
        return spec
    return replace(spec, engine=replace(spec.engine, parallel="auto"))


def refuse(number: int, command: str) -> None:
    """Refuse several processes of one command that trains several students.

    Args:
        number: Processes that are asked for.
        command: The verb.

    Raises:
        SpecError: If there are several, or a launcher has started several.
    """
    processes = max(number, launchers.num_processes())
    if processes > 1:
        raise SpecError(
            f"'WORLD_SIZE' must be 1 for {command!r}, whose students are processes of their own by "
            f"'--jobs'; got {processes}; start it without torchrun, or unset WORLD_SIZE"
        )


def leave_mistake(error: CurricleError, sentence: str, file: Path) -> None:
    """Write a mistake of a process for the launcher, in torchrun's form.

    Args:
        error: The mistake.
        sentence: Its sentence.
        file: The file, which torchrun names in `TORCHELASTIC_ERROR_FILE`.
    """
    details = {
        "py_callstack": sentence,
        "timestamp": str(int(time.time())),
        "is_consequence": isinstance(error, LostProcessError),
    }
    content = {"message": {"message": sentence, "extraInfo": details}}
    write_text(file, json.dumps(content))


def end_with_launcher() -> None:
    """End this process as SIGTERM does once its launcher has been killed, in another thread.

    Otherwise it would train on without a parent, and keep its folder locked.
    """
    # Not the parent of now: the launcher may have been killed during the imports.
    launcher = int(os.environ.get(LAUNCHER_PID, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def report_stop(sentence: str) -> None:
    """Print that a signal has ended a command, or leave the sentence to the launcher of --nproc.

    The launcher prints the cause, since it also ends processes by a signal after one has failed.

    Args:
        sentence: The sentence.
    """
    note = os.environ.get(STOP_NOTE)
    if note is None:
        print(f"curricle: {sentence}", file=sys.stderr)
    elif launchers.rank() == 0:
        write_text(Path(note), sentence)


def failure_end(failures: "Mapping[int, ProcessFailure]") -> tuple[str, int]:
    """Return the last line about failed processes, and the exit code of the command.

    A process without a sentence has printed its traceback or was ended by a signal. That another
    process misses it is a consequence, and of equal mistakes the sentence of the first process is
    the fullest: it alone writes files.

    Args:
        failures: Failed processes by their number.
    """
    contents = {rank: failure.error_file_data["message"] for rank, failure in failures.items()}
    reports = {rank: content for rank, content in contents.items() if isinstance(content, dict)}
    mistakes = [
        rank
        for rank in sorted(reports)
        if not reports[rank].get("extraInfo", {}).get("is_consequence", False)
    ]
    silent = sorted(failures.keys() - reports, key=lambda rank: failures[rank].timestamp)
    # The launcher ends the remaining processes by SIGTERM, and by SIGKILL those that do not end:
    # one that hangs is missed by others long before that.
    missed = min((failures[rank].timestamp for rank in reports), default=math.inf)
    causes = [
        rank
        for rank in silent
        if failures[rank].exitcode not in (-signal.SIGTERM, 143)
        and failures[rank].timestamp < missed + KILLED_AFTER
    ]
    rank = [*mistakes, *causes, *sorted(reports), *silent][0]
    if rank in reports:
        # The launcher may have ended the process after its report.
        return reports[rank]["message"], MISTAKE
    code = failures[rank].exitcode
    place = f"process {rank}, counted from 0,"
    if code < 0:
        name = signal.Signals(-code).name
        return f"{place} was ended by {name}; the run goes on by resuming it", 128 - code
    return f"{place} ended with exit code {code}", code


def stop_signal(failures: "Mapping[int, ProcessFailure]") -> int:
    """Return the number of the signal that has ended all failed processes at a step; else 0.

    Args:
        failures: Failed processes by their number.
    """
    numbers = {getattr(signal, name) for name in SIGNALS.split(",") if hasattr(signal, name)}
    codes = {failure.exitcode for failure in failures.values()}
    ended = {-code if code < 0 else code - 128 for code in codes}
    if not ended <= numbers:
        return 0
    # The launcher sends SIGTERM to those that end last.
    return int(min(ended - {signal.SIGTERM}, default=signal.SIGTERM))


def main(arguments: Sequence[str]) -> None:
    """Run torchrun; the last line about a failure is one sentence.

    Args:
        arguments: Arguments of torchrun.

    Raises:
        SystemExit: If a process has failed or a signal has ended the launcher, with the exit code.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Their errors are in the sentence.
    for name in ("api", "errors.error_handler"):
        logger = logging.getLogger(f"torch.distributed.elastic.multiprocessing.{name}")
        logger.setLevel(logging.CRITICAL)
    with TemporaryDirectory() as folder:
        note = Path(folder, "stopped")
        os.environ |= {STOP_NOTE: str(note), LAUNCHER_PID: str(os.getpid())}
        try:
            run.main(list(arguments))
        except ChildFailedError as error:
            sentence, code = failure_end(error.failures)
            if note.is_file() and (number := stop_signal(error.failures)):
                # A signal to one process, which has ended all of them at a step.
                sentence, code = note.read_text(encoding="utf-8"), 128 + number
        except SignalException as error:
            number = signal.Signals(error.sigval)
            # A process that was ended at once has left none.
            sentence = f"stopped by {number.name}"
            if note.is_file():
                sentence = note.read_text(encoding="utf-8")
            code = 128 + number
        else:
            return
    print(f"curricle: {visible(sentence)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
