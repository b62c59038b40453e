"""Outputs of a run: its folder, observers and trajectory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from curricle.records import Record
from curricle.teachers.trajectory import TrajectoryWriter

Observer = Callable[[Record], None]
"""Function that receives every record; records are immutable and give no access to the engine."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Outputs of a run: folder, observers, trajectory."""

    folder: Path | None = None
    """Run folder; None writes nothing."""
    observers: tuple[Observer, ...] = ()
    """Receive every record."""
    trajectory: TrajectoryWriter | None = None
    """Keeps the student's weights at chosen steps, as teaching does."""
    task: str = ""
    """Description of the data, in a few words."""
    better: Literal["higher", "lower"] | None = None
    """Which values of the metric are better, if declared; None leaves it to the metric's name."""
