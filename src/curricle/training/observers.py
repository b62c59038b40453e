"""Who watches a run?

An observer is a function that receives records. Here are those for people: a progress bar with
stage, loss and metric, and a line that says why the stages are as they are. Trackers are written
the same way, outside the engine.
"""

from typing import final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from curricle.records import EndRecord, EvaluationRecord, Record, RunRecord, StageRecord, StepRecord


def new_progress(console: Console | None = None) -> Progress:
    """Return an empty set of progress bars for training runs."""
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@final
class ProgressBar:
    """Shows one run as a bar, from its first record on: a run that is finished shows none."""

    def __init__(self, progress: Progress, name: str) -> None:
        """Name a bar of a set that is already shown."""
        self._progress, self._name = progress, name
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
            case EvaluationRecord() | EndRecord():
                self._metric = " ".join(f"{name} {one:.3f}" for name, one in record.metrics.items())
        if isinstance(record, EndRecord) and record.spent.steps < self._num_steps:
            self._end = "target reached"
            self._progress.update(self._bar, total=record.spent.steps)
        note = "  ".join(filter(None, [self._stage, self._loss, self._metric, self._end]))
        self._progress.update(self._bar, completed=record.spent.steps, note=note)


@final
class NoteLine:
    """Prints the notes of runs, each sentence once for all runs that share it."""

    def __init__(self, console: Console) -> None:
        """Take the console that also shows the bars."""
        self._console = console
        self._told: set[str] = set()

    def __call__(self, record: Record, name: str | None = None) -> None:
        """Print the notes of a run that opens.

        Args:
            record: Any record of the run.
            name: Of the run's strategy in its spec; by default the curriculum's own name.
        """
        if not isinstance(record, RunRecord):
            return
        for note in record.notes:
            line = f"{name or record.method}: {note}"
            if line not in self._told:
                self._told.add(line)
                self._console.print(line, soft_wrap=True, markup=False)
