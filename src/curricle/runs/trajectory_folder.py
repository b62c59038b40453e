"""Checkpoints of a teacher in a folder, listed and checked before anything is trained.

The folder is a run folder or a `trajectory` of curricle, a folder with checkpoints of another
trainer, or a model of the Hub's cache with such revisions.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from curricle.errors import CheckpointError
from curricle.records import RECORDS
from curricle.runs.assemble import TRAJECTORY
from curricle.runs.folder import TEACHER
from curricle.teachers.checkpoint_folders import (
    Checkpoint,
    checkpoint_folders,
    inspect,
    tokenizer_note,
)
from curricle.teachers.trajectory import MANIFEST, Trajectory, open_trajectory

LEAST = 2
"""Fewest checkpoints of which a student can follow the order."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryListing:
    """Checkpoints in a folder."""

    checkpoints: tuple[Checkpoint, ...]
    """The checkpoints, ascending by step."""
    notes: tuple[str, ...]
    """Sentences about all of them."""
    opening: str
    """Python expression that opens the trajectory."""

    def check(self) -> None:
        """Check that every checkpoint can be read.

        Raises:
            CheckpointError: If one cannot.
        """
        faulty = [checkpoint for checkpoint in self.checkpoints if checkpoint.fault]
        if faulty:
            raise CheckpointError(
                f"{len(faulty)} of {len(self.checkpoints)} checkpoints cannot be used; "
                f"step {faulty[0].step}: {faulty[0].fault}"
            )


def list_trajectory(folder: Path) -> TrajectoryListing:
    """Return the checkpoints in a folder.

    Args:
        folder: A run folder, its teacher or trajectory, a folder with checkpoints of another
            trainer, or a model of the Hub's cache.
    """
    for place in (folder / TEACHER / TRAJECTORY, folder / TRAJECTORY, folder):
        # The manifest of a finished run has the same name.
        if (place / MANIFEST).is_file() and not (place / RECORDS).exists():
            return _own(place)
    folders = checkpoint_folders(folder)
    notes = [tokenizer_note(folders)]
    if len(folders) < LEAST:
        notes.append("one checkpoint is no order that a student could follow")
    return TrajectoryListing(
        checkpoints=tuple(inspect(folders)),
        notes=tuple(filter(None, notes)),
        opening=f"curricle.hugging_face_trajectory({str(folder)!r})",
    )


def _own(folder: Path) -> TrajectoryListing:
    """Return the checkpoints that a teacher's training has written."""
    trajectory = open_trajectory(folder)
    losses = dict(trajectory.losses)
    checkpoints = [
        replace(
            checkpoint,
            loss=losses.get(checkpoint.step),
            fault=checkpoint.fault or _damage(trajectory, checkpoint.step),
        )
        for checkpoint in inspect(trajectory.files)
    ]
    return TrajectoryListing(
        checkpoints=tuple(checkpoints),
        notes=(),
        opening=f"curricle.open_trajectory({str(folder)!r})",
    )


def _damage(trajectory: Trajectory, step: int) -> str:
    """Return a sentence about a file that is not the one in the manifest; empty if it is."""
    try:
        trajectory.check_digest(step)
    except CheckpointError as error:
        return str(error)
    return ""
