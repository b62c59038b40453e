"""Journal of a run: its records, checkpoints and finished weights, on disk if it has a folder.

A `Journal` opens the run folder, refuses one that holds another run, and restores the state of the
newest checkpoint. From then on it appends records, which observers also receive, and saves
checkpoints, which a background thread can write.

Design: a checkpoint counts the records before it, so these are flushed to the disk first. When a
run is resumed, records after the checkpoint are dropped and written again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import final

import torch
from torch import nn

from curricle.errors import CheckpointError
from curricle.models.weights import save_weights
from curricle.records import EndRecord, Record, RecordWriter, RecoveryRecord, RunRecord, Usage
from curricle.training.binding.facts import differences, write_facts
from curricle.training.binding.timeline import Timeline
from curricle.training.loop.best import BestWeights
from curricle.training.loop.checkpoints import (
    RunState,
    hand_shares,
    load_checkpoint,
    read_state,
    remove_older,
    replace_state,
    save_checkpoint,
)
from curricle.training.loop.fallback import missing_notes
from curricle.training.loop.recovery import Recovery
from curricle.training.loop.resuming import RunFolder, owner_of
from curricle.training.loop.save_thread import SaveThread
from curricle.training.setup.placement import HOST, Placement
from curricle.values import fingerprint


@final
class Journal:
    """Records and checkpoints of one run."""

    def __init__(  # noqa: PLR0913 - everything but the first three has a name
        self,
        files: RunFolder | None,
        student: nn.Module,
        timeline: Timeline,
        *,
        observers: Sequence[Callable[[Record], None]] = (),
        facts: Mapping[str, object],
        best: BestWeights | None = None,
        recovery: Recovery,
        placement: Placement = HOST,
        keep: int = 1,
        async_save: bool = False,
    ) -> None:
        """Declare a journal; nothing is read or written before it is opened.

        Args:
            files: Places of the run's files; None writes nothing.
            student: The student.
            timeline: Stages of the run, before the first step.
            observers: Functions that receive every record.
            facts: Facts on which the result of the run depends.
            best: The best weights, if the run keeps them; they are part of its checkpoints.
            recovery: Recovery of the run, whose state is part of its checkpoints.
            placement: Processes of the run; the first one writes the files, all read checkpoints.
            keep: Number of checkpoints that stay.
            async_save: Whether checkpoints are written by a background thread.
        """
        self.files, self._keep = files, keep
        self._student, self._timeline = student, timeline
        self.digest = fingerprint(dict(facts))
        """Digest of the facts."""
        self.resumed: Path | None = None
        """Checkpoint from which the run goes on; None if it begins."""
        self.usage = Usage()
        """Consumed by that checkpoint."""
        self.facts = facts
        """Facts on which the result of the run depends."""
        self._observers = tuple(observers)
        self._best, self._recovery, self._is_writer = best, recovery, placement.is_writer
        self._placement = placement
        self._writer: RecordWriter | None = None
        self._thread = SaveThread() if async_save else None

    def open(
        self,
        opening: RunRecord,
        *,
        resume: bool,
        lock: ExitStack,
    ) -> EndRecord | None:
        """Begin the run, or find its newest checkpoint and restore the timeline from it.

        Args:
            opening: First record of the run.
            resume: Whether the folder may hold the run already.
            lock: Gives the folder back when it closes.

        Returns:
            The end of the run if it is complete; nothing is open then, and the student has the
            finished weights.

        Raises:
            CheckpointError: If the folder holds a run that is not to be resumed, another one or a
                damaged one, or another process writes into it.
        """
        files = self.files
        if files is None:
            self._notify(opening)
            return None
        # Also before the lock: a refusal must leave no lock file in the folder of another run.
        if not resume:
            files.check_free()
        end = self._finished(files, opening)
        if end is not None:
            if self._is_writer:
                files.complete(end)
            return end
        # All processes of the run have looked before one of them writes.
        self._placement.wait()
        # A finished run has returned above: one that is complete is only read, without a lock.
        if self._is_writer:
            files.open_for_writing(lock)
            # Another run may have written between the first look and the lock.
            if not resume:
                files.check_free()
            end = self._finished(files, opening)
        if end is None:
            self._begin(files, opening)
        return end

    def _finished(self, files: RunFolder, opening: RunRecord) -> EndRecord | None:
        """Return the end of a complete run after loading its student; else None.

        Raises:
            CheckpointError: If the folder holds another run or a damaged one.
        """
        records, newest = files.known_records(), files.newest()
        # Weights come from the checkpoint, so its digest counts if there is one.
        owner = owner_of(records, self.digest) if newest is None else read_state(newest).run
        if owner != self.digest:
            raise CheckpointError(
                f"{str(newest or files.records)!r} must belong to this run; its digest is "
                f"{owner!r}, not {self.digest!r}{self._reason(files, records)}"
            )
        if not records or not isinstance(end := records[-1], EndRecord):
            return None
        files.load_student(self._student, end)
        self._notify(opening)
        self._notify(end)
        return end

    def _reason(self, files: RunFolder, records: Sequence[Record]) -> str:
        """Return the changed facts, and the remedy for a finished run, as the end of an error."""
        changes = differences(files.folder, self.facts)
        is_finished = bool(records) and isinstance(records[-1], EndRecord)
        end = (
            f"; a finished run cannot be prolonged or changed, since its schedule belongs to its "
            f"length; take another folder, for a new run or for one that begins with the weights "
            f"of this student: safetensors.torch.load_model(student, {str(files.weights)!r})"
        )
        return (f": {changes}" if changes else "") + (end if is_finished else "")

    def _begin(self, files: RunFolder, opening: RunRecord) -> None:
        """Go on from the newest checkpoint, or begin if there is none."""
        self.resumed = files.newest()
        if self.resumed is None:
            if self._is_writer:
                files.begin()
                self._writer = RecordWriter(files.records)
            self.write(opening)
            if self._is_writer:
                # After the record, whose digest decides; facts only name what differs.
                write_facts(files.folder, self.facts)
            return
        self._restore(files, self.resumed)
        # The file has it already; these observers have not seen it.
        self._notify(opening)
        if self._is_writer:
            for note in missing_notes(
                files.checkpoints, files.records, stage=self._stage_name, usage=self.usage
            ):
                self.write(note)

    def _restore(self, files: RunFolder, checkpoint: Path) -> RunState:
        """Return the state of a checkpoint after restoring all but student and optimizer."""
        state = read_state(checkpoint, timeline=self._timeline)
        # Records first: if they are shorter than the checkpoint counts, the run is refused before a
        # weight moves.
        if self._is_writer:
            self._writer = RecordWriter(
                files.records, keep_bytes=state.records_bytes, head=state.records_head
            )
        if self._best is not None:
            self._best.restore(checkpoint, state.best)
        self._recovery.restore(state.recovery)
        self.usage = state.usage
        return state

    def roll_back(self, fault: str, usage: Usage, optimizer: torch.optim.Optimizer) -> bool:
        """Return to the newest checkpoint, and note that in the records and in the checkpoint.

        Args:
            fault: Sentence about the failed step.
            usage: Consumed until it.
            optimizer: The optimizer of the student's weights.

        Returns:
            Whether there was a checkpoint.
        """
        self.wait()
        # A checkpoint of the first process, which a thread of it may have been writing.
        self._placement.wait()
        files = self.files
        checkpoint = None if files is None else files.newest()
        if files is None or checkpoint is None:
            return False
        if self._writer is not None:
            self._writer.close()
        self._timeline.restart()
        self.resumed = checkpoint
        state = self._restore(files, checkpoint)
        load_checkpoint(checkpoint, self._student, optimizer)
        self._recovery.roll_back()
        # The cost of the steps that are taken again is not forgotten.
        self.usage = replace(usage, steps=state.usage.steps)
        scale = self._recovery.learning_rate_scale
        self.write(
            RecoveryRecord(
                stage=self._stage_name,
                fault=fault,
                action=f"rolled back to step {self.usage.steps}, learning rates times {scale:g}",
                usage=self.usage,
            )
        )
        # All processes have read the checkpoint before its state is replaced.
        self._placement.wait()
        if self._writer is not None:
            self._writer.sync()
            # A run that is interrupted before its next checkpoint must not return here at the old
            # rate.
            replace_state(checkpoint, self._state(self.usage))
        return True

    @property
    def _stage_name(self) -> str:
        """Return the name of the open stage, or of the last one."""
        remaining = self._timeline.remaining()
        return self._timeline.names[remaining[0] if remaining else -1]

    def _state(self, usage: Usage) -> RunState:
        """Return where the run stands."""
        assert self._writer is not None  # noqa: S101 - only the writer saves
        return RunState(
            usage=usage,
            records_bytes=self._writer.size,
            records_head=self._writer.head,
            run=self.digest,
            timeline=self._timeline.state(),
            recovery=self._recovery.snapshot(),
        )

    def restore(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the newest checkpoint into student and optimizer, if the run goes on from one.

        Args:
            student: The student as it is trained, which is saved from now on.
            optimizer: The optimizer of its weights.

        Raises:
            CheckpointError: If the checkpoint is damaged or does not fit.
        """
        self._student = student
        if self.resumed is None:
            return
        load_checkpoint(self.resumed, student, optimizer)
        if self._is_writer and self.files is not None:
            # After the newest is read: one that is damaged needs those before it.
            remove_older(self.files.checkpoints, keep=self._keep, newest=self.resumed)

    def write(self, record: Record) -> None:
        """Append a record and pass it to the observers."""
        # Disk first: an observer may raise, and the record of the step must not be lost.
        if self._writer is not None:
            self._writer.write(record)
        self._notify(record)

    def _notify(self, record: Record) -> None:
        for observer in self._observers:
            observer(record)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: If it could not be written.
        """
        if self._thread is not None:
            self._thread.wait()

    def save(
        self,
        usage: Usage,
        optimizer: torch.optim.Optimizer,
        *,
        adapters: nn.ModuleList,
        is_last: bool = False,
    ) -> None:
        """Save a checkpoint, if there is a folder.

        Args:
            usage: Consumed so far.
            optimizer: The optimizer of the student's weights.
            adapters: Modules that the open stage trains beside the student.
            is_last: Whether the run ends here, so that the checkpoint is written within the call.

        Raises:
            CheckpointError: If this checkpoint or the one before could not be written.
        """
        # Before the tensors are copied: host memory holds those of one checkpoint.
        self.wait()
        # Statistics of batches are those of the share of each process.
        self._placement.copy_first(self._student.buffers())
        if self.files is None or self._writer is None:
            if self.files is not None:
                hand_shares(self._student, optimizer)
            self._placement.wait()
            return
        # Not even a crash of the machine may leave a checkpoint whose records are lost.
        self._writer.sync()
        save_checkpoint(
            self.files.checkpoints,
            self._state(usage),
            self._student,
            optimizer,
            adapters=adapters,
            best=self._best,
            keep=self._keep,
            thread=None if is_last else self._thread,
        )
        # All processes read this checkpoint from here on.
        self._placement.wait()

    def save_student(self) -> str:
        """Return the SHA-256 of the written weights; empty where this process writes none."""
        if self.files is None:
            return ""
        # A checkpoint that could not be written ends the run before it counts as finished.
        self.wait()
        if self._is_writer:
            return self.files.save_student(self._student)
        save_weights(self._student, None)
        return ""

    def finish(self, end: EndRecord) -> None:
        """Write the last record and the manifest of the folder."""
        self.write(end)
        if self.files is not None and self._writer is not None:
            # The manifest has the hash of the records, so a crash must not leave it without them.
            self._writer.sync()
            self.files.seal()
        self._placement.wait()

    def close(self) -> None:
        """Wait for the last checkpoint and close the file of records."""
        if self._thread is not None:
            self._thread.close()
        if self._writer is not None:
            self._writer.close()
