"""Locks of folders that have one writer at a time.

A lock is a file lock of the operating system on a hidden file; it ends with its process, also when
that is killed. A note beside it holds process, machine and start of the owner, for the error of a
second writer; the note of a killed process is overwritten by the next owner.

Design: the lock file stays after its release. Removing it would give two processes a lock each: on
the removed file and on its successor. On file systems without locks, `filelock` falls back to the
existence of a file.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from curricle.errors import CheckpointError
from curricle.files import disk_errors
from curricle.yaml_specs import from_json

LOCK: Final = ".lock"
"""Lock of the writer of a folder."""
COMMAND_LOCK: Final = ".command.lock"
"""Lock of the command that works in a run folder, whose processes lock folders below."""


@contextmanager
def locked(folder: Path, *, name: str = LOCK, remedy: str = "") -> Iterator[None]:
    """Keep other writers out of a folder while the block runs.

    Args:
        folder: The folder; it is made if needed.
        name: Name of the lock file.
        remedy: Remedy for the end of the error.

    Yields:
        Nothing.

    Raises:
        CheckpointError: If another process, or another run of this one, writes into the folder; it
            is named.
    """
    path, note = folder / name, folder / f"{name}-owner"
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            end = f"; {remedy}" if remedy else ""
            raise CheckpointError(
                f"{str(folder)!r} must have one writer at a time; {_owner(note)} writes into it"
                f"{end}"
            ) from None
        except NotImplementedError:
            raise CheckpointError(
                f"{str(folder)!r} must lie on a file system with file locks; it does not"
            ) from None
    try:
        _note_owner(note)
        yield
    finally:
        # Before the release, so that the note of a next owner is never the one removed.
        note.unlink(missing_ok=True)
        lock.release()


def _note_owner(note: Path) -> None:
    started = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    owner = {"pid": os.getpid(), "host": platform.node(), "started": started}
    with disk_errors(note):
        # A link of that name would be written through.
        note.unlink(missing_ok=True)
        note.write_text(json.dumps(owner), encoding="utf-8")


def _owner(note: Path) -> str:
    """Return the owner of a lock, in words."""
    try:
        owner = from_json(note.read_bytes())
        return f"process {owner['pid']} on {owner['host']!r}, since {owner['started']},"
    except (OSError, ValueError, KeyError, TypeError):
        # It has the lock but has not written its note yet.
        return "another process"
