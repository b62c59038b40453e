"""Scores of every finished model of a comparison or recipe on other data.

An evaluation is a value: minimal pairs of sentences, or fine-tuning on classified texts. Its score
of a model is a file beside the model's records, from which reports are made; a model that has one
is left alone, so an interrupted evaluation goes on where it stopped. The panels of a recipe have
copies of one teacher, of which the first is scored.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import final

from curricle.data.table_files import tables_in
from curricle.errors import CheckpointError, DataError, reason
from curricle.figure_points import PANELS, RECIPE, read_recipe
from curricle.files import content_digest
from curricle.records import Record, Score, read_score, score_file, write_score
from curricle.reports.formatting import mean_text
from curricle.reports.tables import Grid
from curricle.runs.export import EXPORT
from curricle.runs.fine_tuning import FineTuning
from curricle.runs.folder import (
    TEACHER,
    end_of,
    has_spec,
    read_origin,
    stored_spec,
    teacher_digest,
)
from curricle.runs.pool import work_off
from curricle.runs.run_evaluation import fine_tune_run, score_run
from curricle.runs.train import student_runs
from curricle.runs.workers import RecordWatcher, local_workers
from curricle.training.setup.settings import TrainingSettings
from curricle.values import plain

Watch = Callable[[int, int], None]
"""Receives the number of scored models and of all."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairScoring:
    """Accuracy on minimal pairs of sentences, of which a tie is wrong."""

    pairs: Path
    """File of pairs, or a folder of such files."""
    limit: int | None = None
    """Number of pairs of each kind; None takes all."""

    @property
    def name(self) -> str:
        """Return the name of the data."""
        return self.pairs.name.partition(".")[0]

    def settings(self) -> dict[str, object]:
        """Return data and options, by which scores can be compared."""
        return {"kind": "pairs", "data": _digests(self.pairs), "limit": self.limit}

    def score(self, folder: Path, settings: dict[str, object]) -> Score:
        """Return the score of the model in a folder.

        Args:
            folder: Folder of its records.
            settings: Those of this evaluation, whose data are read once for all models.
        """
        accuracy = score_run(folder, self.pairs, limit=self.limit)
        return Score(
            name=self.name, accuracy=accuracy.mean, settings=settings, details=accuracy.plain()
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TextScoring:
    """Accuracy on classified texts after fine-tuning, a mean over seeds."""

    name: str
    """Name of the data."""
    train: Path
    """Texts with their classes."""
    test: Path
    """Texts that are not trained on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the fine-tuning."""
    tuning: FineTuning = field(default_factory=FineTuning)
    """Length, learning rate and names of the fields."""

    def settings(self) -> dict[str, object]:
        """Return data and options, by which scores can be compared."""
        return {
            "kind": "fine-tuning",
            "data": [*_digests(self.train), *_digests(self.test)],
            "seeds": list(self.seeds),
            "tuning": plain(self.tuning),
        }

    def score(self, folder: Path, settings: dict[str, object]) -> Score:
        """Return the score of the model in a folder.

        Args:
            folder: Folder of its records.
            settings: Those of this evaluation, whose data are read once for all models.
        """
        tuned = fine_tune_run(folder, self.train, self.test, seeds=self.seeds, tuning=self.tuning)
        return Score(
            name=self.name,
            accuracy=tuned.means["accuracy"],
            settings=settings,
            details=tuned.plain(),
        )


Scoring = PairScoring | TextScoring


def scores_grid(scores: Sequence[tuple[Path, Score]]) -> Grid:
    """Return one row a strategy of each comparison: the mean accuracy over seeds.

    Args:
        scores: Folder and score of each model.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for folder, score in scores:
        is_teacher = folder.name == TEACHER
        comparison = folder.parent if is_teacher else folder.parents[2]
        name = TEACHER if is_teacher else folder.parent.name
        groups.setdefault((comparison.name, name), []).append(score.accuracy)
    return Grid(
        title="",
        columns=("comparison", "model", "accuracy", "seeds"),
        rows=tuple(
            (*group, mean_text("accuracy", numbers), str(len(numbers)))
            for group, numbers in groups.items()
        ),
        numeric=(False, False, True, True),
    )


def score_models(
    folder: Path, scoring: Scoring, *, jobs: int = 1, watch: Watch | None = None
) -> list[tuple[Path, Score]]:
    """Return the scores of all finished models, after measuring those that are not kept yet.

    Args:
        folder: Folder of a comparison, or of a recipe.
        scoring: The evaluation.
        jobs: Processes at once; 1 runs in this process.
        watch: Receives the progress.

    Returns:
        Folder and score of each model, the teacher first.

    Raises:
        CheckpointError: If there is no finished student, or a kept score was measured in another
            way.
    """
    models = list(_finished_models(folder))
    settings = scoring.settings()
    waiting = [model for model in models if not _is_kept(model, scoring.name, settings)]
    numbers = itertools.count(len(models) - len(waiting) + 1)

    def count(_model: Path) -> tuple[Path, ...]:
        if watch is not None:
            watch(next(numbers), len(models))
        return ()

    work_off(
        waiting,
        partial(_score, scoring, settings, 1 if jobs > 1 else None),
        workers=local_workers(jobs),
        watch=_ignore,
        again="curricle evaluate --all-students",
        following=count,
    )
    return [(model, read_score(score_file(model, scoring.name))) for model in models]


def _ignore(_name: str, _record: Record) -> None:
    """Receive nothing: an evaluation writes no records of training."""


def _score(
    scoring: Scoring,
    settings: dict[str, object],
    threads: int | None,
    folder: Path,
    _watch: RecordWatcher,
) -> None:
    """Keep the score of one model."""
    with TrainingSettings(threads=threads).stated_threads():
        write_score(folder, scoring.score(folder, settings))


def _finished_models(folder: Path) -> Iterator[Path]:
    """Yield the folders of a teacher and of finished students.

    Raises:
        CheckpointError: If no student is finished.
    """
    comparisons = [folder]
    if (folder / RECIPE).is_file():
        panels = [folder / PANELS / panel.name for panel in read_recipe(folder).panels]
        # A recipe that was interrupted has panels that have not begun.
        comparisons = [panel for panel in panels if has_spec(panel)]
    students = [student for place in comparisons for student in _finished_students(place)]
    if not students:
        raise CheckpointError(
            f"{str(folder)!r} must hold a finished student of a comparison; it holds none"
        )
    # Panels of one teacher have copies of it.
    teachers: dict[str, Path] = {}
    for place in comparisons:
        teachers.setdefault(teacher_digest(stored_spec(place)), place / TEACHER)
    yield from (teacher for teacher in teachers.values() if (teacher / EXPORT).is_dir())
    yield from students


def _finished_students(folder: Path) -> list[Path]:
    """Return the folders of the finished students of a comparison.

    Raises:
        CheckpointError: If it is none.
    """
    if read_origin(folder).command != "compare":
        raise CheckpointError(
            f"{str(folder)!r} must be a comparison or a recipe's folder; got a run of "
            f"{read_origin(folder).command!r}"
        )
    runs = student_runs(stored_spec(folder))
    return [run.folder for run in runs if end_of(run.folder) is not None]


def _is_kept(model: Path, name: str, settings: dict[str, object]) -> bool:
    """Return whether a model has a score.

    Raises:
        CheckpointError: If it was measured in another way.
    """
    path = score_file(model, name)
    if not path.is_file():
        return False
    measured = read_score(path).settings
    if measured != settings:
        raise CheckpointError(
            f"{str(path)!r} must have been measured with {settings}; got {measured}; remove it, or "
            f"give the earlier options"
        )
    return True


def _digests(path: Path) -> list[str]:
    """Return the digest of a file, or of each table in a folder.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return [content_digest(file) for file in (tables_in(path) if path.is_dir() else [path])]
    except OSError as error:
        raise DataError(f"{str(path)!r} must be a file or a folder: {reason(error)}") from None
