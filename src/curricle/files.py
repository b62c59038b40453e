"""How is a file or folder written so that a crash never leaves half of it?

Everything is written beside its final name, flushed to disk and renamed. A reader sees the old
state or the new one, never something between; only while one folder replaces another is there a
moment with neither, in which a crash leaves the old one in a hidden folder beside.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which becomes `path` when the block ends without an error.

    Yields:
        The file to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, keep_if_holds: str | None = None) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `path` when the block ends without an error.

    Args:
        path: Final place.
        keep_if_holds: Name of a file by which a folder that another process has made meanwhile
            is known to be whole, and stays. None replaces whatever is there.

    Yields:
        The folder to fill.

    Raises:
        OSError: If the disk refuses; what was there stays, and nothing else is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Only its owner may enter what `mkdtemp` makes, so the folder is one inside it.
    hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    temporary, old = hidden / "new", hidden / "old"
    temporary.mkdir()
    try:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            _flush(file)
        if path.exists() and keep_if_holds is None:
            path.rename(old)
        temporary.rename(path)
        _flush(path.parent)
    except OSError:
        if old.exists() and not path.exists():
            old.rename(path)
        # Losing the race against another process that builds the same thing is no error.
        if keep_if_holds is None or not (path / keep_if_holds).is_file():
            raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
