"""Return of damaged runs to their last whole checkpoint, on request and on record.

`set_damaged_aside` looks at the checkpoints of every run below a folder. Where the newest are
damaged and an older one is whole, the damaged ones get the name `damaged-step-N`, which nothing
reads; records that are damaged after that checkpoint are copied to `damaged-records.jsonl` and cut.
Files that were set aside are noted in `fallbacks.json` beside the checkpoints, and the run that
goes on writes each note into its records, as a `RecoveryRecord`.

Design: nothing is removed, and a run without an older whole checkpoint is left as it is.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import final

from curricle.checksums import SEAL, check_sealed, read_sealed, sealed_names, write_sealed
from curricle.errors import CheckpointError, reason
from curricle.locks import locked
from curricle.records import (
    RECORDS,
    EndRecord,
    RecordWriter,
    RecoveryRecord,
    Usage,
    check_head,
    read_records,
)
from curricle.training.loop.checkpoints import CHECKPOINTS, REMEDY, checkpoints_in, read_state
from curricle.values import parse, plain, value

NOTES = "fallbacks.json"
"""File beside the checkpoints that lists files that were set aside."""
ASIDE = "damaged-"
"""Beginning of the names of files that were set aside."""


@final
@value
class Fallback:
    """Return of one run to an older checkpoint."""

    fault: str
    """Sentence about the damage."""
    action: str
    """A file that was set aside, and the step to which the run returns unless it is finished."""


def set_damaged_aside(folder: Path) -> list[Fallback]:
    """Set damaged checkpoints of all runs below a folder aside where an older one is whole.

    Args:
        folder: A run folder, or one of a comparison or recipe.

    Returns:
        The damaged files.

    Raises:
        CheckpointError: If a run that is not finished has damaged checkpoints only, or another
            process writes into it.
    """
    fallbacks = []
    for checkpoints in sorted(folder.rglob(CHECKPOINTS)):
        if (checkpoints.parent / RECORDS).is_file() and checkpoints_in(checkpoints):
            with locked(checkpoints.parent, remedy="wait for its end"):
                fallbacks += _of_run(checkpoints.parent, checkpoints)
    return fallbacks


def _of_run(run: Path, checkpoints: Path) -> list[Fallback]:
    """Return the damaged files of one run after setting them aside.

    Raises:
        CheckpointError: If a run that is not finished has no whole checkpoint.
    """
    damaged: list[tuple[Path, str]] = []
    newest_first = checkpoints_in(checkpoints)[::-1]
    for checkpoint in newest_first:
        fault = _fault(run, checkpoint)
        if not fault:
            break
        damaged.append((checkpoint, fault))
    intact = newest_first[len(damaged) :]
    is_finished = _is_finished(run)
    if not intact and not is_finished:
        raise CheckpointError(
            f"{str(checkpoints)!r} must hold a whole checkpoint to fall back to; all "
            f"{len(damaged)} are damaged: {damaged[0][1]}"
        )
    place = "the run is finished" if is_finished else f"the run returns to {intact[0].name}"
    fallbacks = []
    for checkpoint, fault in damaged:
        aside = _set_aside(checkpoint)
        action = f"{checkpoint.name!r} was renamed to {aside.name!r}; {place}"
        fallbacks.append(Fallback(fault=fault, action=action))
    copy = _unused(run / RECORDS)
    if intact and (fault := _cut_records(run, intact[0], copy)):
        action = f"{RECORDS!r} was copied to {copy.name!r} and cut; {place}"
        fallbacks.append(Fallback(fault=fault, action=action))
    # The records of a finished run have ended.
    if fallbacks and not is_finished:
        notes = [*read_fallbacks(checkpoints), *fallbacks]
        write_sealed(checkpoints / NOTES, {"fallbacks": [plain(note) for note in notes]})
    return fallbacks


def _fault(run: Path, checkpoint: Path) -> str:
    """Return the damage in a checkpoint or in the records before it; empty if there is none."""
    try:
        names = sealed_names(checkpoint)
        # Without its manifest a checkpoint is damaged, too.
        check_sealed(checkpoint, names or [SEAL])
        state = read_state(checkpoint)
        check_head(run / RECORDS, state.records_bytes, state.records_head)
    except CheckpointError as error:
        # The remedies of the sentence are what happens here.
        return str(error).removeprefix(REMEDY).partition("; remove the folder")[0]
    return ""


def _is_finished(run: Path) -> bool:
    try:
        records = list(read_records(run / RECORDS))
    except CheckpointError:
        return False
    return bool(records) and isinstance(records[-1], EndRecord)


def _set_aside(path: Path) -> Path:
    """Return the new name of a checkpoint after renaming it."""
    aside = _unused(path)
    path.rename(aside)
    return aside


def _unused(path: Path) -> Path:
    """Return the first name for a file that is set aside that no earlier call has taken."""
    aside = path.with_name(f"{ASIDE}{path.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{ASIDE}{path.stem}-{number}{path.suffix}")
    return aside


def _cut_records(run: Path, checkpoint: Path, copy: Path) -> str:
    """Return the damage in the records after a checkpoint, which are copied and cut there."""
    path, state = run / RECORDS, read_state(checkpoint)
    try:
        list(read_records(path))
    except CheckpointError as error:
        shutil.copyfile(path, copy)
        # It counts the lines that are dropped.
        (run / SEAL).unlink(missing_ok=True)
        keep = state.records_bytes
        RecordWriter(path, keep_bytes=keep, head=state.records_head).close()
        return str(error)
    return ""


def read_fallbacks(checkpoints: Path) -> list[Fallback]:
    """Return the files that were set aside in a folder of checkpoints.

    Args:
        checkpoints: The folder.

    Raises:
        CheckpointError: If the file of the notes is damaged.
    """
    path = checkpoints / NOTES
    if not path.is_file():
        return []
    try:
        return [parse(Fallback, note) for note in read_sealed(path)["fallbacks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{str(path)!r} must hold notes of 'resume --fallback': {reason(error)}; remove it"
        ) from None


def missing_notes(
    checkpoints: Path, records: Path, *, stage: str, usage: Usage
) -> Iterator[RecoveryRecord]:
    """Yield the records of returns that a run has not written yet.

    Args:
        checkpoints: Folder of its checkpoints.
        records: Its records up to the checkpoint from which it goes on.
        stage: Name of the open stage.
        usage: Consumed until then.
    """
    notes = read_fallbacks(checkpoints)
    if not notes:
        return
    known = [record for record in read_records(records) if isinstance(record, RecoveryRecord)]
    texts = {(record.fault, record.action) for record in known}
    for note in notes:
        if (note.fault, note.action) not in texts:
            yield RecoveryRecord(stage=stage, fault=note.fault, action=note.action, usage=usage)
