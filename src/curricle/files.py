"""Atomic writing, hashing and safe removal of files and folders.

Files and folders are written under a temporary name, flushed to disk and renamed. A reader sees the
old state or the new state, never a mixture; only while a folder replaces another is there a moment
with neither, in which a crash leaves the old folder in a hidden folder beside its place.

Design: only this module turns errors of the operating system (no space, no permission, a name too
long) into a `CheckpointError` that names the path. Nothing is removed through a symbolic link.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curricle.errors import CheckpointError, reason

LONGEST_NAME = 255
"""Bytes of a file name that common file systems allow."""


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `CheckpointError` about a path.

    Yields:
        Nothing.

    Raises:
        CheckpointError: If the block raises an `OSError`.
    """
    try:
        yield
    except CheckpointError:
        # It names its own path already.
        raise
    except OSError as error:
        place = error.filename
        where = f" ({str(place)!r})" if place is not None and Path(str(place)) != path else ""
        raise CheckpointError(f"{str(path)!r} cannot be written: {reason(error)}{where}") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Provide a temporary file, which becomes `path` when the block ends without an error.

    Yields:
        The file to write.

    Raises:
        CheckpointError: If it cannot be written; the old file stays, and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link of that name would be written through.
        temporary.unlink(missing_ok=True)
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, keep_if_holds: str | None = None) -> Iterator[Path]:
    """Provide an empty folder, which becomes `path` when the block ends without an error.

    Args:
        path: Final place.
        keep_if_holds: Name of a file that marks a complete folder: such a folder, made by another
            process in the meantime, stays. None replaces any folder.

    Yields:
        The folder to fill.

    Raises:
        CheckpointError: If it cannot be written, or `path` is a symbolic link, which is never
            replaced; the old folder stays, and nothing is left behind.
        OSError: Never; a `CheckpointError` takes its place.
    """
    if keep_if_holds is None and path.is_symlink():
        raise CheckpointError(
            f"{str(path)!r} must be a folder to be replaced; it is a symbolic link to "
            f"{str(path.resolve())!r}"
        )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # `mkdtemp` makes a folder that only its owner may enter, so the new folder lies inside it.
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
            # Losing the race against another process that builds the same folder is no error.
            if keep_if_holds is None or not (path / keep_if_holds).is_file():
                raise
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder with its contents; links inside are removed, never their targets.

    The folder disappears in one step: a kill leaves it intact, or a hidden folder beside its place,
    which `remove_leftovers` removes.

    Raises:
        CheckpointError: If it is a symbolic link itself, or cannot be removed.
        OSError: Never; a `CheckpointError` takes its place.
    """
    if path.is_symlink():
        raise CheckpointError(
            f"{str(path)!r} must be a folder to be removed; it is a symbolic link to "
            f"{str(path.resolve())!r}"
        )
    with disk_errors(path):
        try:
            hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        except OSError:
            # A full disk has no room for a folder, and a long name none for a longer one.
            shutil.rmtree(path)
            return
        try:
            path.rename(hidden / "removed")
        except OSError:
            hidden.rmdir()
            raise
        shutil.rmtree(hidden)


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove temporary files of killed writers from a folder with a single writer.

    A folder that was about to be replaced is restored if its place is empty.

    Args:
        folder: The folder; nothing happens if it does not exist.
        names: Regular expression of the final names of files and folders that are written there.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    # The second is the temporary file of safetensors.
    file = re.compile(rf"\.(?:{names})\.\d+\.tmp|\.tmp[A-Za-z0-9]{{6}}")
    hidden = re.compile(rf"\.({names})-[a-z0-9_]{{8}}")
    for path in list(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_file() and file.fullmatch(path.name):
            path.unlink()
        elif path.is_dir() and (match := hidden.fullmatch(path.name)):
            place = folder / match.group(1)
            if (path / "old").is_dir() and not place.exists():
                (path / "old").rename(place)
            shutil.rmtree(path, ignore_errors=True)


def remove_leftovers_of(folder: Path, *names: str) -> None:
    """Remove temporary files that killed writers left of some files of a folder.

    Args:
        folder: The folder, with a single writer.
        names: Final names of the files.
    """
    remove_leftovers(folder, "|".join(map(re.escape, names)))


def inside(folder: Path, name: str) -> Path:
    """Return the file of a name in a folder, where the name was read from a file.

    Args:
        folder: The folder.
        name: A plain name, without folders.

    Raises:
        CheckpointError: If the name would leave the folder, or the file is a symbolic link.
    """
    if not is_plain_name(name):
        raise CheckpointError(
            f"{str(folder)!r} must list plain names of files inside it; got {name!r}"
        )
    path = folder / name
    if path.is_symlink():
        raise CheckpointError(
            f"{str(path)!r} must be a file of its folder; it is a symbolic link to "
            f"{str(path.readlink())!r}"
        )
    return path


def is_plain_name(name: str) -> bool:
    """Return whether a text is the name of a file, without a folder in front of it."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    # A backslash and a colon lead elsewhere on Windows.
    is_name = name not in {"", ".", ".."} and not set(name) & set("/\\:\0")
    return is_name and length <= LONGEST_NAME


def usable_folder(folder: str | Path, name: str) -> Path:
    """Return a path at which a folder is or can be made.

    Args:
        folder: The path as the user wrote it.
        name: Name of the argument, for the error.

    Raises:
        CheckpointError: If the path is empty, holds a zero byte or a name too long, or a file is in
            the way.
    """
    text = os.fspath(folder)
    rule = f"{name!r} must be a folder that can be written"
    if not text:
        raise CheckpointError(f"{rule}; got an empty text")
    if "\0" in text:
        raise CheckpointError(f"{rule}; got {text!r} with a zero byte")
    path = Path(text)
    longest = max(path.parts, key=lambda component: len(os.fsencode(component)))
    if len(os.fsencode(longest)) > LONGEST_NAME:
        raise CheckpointError(
            f"{rule}; got a name of {len(os.fsencode(longest))} bytes, at most {LONGEST_NAME} are "
            f"allowed: {longest[:40]!r}..."
        )
    try:
        blocking = next(
            (candidate for candidate in (path, *path.parents) if candidate.exists()), None
        )
    except OSError as error:
        raise CheckpointError(f"{rule}; got {text[:80]!r}: {reason(error)}") from None
    if blocking is not None and not blocking.is_dir():
        raise CheckpointError(f"{rule}; got {text!r}, where the file {str(blocking)!r} exists")
    return path


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
