"""Tokenized texts on disk, cached between runs.

A `TokenStore` is a long row of token ids with its vocabulary. On disk it is a folder with
`tokens.bin` (little-endian, two or four bytes a token), which is memory-mapped, and
`manifest.json` with its size and hash.

Axes: token (places in the whole text).

Design: a folder is written beside its final place, flushed and renamed, so it is never incomplete;
opening compares size and SHA-256 with the manifest, so a damaged store is refused. The fingerprint
depends on the tokens and the vocabulary alone, not on the place or the version that wrote them.
Nothing here needs the `tokenizers` package.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from filelock import FileLock
from jaxtyping import Integer, UInt

from curricle.errors import CheckpointError, DataError, SpecError, reason
from curricle.files import content_digest, new_folder
from curricle.values import Plain, fingerprint, parse, plain, value
from curricle.yaml_specs import from_json

FORMAT = 1
"""Version of the layout of a store; increased when old folders can no longer be read."""
MANIFEST = "manifest.json"
TOKENS = "tokens.bin"
LOCK = "lock"
"""File beside an unfinished folder, locked by the process that writes it."""
NEWBORN_SECONDS = 5.0
"""Age up to which the lock file of an unfinished folder may not be locked yet."""


@final
@value
class Vocabulary:
    """Properties of token ids that streams need."""

    size: int
    """Number of ids; every token is smaller."""
    special: tuple[int, ...] = ()
    """Ids that are never scored, masked or sampled: padding, unknown, mask, start of a document."""
    mask: int | None = None
    """Id that replaces a masked token; None if the vocabulary has none."""

    def __post_init__(self) -> None:
        """Check that special ids exist and that others remain to be scored.

        Raises:
            SpecError: If not.
        """
        special = (*self.special, *(() if self.mask is None else (self.mask,)))
        for number in special:
            if not 0 <= number < self.size:
                raise SpecError(
                    f"'special' and 'mask' must be ids below the size {self.size}; got {number}"
                )
        if len(set(special)) >= self.size:
            raise SpecError(f"'size' must leave an id that is not special; got {self.size}")


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenStore:
    """A tokenized text with its vocabulary."""

    tokens: UInt[np.ndarray, " token"]
    """The text as ids; memory-mapped, or an array."""
    vocabulary: Vocabulary
    """Vocabulary of the ids."""
    fingerprint: str
    """Digest of the tokens and the vocabulary."""


def write_store(
    folder: Path, pieces: Iterable[Integer[np.ndarray, " _"]], vocabulary: Vocabulary
) -> None:
    """Write a store, piece after piece; an existing folder is not replaced.

    Args:
        folder: Final place; its parent is created if needed.
        pieces: The text as ids, in order.
        vocabulary: Vocabulary with all ids.
    """

    def fill(building: Path) -> Plain:
        dtype, digest, count = _dtype(vocabulary), hashlib.sha256(), 0
        with (building / TOKENS).open("wb") as file:
            for piece in pieces:
                content = _narrowed(piece, vocabulary).tobytes()
                digest.update(content)
                count += len(content) // dtype.itemsize
                file.write(content)
        facts: Plain = {"tokens": count, "sha256": digest.hexdigest()}
        return facts | {"vocabulary": plain(vocabulary)}

    write_folder(folder, fill)


def store_in_memory(
    pieces: Iterable[Integer[np.ndarray, " _"]], vocabulary: Vocabulary
) -> TokenStore:
    """Return a store that is kept in memory; its digest is that of the same store on disk.

    Args:
        pieces: The text as ids, in order.
        vocabulary: Vocabulary with all ids.
    """
    narrowed = [_narrowed(piece, vocabulary) for piece in pieces]
    tokens = np.concatenate([np.empty(0, dtype=_dtype(vocabulary)), *narrowed])
    sha256 = hashlib.sha256(tokens.tobytes()).hexdigest()
    return TokenStore(tokens=tokens, vocabulary=vocabulary, fingerprint=_digest(sha256, vocabulary))


def open_store(folder: Path) -> TokenStore:
    """Return the store in a folder, with memory-mapped tokens.

    Args:
        folder: Folder written by `write_store`.

    Raises:
        CheckpointError: If a file is missing, damaged or of another format.
    """
    manifest = read_manifest(folder)
    try:
        vocabulary = parse(Vocabulary, manifest["vocabulary"])
        count, sha256 = int(manifest["tokens"]), str(manifest["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{str(folder / MANIFEST)!r} does not describe a token store: {error}"
        ) from None
    path, dtype = folder / TOKENS, _dtype(vocabulary)
    size = path.stat().st_size if path.is_file() else 0
    if size != count * dtype.itemsize:
        raise CheckpointError(
            f"{str(path)!r} must hold {count * dtype.itemsize} bytes by its manifest; "
            f"got {size}; delete the folder to build it again"
        )
    require_digest(path, sha256)
    # An empty file cannot be mapped.
    tokens = np.memmap(path, dtype=dtype, mode="r") if count else np.empty(0, dtype=dtype)
    return TokenStore(tokens=tokens, vocabulary=vocabulary, fingerprint=_digest(sha256, vocabulary))


def write_folder(folder: Path, fill: Callable[[Path], Plain]) -> None:
    """Write a folder that is never incomplete.

    Args:
        folder: Final place; a folder that another process wrote meanwhile is not replaced.
        fill: Function that writes the files into a folder and returns the manifest.
    """
    with (
        new_folder(folder, keep_if_holds=MANIFEST) as building,
        _locked(building.parent / LOCK),
    ):
        manifest = {"format": FORMAT} | fill(building)
        (building / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process; see `remove_leftovers`."""
    lock = FileLock(path)
    # Without locks, as on some network file systems, leftovers of killed processes stay.
    with suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(parent: Path) -> None:
    """Remove unfinished folders of killed processes.

    Folders that another process is writing are locked and stay. Links are not followed.

    Args:
        parent: Folder of stores; need not exist.
    """
    for hidden in parent.glob(f".*/{LOCK}"):
        folder = hidden.parent
        if folder.is_symlink() or not (folder / "new").is_dir():
            continue
        # Another process may remove it first, and `Timeout` is an `OSError` too.
        with suppress(OSError, NotImplementedError):
            is_newborn = time.time() - hidden.stat().st_mtime < NEWBORN_SECONDS
            if not is_newborn:
                with FileLock(hidden, blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)


def read_manifest(folder: Path) -> Plain:
    """Return the manifest of a folder written by `write_folder`.

    Args:
        folder: The folder.

    Raises:
        CheckpointError: If the manifest is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read as a manifest: {reason(error)}"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        actual = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(f"{str(path)!r} must have format {FORMAT}; got {actual!r}")
    return manifest


def require_digest(path: Path, sha256: str) -> None:
    """Check a file against the hash in its manifest.

    Args:
        path: The file.
        sha256: SHA-256 of its content in hexadecimal.

    Raises:
        CheckpointError: If the file is missing or differs.
    """
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} must exist by its manifest; there is none")
    if (digest := content_digest(path)) != sha256:
        raise CheckpointError(
            f"{str(path)!r} is damaged: its SHA-256 must be {sha256[:16]}...; "
            f"got {digest[:16]}...; delete the folder to build it again"
        )


def _narrowed(
    tokens: Integer[np.ndarray, " token"], vocabulary: Vocabulary
) -> UInt[np.ndarray, " token"]:
    """Return ids in their type on disk.

    Raises:
        DataError: If an id lies outside the vocabulary.
    """
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary.size:
        raise DataError(
            f"'tokens' must lie between 0 and the vocabulary's last id {vocabulary.size - 1}; "
            f"got {int(tokens.min())} to {int(tokens.max())}"
        )
    return np.ascontiguousarray(tokens, dtype=_dtype(vocabulary))


def _dtype(vocabulary: Vocabulary) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")


def _digest(sha256: str, vocabulary: Vocabulary) -> str:
    return fingerprint({"tokens": sha256, "vocabulary": plain(vocabulary)})
