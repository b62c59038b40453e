"""Scores of a recipe's students on other data, as numbers by panel, method and seed.

`curricle evaluate FOLDER --all-students` keeps a score beside the records of each student and of
the teacher; here they are read for all panels of a recipe.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from curricle.errors import CheckpointError
from curricle.figure_points import PANELS, Chart, Panel, Point
from curricle.records import SCORES, Score, read_score
from curricle.reports.charts import place_of
from curricle.reports.summary import Summary
from curricle.values import value

STUDENTS, TEACHER = "students/*/seed-*", "teacher"
"""Folders of the models of a panel."""


@final
@value
class Evaluated:
    """Accuracy of models on the data of one evaluation."""

    name: str
    """Name of the data."""
    students: dict[str, dict[str, dict[int, float]]]
    """Accuracy of the students by panel, strategy and seed."""
    teacher: float | None
    """Accuracy of the teacher; None if it was not scored."""

    @property
    def metric(self) -> str:
        """Return the name of the accuracy as a metric."""
        return f"{self.name}_accuracy"


def read_scores(folder: Path, panels: Sequence[str]) -> tuple[Evaluated, ...]:
    """Return the scores in a recipe's folder, one value for each evaluation.

    Args:
        folder: The recipe's folder.
        panels: Names of its panels.

    Raises:
        CheckpointError: If a file is damaged, or two of one name were measured in two ways.
    """
    files = [
        (panel, path, read_score(path))
        for panel in panels
        for models in (TEACHER, STUDENTS)
        for path in sorted((folder / PANELS / panel).glob(f"{models}/{SCORES}/*.json"))
    ]
    names = dict.fromkeys(score.name for _, _, score in files)
    return tuple(
        _evaluated(name, [file for file in files if file[2].name == name]) for name in names
    )


def _evaluated(name: str, files: Sequence[tuple[str, Path, Score]]) -> Evaluated:
    """Return the scores of one name.

    Raises:
        CheckpointError: If two were measured in two ways.
    """
    students: dict[str, dict[str, dict[int, float]]] = {}
    teacher = None
    _, first_path, first = files[0]
    for panel, path, score in files:
        if score.settings != first.settings:
            raise CheckpointError(
                f"scores {name!r} of one recipe must have equal settings; {str(first_path)!r} has "
                f"{first.settings} and {str(path)!r} {score.settings}; remove one of them, and "
                f"'curricle evaluate' measures it again"
            )
        model = path.parent.parent
        if model.name == TEACHER:
            teacher = score.accuracy
        else:
            seeds = students.setdefault(panel, {}).setdefault(model.parent.name, {})
            seeds[int(model.name.removeprefix("seed-"))] = score.accuracy
    return Evaluated(name=name, students=students, teacher=teacher)


def score_points(
    chart: Chart, panels: Sequence[tuple[Panel, Summary]], scores: Sequence[Evaluated]
) -> tuple[Point, ...]:
    """Return scores as points, in a panel of the figure for each evaluation.

    Args:
        chart: Says where numbers stand on the horizontal axis.
        panels: Comparisons with their summaries.
        scores: Scores of their students.
    """
    return tuple(
        Point(
            panel=evaluation.name,
            series=method,
            x=place_of(chart, panel, summary.methods[method]),
            y=accuracy,
            seed=seed,
        )
        for evaluation in scores
        for panel, summary in panels
        for method, by_seed in evaluation.students.get(panel.name, {}).items()
        for seed, accuracy in by_seed.items()
    )
