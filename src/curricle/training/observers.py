"""Who watches a run?

An observer is a function that receives records. Here is the one for people: a progress bar with
stage, loss and metric. Trackers are written the same way, outside the engine.
"""

from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
    """Shows one run as a bar."""

    def __init__(self, progress: Progress, name: str) -> None:
        """Add a bar to a set that is already shown."""
        self._progress = progress
        self._bar = progress.add_task(name, total=None, note="")
        self._metric, self._stage, self._loss = "", "", ""

    def __call__(self, record: Record) -> None:
        """Move the bar."""
        match record:
            case RunRecord():
                total = sum(stage.steps for stage in record.stages)
                self._progress.update(self._bar, total=total)
            case StageRecord():
                self._stage = record.stage
            case StepRecord():
                self._loss = f"loss {record.loss:.4f}"
            case EvaluationRecord() | EndRecord():
                self._metric = " ".join(f"{name} {one:.3f}" for name, one in record.metrics.items())
        if not isinstance(record, RunRecord):
            note = "  ".join(filter(None, [self._stage, self._loss, self._metric]))
            self._progress.update(self._bar, completed=record.spent.steps, note=note)
