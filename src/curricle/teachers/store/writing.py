"""Opening of stores for writing: checks against what a folder holds, and files of shares.

A capture may be divided into shares, each of which is written by a process of its own into a store
below `shares` in the folder. The store takes their files when all are finished, or when the next
capture begins after an interruption.

Design: files of shares are linked into the store and listed in one new manifest before the shares
are removed. A kill at any moment leaves either the shares or a store that has their files; files
that the store has already are recognized by their hash.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from curricle.errors import CheckpointError
from curricle.files import remove_folder, remove_leftovers_of, usable_folder
from curricle.locks import locked
from curricle.teachers.store.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from curricle.teachers.store.shards import SHARD_BYTES, ShardWriter, with_files_of

SHARES = "shares"
"""Folder of the shares of a capture, below that of the store."""


@contextmanager
def open_writer(
    folder: Path, manifest: Manifest, *, shard_bytes: int = SHARD_BYTES
) -> Iterator[ShardWriter]:
    """Open a store for writing, after it has taken the files of interrupted shares.

    Args:
        folder: Where the store is or will be.
        manifest: Teacher, data and target sets of the capture.
        shard_bytes: Bytes of targets after which a file is written.

    Yields:
        The writer; no other process has one.

    Raises:
        CheckpointError: If the folder holds targets of another teacher, or in another form, or
            another process writes into it.
    """
    folder = usable_folder(folder, "folder")
    with locked(folder, remedy="wait for its end or take another folder"):
        # Read under the lock: another capture may have added targets before.
        merged = take_shares(folder, present_and_new(folder, manifest))
        yield ShardWriter(folder, merged, shard_bytes=shard_bytes)


def take_shares(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest of a store with the files of the shares of a capture, which are removed.

    Args:
        folder: Folder of the store, locked by the caller.
        manifest: Its manifest.

    Raises:
        CheckpointError: If a share is damaged, of another teacher, in another form, or another
            process still writes it.
    """
    shares = folder / SHARES
    remove_leftovers_of(folder, SHARES)
    if not shares.is_dir():
        return manifest
    taken = manifest
    for share in sorted(path for path in shares.iterdir() if path.is_dir()):
        with locked(share, remedy="wait for its end"):
            if not (share / MANIFEST).is_file():
                continue
            stored = read_manifest(share)
            merged = _merged(share, stored, manifest)
            taken = replace(taken, teacher=merged.teacher, sections=merged.sections)
            taken = with_files_of(folder, taken, share, stored.shards)
    if taken.shards != manifest.shards:
        write_manifest(folder, taken)
    remove_folder(shares)
    return taken


def present_and_new(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest of a folder during a capture: present and new target sets.

    Args:
        folder: Where the store is or will be.
        manifest: Teacher, data and target sets of the capture.

    Raises:
        CheckpointError: If the two do not go together.
    """
    if not (folder / MANIFEST).is_file():
        return manifest
    return _merged(folder, read_manifest(folder), manifest)


def _merged(folder: Path, stored: Manifest, manifest: Manifest) -> Manifest:
    # The new digests win, so the loop compares each stored one with its new one, if there is one.
    both = {**stored.teacher.weights, **manifest.teacher.weights}
    for reference, digest in stored.teacher.weights.items():
        if both[reference] != digest:
            raise CheckpointError(
                f"{str(folder)!r} must hold targets of this teacher {reference!r}, whose weights "
                f"have the SHA-256 {both[reference][:16]}...; got {digest[:16]}...; capture into "
                f"another folder"
            )
    if stored.teacher.precision != manifest.teacher.precision:
        raise CheckpointError(
            f"{str(folder)!r} must hold targets of a teacher in {manifest.teacher.precision!r}; "
            f"got {stored.teacher.precision!r}; capture into another folder"
        )
    for target_set in manifest.sections:
        stored_set = stored.target_set(target_set.name)
        # Names leave the codec out, so a folder keeps each kind of target in one form.
        if stored_set is not None and stored_set != target_set:
            raise CheckpointError(
                f"{str(folder)!r} must hold targets packed as {target_set.codec}; got "
                f"{stored_set.codec}; capture into another folder"
            )
    target_sets = {
        target_set.name: target_set for target_set in (*stored.sections, *manifest.sections)
    }
    return replace(
        stored,
        teacher=replace(manifest.teacher, weights=both),
        sections=tuple(target_sets.values()),
    )
