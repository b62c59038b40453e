"""Command for the checkpoints of a teacher: trajectory.

Design: as in `cli`, modules that need torch are imported when the command runs.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from curricle.errors import visible

WIDE = 140
"""Columns of tables that do not go to a terminal."""
MEGABYTE = 1_000_000


def trajectory(
    path: Annotated[
        Path,
        typer.Argument(
            help="Run folder, folder with checkpoints, or model of the Hub's cache.",
            show_default=False,
        ),
    ],
) -> None:
    """List the checkpoints of a teacher and check that all can be read.

    Known names are checkpoint-1000, step1000 and chck_1M.
    """
    from curricle.runs.trajectory_folder import list_trajectory

    listing = list_trajectory(path)
    console = Console(markup=False, emoji=False)
    console = console if console.is_terminal else Console(width=WIDE, markup=False, emoji=False)
    table = Table("step", "checkpoint", "parameters", "type", "MB", "loss", "state")
    for checkpoint in listing.checkpoints:
        table.add_row(
            str(checkpoint.step),
            visible(checkpoint.path.name),
            f"{checkpoint.parameters:,}",
            checkpoint.dtype,
            f"{checkpoint.num_bytes / MEGABYTE:.1f}",
            "" if checkpoint.loss is None else f"{checkpoint.loss:.4f}",
            "faulty" if checkpoint.fault else "ok",
        )
    console.print(table)
    for note in listing.notes:
        console.print(visible(note), soft_wrap=True)
    listing.check()
    console.print(visible(f"in Python: trajectory = {listing.opening}"), soft_wrap=True)
