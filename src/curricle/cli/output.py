"""Output of the command line: tables, lines, progress bars and the words about a signal."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from curricle.errors import SpecError, visible
from curricle.training.setup import launchers

if TYPE_CHECKING:
    from curricle.records import Record

WIDE = 140
"""Columns of tables that do not go to a terminal."""
# Of the processes of a launcher the first one prints.
console = Console(markup=False, emoji=False, quiet=launchers.rank() > 0)
if not console.is_terminal:
    # Tables in a file or a pipe need not fit a terminal.
    console = Console(width=WIDE, markup=False, emoji=False, quiet=console.quiet)


def exit_code(error: KeyboardInterrupt) -> int:
    """Return the exit code of a process that a signal has ended, as shells give it."""
    return 128 + int(getattr(error, "signal_number", signal.SIGINT))


def signal_words(error: KeyboardInterrupt) -> str:
    """Return by which signal, but for the one from the keyboard, which needs no name."""
    number = getattr(error, "signal_number", signal.SIGINT)
    return "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"


def print_line(text: object) -> None:
    """Print a line that may contain names from users."""
    console.print(visible(str(text), keep="\n"), soft_wrap=True)


def print_report(folders: list[Path], output: Path | None = None) -> None:
    """Write and print a report of run folders; goal and budget are those of the first."""
    from curricle.reports.headline import headline
    from curricle.reports.tables import summary_table
    from curricle.runs.report import usual_page, write_report

    page = output or usual_page(folders)
    summary = write_report(folders, page)
    console.print(summary_table(summary))
    notes = (summary.gap, summary.gap_note, summary.source_note, *summary.notes)
    for line in filter(None, (*notes, headline(summary), f"report: {page}")):
        print_line(line)


def print_figure(folder: Path, output: Path | None = None) -> None:
    """Write the report of a recipe's folder and print its results.

    Raises:
        SpecError: If it is wanted elsewhere.
    """
    from curricle.reports.reproduction import points_tables
    from curricle.runs.report import write_figure

    if output is not None:
        raise SpecError(f"'--output' must be left out for a recipe's folder; got {str(output)!r}")
    lines = write_figure(folder)
    for table in points_tables(folder):
        console.print(table)
    for line in (*lines, f"report: {folder / 'report.html'}"):
        print_line(line)


@contextmanager
def progress_bars(
    *, are_transient: bool = False
) -> "Iterator[Callable[[str], Callable[[Record], None]]]":
    """Show progress bars within the block.

    Args:
        are_transient: Whether a bar disappears when its run has ended.

    Yields:
        Function from the name of a run to a new bar, which takes the run's records.
    """
    from curricle.training.setup.observers import ProgressBar, new_progress

    with new_progress(console) as progress:
        yield lambda name: ProgressBar(progress, name, is_transient=are_transient)
