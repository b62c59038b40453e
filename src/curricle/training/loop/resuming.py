"""Run folders as a run finds and leaves them.

A run folder is new, begun or finished. A begun run resumes from its newest checkpoint; of a
finished run the student is loaded. Every file that is read here is checked before: records by their
chain of checks, weights by the hash in the last record, and both by the manifest that a run writes
after its end.

Design: weights are on disk before the record that holds their hash, and that record before the
manifest. So after a crash at any moment the folder is either begun or finished, and without its
manifest a finished run is still checked by its records.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from curricle.checksums import SEAL, seal_folder, sealed_names
from curricle.errors import CheckpointError
from curricle.files import content_digest, remove_leftovers_of
from curricle.locks import locked
from curricle.models.weights import load_weights, save_weights
from curricle.records import RECORDS, EndRecord, Record, RunRecord, read_records
from curricle.training.binding.facts import FACTS
from curricle.training.loop.best import BEST
from curricle.training.loop.checkpoints import (
    CHECKPOINTS,
    check_layout,
    clear_leftovers,
    latest_checkpoint,
)
from curricle.training.loop.recovery import clear_failed_steps

FINISHED = "model.safetensors"
"""Name of the finished weights in a run folder."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Places of a run's files."""

    records: Path
    """Records file."""
    checkpoints: Path
    """Folder of the checkpoints."""
    weights: Path
    """Weights of the finished student."""

    @staticmethod
    def of(folder: Path) -> "RunFolder":
        """Return the places of the files of a run folder."""
        return RunFolder(
            records=folder / RECORDS, checkpoints=folder / CHECKPOINTS, weights=folder / FINISHED
        )

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return self.records.parent

    def check_free(self) -> None:
        """Check that the folder holds no run.

        Raises:
            CheckpointError: If it does.
        """
        if self.records.exists():
            raise CheckpointError(
                f"{str(self.folder)!r} must not hold a run already; resume it (resume=True) or "
                f"choose another folder"
            )

    def known_records(self) -> list[Record]:
        """Return the records that are there, after checking them."""
        return list(read_records(self.records)) if self.records.exists() else []

    def newest(self) -> Path | None:
        """Return the newest checkpoint, if there is one."""
        check_layout(self.checkpoints)
        return latest_checkpoint(self.checkpoints)

    def open_for_writing(self, stack: ExitStack) -> None:
        """Become the only writer of the folder, and remove leftovers of a killed writer.

        Args:
            stack: Gives the folder back when it closes.
        """
        stack.enter_context(locked(self.folder, remedy="wait for its end or take another folder"))
        # Under the lock only: temporary files of a running writer look like leftovers.
        clear_leftovers(self.checkpoints)
        clear_failed_steps(self.folder)
        remove_leftovers_of(self.folder, self.records.name, self.weights.name, SEAL, BEST, FACTS)

    def begin(self) -> None:
        """Remove the manifest of an earlier run without records."""
        # Its hashes are those of files that are replaced now, which would then count as damaged.
        (self.folder / SEAL).unlink(missing_ok=True)

    def save_student(self, module: nn.Module) -> str:
        """Return the SHA-256 of the finished student's weights after writing them."""
        save_weights(module, self.weights)
        # Of the file, not of the tensors: it is the file that is read again.
        return content_digest(self.weights)

    def seal(self) -> None:
        """Write the manifest of the finished run."""
        seal_folder(self.folder, [self.records.name, self.weights.name])

    def load_student(self, module: nn.Module, end: EndRecord) -> None:
        """Put the weights of the finished student into a module, after checking them.

        Args:
            module: The student.
            end: The last record of the run.
        """
        check_weights_file(self.weights, end)
        load_weights(module, self.weights)

    def complete(self, end: EndRecord) -> None:
        """Finish the folder of a run that was killed after its last record.

        Args:
            end: The last record; without a hash, as in version 0.1, the folder has no manifest.
        """
        best, is_sealed = self.folder / BEST, not end.weights or bool(sealed_names(self.folder))
        if is_sealed and not best.exists():
            return
        with ExitStack() as stack:
            self.open_for_writing(stack)
            if not is_sealed:
                self.seal()
            best.unlink(missing_ok=True)


def check_weights_file(path: Path, end: EndRecord) -> None:
    """Check the weights of a finished run against its last record.

    Args:
        path: The weights.
        end: The last record; without a hash, as in version 0.1, nothing is checked.

    Raises:
        CheckpointError: If the file is missing, damaged or of another run.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{str(path)!r} must hold the weights of the finished run; there is none; run it again "
            f"in another folder"
        )
    if end.weights and (digest := content_digest(path)) != end.weights:
        raise CheckpointError(
            f"{str(path)!r} is damaged or of another run: its SHA-256 must be "
            f"{end.weights[:16]}... as the last record says; got {digest[:16]}...; restore it, or "
            f"run again in another folder"
        )


def owner_of(records: Sequence[Record], digest: str) -> str:
    """Return the digest of the run that wrote some records; without any they may be anyone's."""
    if not records:
        return digest
    # Records that do not begin with a run have no owner, so no digest equals theirs and they are
    # refused instead of overwritten.
    return records[0].run if isinstance(records[0], RunRecord) else ""
