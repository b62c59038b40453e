"""Observers of runs: functions that receive records.

Three are for people: a progress bar with stage, loss and metric, the notes of a run as lines of
text, and a progress bar of preparations before the first step. Trackers are observers as well,
outside of the engine.

Design: names come from users and are never read as markup. Bars of Python calls are drawn when a
record arrives and not by a thread: data loaders fork, and a lock that a thread holds at a fork is
never released in the child.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from curricle.errors import visible
from curricle.metrics import AT_CHANCE, is_at_chance
from curricle.records import (
    EndRecord,
    EvaluationRecord,
    Record,
    RecoveryRecord,
    RunRecord,
    StageEndRecord,
    StageRecord,
    StepRecord,
    has_subject,
)


def new_progress(console: Console | None = None, *, is_drawn_by_records: bool = False) -> Progress:
    """Return an empty set of progress bars for training runs.

    Args:
        console: Console that shows them.
        is_drawn_by_records: Whether bars are drawn by calls of `refresh` alone, without a thread.
    """
    # A narrow terminal shortens the note and keeps the numbers.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column()),
        console=console,
        auto_refresh=not is_drawn_by_records,
        # Output that goes into a file stays there; on the terminal it is printed above the bars.
        redirect_stdout=not is_drawn_by_records or sys.stdout.isatty(),
    )


NewObserver = Callable[[str], Callable[[Record], None]]
"""Function from the name of a run to the observer that shows it."""


@contextmanager
def shown_progress(*, is_wanted: bool, is_comparison: bool = False) -> Iterator[NewObserver]:
    """Show runs of a Python call on stderr, if that is a terminal.

    Args:
        is_wanted: Whether anything may be shown.
        is_comparison: Whether the runs are of several strategies.

    Yields:
        Function that returns the observer of a run, which moves its bar and prints its notes.
    """
    console = Console(stderr=True)
    if not is_wanted or not console.is_terminal or console.is_dumb_terminal:
        yield lambda _: _ignore
        return
    bars = new_progress(console, is_drawn_by_records=True)
    line = NoteLine(console, is_comparison=is_comparison)

    def new_observer(name: str) -> Callable[[Record], None]:
        bar = ProgressBar(bars, name)

        def observe(record: Record) -> None:
            line(record, student=name)
            bar(record)
            bars.refresh()

        return observe

    with bars:
        yield new_observer


def _ignore(_: Record) -> None:
    """Show nothing of a record."""


@final
class ProgressBar:
    """Shows one run as a bar, from its first record on: a run that is finished shows none."""

    def __init__(self, progress: Progress, name: str, *, is_transient: bool = False) -> None:
        """Name a bar of a set that is already shown.

        Args:
            progress: The set.
            name: Name of the run.
            is_transient: Whether the bar goes at the end of the run.
        """
        self._progress, self._name = progress, visible(name)
        self._is_transient = is_transient
        self._bar: TaskID | None = None
        self._num_steps = 0
        self._stage, self._loss, self._metric, self._end = "", "", "", ""

    def __call__(self, record: Record) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar = self._progress.add_task(self._name, total=None, note="")
        match record:
            case RunRecord():
                self._num_steps = sum(stage.steps for stage in record.stages)
                self._progress.update(self._bar, total=self._num_steps)
                return
            case StageRecord():
                self._stage = record.stage
            case StepRecord():
                self._loss = f"loss {record.loss:.4f}"
            case StageEndRecord():
                # The run record counts each stage at its longest; without this a bar of a stage
                # that ended early would never reach its end.
                self._num_steps -= record.planned - record.done
                self._progress.update(self._bar, total=self._num_steps)
                self._end = "goal reached" if record.why == "goal" else ""
            case EvaluationRecord() | EndRecord():
                self._metric = " ".join(
                    f"{name} {number:.3f}" for name, number in record.metrics.items()
                )
        # A goal ends a run without records of the stages that are left out, so the last record
        # alone shows it.
        if isinstance(record, EndRecord) and record.usage.steps < self._num_steps:
            self._end = "goal reached"
            self._num_steps = record.usage.steps
        note = "  ".join(filter(None, [self._stage, self._loss, self._metric, self._end]))
        self._progress.update(
            self._bar,
            completed=record.usage.steps,
            # Steps that an early end saves may go to the last stage, whose plan they exceed.
            total=max(self._num_steps, record.usage.steps),
            note=visible(note),
            visible=not (self._is_transient and isinstance(record, EndRecord)),
        )


@final
class NoteLine:
    """Prints the notes of runs, each sentence once for all seeds of a strategy."""

    def __init__(self, console: Console, *, is_comparison: bool = False) -> None:
        """Take the console that also shows the bars.

        Args:
            console: The console.
            is_comparison: Whether runs are of several strategies, so that a note on a student, a
                teacher, a goal or a length may be of one of them and begins with its name. Notes
                on the data, which all of them read, are shown once.
        """
        self._console = console
        self._is_comparison = is_comparison
        self._shown: set[tuple[str, str]] = set()
        # Runs of a comparison share their held-out data, and so this number.
        self._chance: float | None = None
        self._method = ""

    def __call__(self, record: Record, name: str | None = None, *, student: str = "") -> None:
        """Print the notes of a run that opens, failures that it survives, and an end at chance.

        Args:
            record: Any record of the run.
            name: Of the run's strategy in its spec; by default the curriculum's own name.
            student: Name of the student; by default that of the strategy.
        """
        line = ""
        if isinstance(record, EndRecord) and is_at_chance(record.metrics, self._chance):
            line = AT_CHANCE
        elif isinstance(record, RecoveryRecord):
            line = str(record)
        if line:
            line = f"{student or name or self._method}: {line}"
            self._console.print(visible(line), soft_wrap=True, markup=False, emoji=False)
        if not isinstance(record, RunRecord):
            return
        self._chance, self._method = record.chance, record.method
        for note in record.notes:
            is_shared = note.startswith("data:")
            owner = "" if is_shared else name or record.method
            if (owner, note) in self._shown:
                continue
            self._shown.add((owner, note))
            # Later strategies are not known yet, so any other note may be of this one alone.
            is_clear = is_shared or (has_subject(note) and not self._is_comparison)
            line = note if is_clear else f"{owner}: {note}"
            # Notes are facts, not warnings.
            self._console.print(
                visible(line), soft_wrap=True, markup=False, emoji=False, style="dim"
            )


@final
class PreparationBar:
    """Shows how far the preparation of data is, on a terminal; elsewhere nothing.

    It is a `curricle.data.text.progress.Watcher`.
    """

    def __init__(self, console: Console) -> None:
        """Take a console; nothing is shown before the first call."""
        self._console = console
        self._progress: Progress | None = None
        self._bar = TaskID(0)

    def __call__(self, job: str, done: int, total: int) -> None:
        """Move the bar, which goes at the end of a job.

        Args:
            job: Name of the work.
            done: How much of it.
            total: How much it is in all.
        """
        # In a log file every movement of the bar would be a line of its own.
        if not self._console.is_terminal:
            return
        # Before a bar is made: a job that is done at its first call would flash up for nothing.
        if done >= total:
            self.close()
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description:<22}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._bar = self._progress.add_task(visible(job), total=total)
        self._progress.update(self._bar, description=visible(job), completed=done, total=total)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
