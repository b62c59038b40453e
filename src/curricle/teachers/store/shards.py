"""Files of stored targets, with rows indexed by example.

A shard is a safetensors file with `keys` (of each example, see `data.example_keys`), `counts` (rows
of each example) and the encoded rows. Shards are memory-mapped, so a store may exceed the memory;
only the key and the place of every example are in memory.

Axes: example (rows of a batch), row (counted positions of all examples).

Design: a shard is written beside its final name, renamed, then listed in the manifest. So a killed
process loses at most the rows of one shard, and incomplete files are never read. Adding to a store
verifies the hashes of its files, because their examples are not captured again.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import safetensors
import torch
from jaxtyping import Float64, Int, Shaped
from torch import Tensor

from curricle.data.example_keys import KEY_BYTES
from curricle.errors import CheckpointError
from curricle.files import content_digest, inside, new_file, remove_leftovers
from curricle.models.weights import save_tensors
from curricle.seeding import numpy_generator
from curricle.teachers.store.codecs import Entries, Uniforms
from curricle.teachers.store.manifest import MANIFEST, Manifest, Shard, TargetSet, write_manifest

SHARD_BYTES = 2**26
"""Bytes of targets that are collected in memory before a file is written."""


def uniforms(
    target_set: TargetSet, keys: Shaped[np.ndarray, " example"], counts: Int[np.ndarray, " example"]
) -> Uniforms:
    """Return a source of random numbers for the rows of examples.

    Args:
        target_set: The target set; its codec may have a seed.
        keys: Keys of the examples.
        counts: Rows of each example.
    """
    seed = getattr(target_set.codec, "seed", 0)

    def draw(num_samples: int) -> Float64[np.ndarray, "row draw"]:
        # One generator per example, seeded by its key: the same samples in every batch and epoch,
        # for every number of processes, and after a capture that was continued.
        words = np.ascontiguousarray(keys).view("<u4").reshape(-1, KEY_BYTES // 4)
        uniforms_per_example = [
            numpy_generator(seed, "targets", *map(int, word)).random((int(count), num_samples))
            for word, count in zip(words, counts, strict=True)
        ]
        # `concatenate` refuses an empty list, which a batch without new examples gives.
        if not uniforms_per_example:
            return np.empty((0, num_samples))
        return np.concatenate(uniforms_per_example)

    return draw


@final
class StoredKeys:
    """Keys of the examples of each target set."""

    def __init__(self, keys: Mapping[str, set[bytes]]) -> None:
        """Take keys by name of the target set.

        Args:
            keys: The keys; they are kept, and added to.
        """
        self._keys = keys

    def find_missing(
        self, target_set: TargetSet, keys: Shaped[np.ndarray, " example"]
    ) -> Shaped[np.ndarray, " example"]:
        """Return a mask of the examples that are neither stored nor earlier in the batch."""
        stored = self._keys[target_set.name]
        is_first = np.zeros(len(keys), dtype=np.bool_)
        is_first[np.unique(keys, return_index=True)[1]] = True
        is_new = [bytes(key) not in stored for key in _raw_bytes(keys)]
        return is_first & np.array(is_new, dtype=np.bool_)

    def add(self, target_set: TargetSet, keys: Shaped[np.ndarray, " example"]) -> None:
        """Add the keys of examples."""
        self._keys[target_set.name].update(bytes(key) for key in _raw_bytes(keys))


def read_keys(folder: Path, manifest: Manifest) -> StoredKeys:
    """Return the keys of all examples of a store; its files are not hashed.

    Args:
        folder: Folder of the store.
        manifest: Its manifest.
    """
    return StoredKeys(
        {
            target_set.name: {
                bytes(key)
                for shard in manifest.of(target_set)
                for key in open_shard(folder, shard)["keys"].numpy()
            }
            for target_set in manifest.sections
        }
    )


@final
class ShardWriter:
    """Writer of a new store or of additions to an existing one."""

    def __init__(self, folder: Path, manifest: Manifest, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Open a folder for writing.

        Args:
            folder: Folder of the store.
            manifest: Target sets of the store; its shards are the existing ones.
            shard_bytes: Bytes after which a file is written.
        """
        self._folder, self._shard_bytes = folder, shard_bytes
        # The caller has the lock of the store, so no other process owns these temporary files.
        remove_leftovers(folder, rf"{re.escape(MANIFEST)}|[\w-]+\.safetensors")
        self.manifest = manifest
        for shard in manifest.shards:
            check_content(folder, shard)
        self._keys = read_keys(folder, manifest)
        self._pending: dict[str, list[dict[str, Tensor]]] = {
            target_set.name: [] for target_set in manifest.sections
        }
        # An existing manifest is replaced only with the first new shard: until then it is right,
        # and a failing capture leaves the folder unchanged.
        if not (folder / MANIFEST).is_file():
            write_manifest(folder, manifest)

    def find_missing(
        self, target_set: TargetSet, keys: Shaped[np.ndarray, " example"]
    ) -> Shaped[np.ndarray, " example"]:
        """Return a mask of the examples to store: neither stored nor earlier in the batch."""
        return self._keys.find_missing(target_set, keys)

    def add(
        self,
        target_set: TargetSet,
        keys: Shaped[np.ndarray, " example"],
        counts: Int[np.ndarray, " example"],
        entries: Entries,
    ) -> None:
        """Add targets of examples that are not stored yet.

        Args:
            target_set: The target set.
            keys: Keys of the examples.
            counts: Rows of each example.
            entries: Encoded rows of all examples, in their order.
        """
        # Pending examples count as stored, or their repetition in the next batch would be added.
        self._keys.add(target_set, keys)
        raw_keys = _raw_bytes(keys)
        tensors = {name: entry.detach().cpu() for name, entry in entries.items()}
        tensors["keys"] = torch.from_numpy(raw_keys.view(np.uint8).reshape(-1, KEY_BYTES).copy())
        tensors["counts"] = torch.from_numpy(counts.astype(np.int32))
        pending = self._pending[target_set.name]
        pending.append(tensors)
        num_bytes = sum(tensor.nbytes for batch in pending for tensor in batch.values())
        if num_bytes >= self._shard_bytes:
            self._write(target_set)

    def finish(self, target_sets: Sequence[TargetSet]) -> Manifest:
        """Return the manifest after writing pending targets and marking target sets as finished.

        Args:
            target_sets: The target sets of the capture, also those without new targets.
        """
        for target_set in target_sets:
            if self._pending[target_set.name]:
                self._write(target_set)
        self.manifest = self.manifest.with_finished(target_sets)
        write_manifest(self._folder, self.manifest)
        return self.manifest

    def _write(self, target_set: TargetSet) -> None:
        pending = self._pending[target_set.name]
        tensors = {
            name: torch.cat([batch[name] for batch in pending]).contiguous() for name in pending[0]
        }
        path = self._folder / _next_file(self.manifest, target_set.name)
        save_tensors(tensors, path, metadata={"section": target_set.name})
        shard = Shard(
            file=path.name,
            section=target_set.name,
            examples=len(tensors["counts"]),
            rows=int(tensors["counts"].sum()),
            size=path.stat().st_size,
            sha256=content_digest(path),
        )
        # The manifest follows the file: after a kill between the two, the unlisted file is
        # overwritten by the next shard of the same number.
        self.manifest = self.manifest.with_shard(shard)
        write_manifest(self._folder, self.manifest)
        pending.clear()


def with_files_of(
    folder: Path, manifest: Manifest, source: Path, shards: Sequence[Shard]
) -> Manifest:
    """Return the manifest of a store with files of another one, which keeps them.

    The files are linked, or copied where the file system has no links. The manifest is not written:
    until then the new files are not of the store, and a repetition after a kill replaces them.

    Args:
        folder: Folder of the store.
        manifest: Its manifest.
        source: Folder of the other store, of the same target sets.
        shards: Its files; those of a content that the store has already are left out.

    Raises:
        CheckpointError: If a file is damaged.
    """
    digests = {shard.sha256 for shard in manifest.shards}
    for shard in shards:
        if shard.sha256 in digests:
            continue
        check_content(source, shard)
        file = _next_file(manifest, shard.section)
        with new_file(folder / file) as temporary:
            try:
                temporary.hardlink_to(source / shard.file)
            except OSError:
                shutil.copyfile(source / shard.file, temporary)
        manifest = manifest.with_shard(replace(shard, file=file))
    return manifest


def _next_file(manifest: Manifest, section: str) -> str:
    """Return the name of the next file of a target set."""
    number = sum(shard.section == section for shard in manifest.shards)
    return f"{section}-{number:05d}.safetensors"


def _raw_bytes(keys: Shaped[np.ndarray, " example"]) -> Shaped[np.ndarray, " example"]:
    """Return keys as raw bytes; numpy's byte strings would drop zeros at their ends."""
    return np.ascontiguousarray(keys).view(f"V{KEY_BYTES}")


def check_content(folder: Path, shard: Shard) -> None:
    """Check the content of a file against the manifest.

    Raises:
        CheckpointError: If the file is missing or its content differs.
    """
    path = inside(folder, shard.file)
    # The size alone reveals most damage, before the whole file is hashed.
    _check_size(path, shard)
    if (digest := content_digest(path)) != shard.sha256:
        rule = f"must have the SHA-256 {shard.sha256[:16]}..."
        raise CheckpointError(_contradiction(path, rule, f"{digest[:16]}..."))


def _check_size(path: Path, shard: Shard) -> None:
    """Check that a file exists with the size in the manifest.

    Raises:
        CheckpointError: If not.
    """
    size = path.stat().st_size if path.is_file() else None
    if size != shard.size:
        actual = "no file" if size is None else str(size)
        raise CheckpointError(_contradiction(path, f"must hold {shard.size} bytes", actual))


def _contradiction(path: Path, rule: str, actual: str) -> str:
    """Return an error sentence for a file and a manifest; either may be the wrong one."""
    return (
        f"{str(path)!r} {rule} as listed in {str(path.with_name(MANIFEST))!r}; got {actual}; one "
        f"of the two is damaged or of another store: restore it, or capture into a new folder"
    )


def open_shard(folder: Path, shard: Shard) -> dict[str, Tensor]:
    """Return the memory-mapped tensors of a shard.

    Raises:
        CheckpointError: If the file is missing, or its size or shapes differ from the manifest.
    """
    path = inside(folder, shard.file)
    _check_size(path, shard)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{str(path)!r} must be a safetensors file: {error}; restore it, or capture into a new "
            f"folder"
        ) from None
    # Everything but the keys and counts of examples has one entry a row.
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    actual = sizes.pop("keys", None), sizes.pop("counts", None), *sizes.values()
    expected = shard.examples, shard.examples, *(shard.rows for _ in sizes)
    if actual != expected:
        rule = f"must hold {shard.examples} examples and {shard.rows} rows"
        raise CheckpointError(_contradiction(path, rule, str(actual)))
    return tensors
