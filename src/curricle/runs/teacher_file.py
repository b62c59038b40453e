"""Metrics of a comparison's teacher, kept beside its runs for the report.

A teacher that a spec trains has records of its own. The metrics of one that was trained elsewhere
are measured once, on the held-out data of its students.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from curricle.checksums import read_sealed, write_sealed
from curricle.errors import CheckpointError, reason
from curricle.values import parse

TEACHER_METRICS: Final = "teacher.json"
"""File in the folder of a comparison."""


def write_teacher_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Keep the metrics of a teacher in the folder of its comparison, unless there are none.

    Args:
        folder: The comparison's folder.
        metrics: Metrics by name.
    """
    if metrics:
        write_sealed(folder / TEACHER_METRICS, dict(metrics))


def read_teacher_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of the teacher of a comparison; empty if they were not measured.

    Args:
        folder: A run folder.

    Raises:
        CheckpointError: If the file is damaged.
    """
    path = folder / TEACHER_METRICS
    if not path.is_file():
        return {}
    try:
        metrics: dict[str, float] = parse(dict[str, float], read_sealed(path), source=str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} must be the file that a comparison wrote; {reason(error)}"
        ) from None
    return metrics
