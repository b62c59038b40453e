"""Commands in several processes of a launcher, which divide every batch among them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from curricle.errors import SpecError
from curricle.training.setup import launchers

if TYPE_CHECKING:
    from curricle.runs.spec import RunSpec

LAUNCHER = "torch.distributed.run"
"""Module of torchrun."""


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
    torchrun = [sys.executable, "-m", LAUNCHER, "--standalone", "--nproc-per-node", str(number)]
    line = [*torchrun, "-m", "curricle", *arguments]
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
