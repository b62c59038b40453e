"""Files of stored targets, indexed by example.

A shard is a safetensors file with `keys` (one per example, see `data.example_keys`), `counts` (rows
of each example) and the encoded rows. Shards are memory-mapped, so a store may be larger than the
memory; only the key and the location of each example are loaded.

Axes: example (rows of a batch), row (counted positions of all examples).

Design: a shard is written to a temporary name, renamed, then listed in the manifest. A killed
process loses at most the rows of one shard, and incomplete files are never read. A writer that
extends a store checks the hashes of the existing files, since their examples count as done.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import safetensors
import torch
from jaxtyping import Float64, Int, Shaped
from torch import Tensor

from curricle.data.example_keys import KEY_BYTES
from curricle.errors import CheckpointError
from curricle.files import content_digest, inside, remove_leftovers
from curricle.models.weights import save_tensors
from curricle.seeding import numpy_generator
from curricle.teachers.store.codecs import Entries, Uniforms
from curricle.teachers.store.manifest import MANIFEST, Manifest, Section, Shard, write_manifest

SHARD_BYTES = 2**26
"""Bytes of targets collected in memory before a shard is written."""


def uniforms(
    section: Section, keys: Shaped[np.ndarray, " example"], counts: Int[np.ndarray, " example"]
) -> Uniforms:
    """Return the random numbers of the rows of some examples.

    Args:
        section: The kind of target; its codec may have a seed.
        keys: Keys of the examples.
        counts: Number of rows of each example.
    """
    # Seeding by the key makes the draws of an example independent of its batch and position, so
    # that an interrupted capture, or one with another batch size, stores the same classes.
    seed = getattr(section.codec, "seed", 0)

    def drawn(number: int) -> Float64[np.ndarray, "row draw"]:
        words = np.ascontiguousarray(keys).view("<u4").reshape(-1, KEY_BYTES // 4)
        numbers = [
            numpy_generator(seed, "targets", *map(int, word)).random((int(count), number))
            for word, count in zip(words, counts, strict=True)
        ]
        return np.concatenate(numbers) if numbers else np.empty((0, number))

    return drawn


@final
class ShardWriter:
    """Writes targets into a new folder, or extends an existing store."""

    def __init__(self, folder: Path, manifest: Manifest, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Create or extend a store.

        Args:
            folder: Folder of the store.
            manifest: Sections to write, and the shards that exist already.
            shard_bytes: Bytes after which a file is written.
        """
        self._folder, self._shard_bytes = folder, shard_bytes
        # The caller holds the lock of the store, so temporary files belong to killed processes.
        remove_leftovers(folder, rf"{re.escape(MANIFEST)}|[\w-]+\.safetensors")
        self.manifest = manifest
        self._known = {
            section.name: _known_keys(folder, manifest, section) for section in manifest.sections
        }
        self._pending: dict[str, list[dict[str, Tensor]]] = {name: [] for name in self._known}
        # An existing manifest stays unchanged until the first new shard: it still describes the
        # folder exactly.
        if not (folder / MANIFEST).is_file():
            write_manifest(folder, manifest)

    def lacks(
        self, section: Section, keys: Shaped[np.ndarray, " example"]
    ) -> Shaped[np.ndarray, " example"]:
        """Return for each example whether it is neither stored nor earlier in the batch."""
        stored = self._known[section.name]
        # Of equal examples within a batch only the first is captured.
        is_first = np.zeros(len(keys), dtype=np.bool_)
        is_first[np.unique(keys, return_index=True)[1]] = True
        return is_first & np.array(
            [bytes(key) not in stored for key in _whole(keys)], dtype=np.bool_
        )

    def add(
        self,
        section: Section,
        keys: Shaped[np.ndarray, " example"],
        counts: Int[np.ndarray, " example"],
        entries: Entries,
    ) -> None:
        """Add the targets of new examples.

        Args:
            section: The kind of target.
            keys: Keys of the examples.
            counts: Number of rows of each example.
            entries: Encoded rows of all examples, in their order.
        """
        # Marked as stored at once, so that a repetition before the shard is written is skipped.
        self._known[section.name].update(bytes(key) for key in _whole(keys))
        # Pending rows wait in main memory: the accelerator is needed for the forward passes.
        tensors = {name: entry.detach().cpu() for name, entry in entries.items()}
        tensors["keys"] = torch.from_numpy(
            _whole(keys).view(np.uint8).reshape(-1, KEY_BYTES).copy()
        )
        tensors["counts"] = torch.from_numpy(counts.astype(np.int32))
        pending = self._pending[section.name]
        pending.append(tensors)
        num_bytes = sum(tensor.nbytes for batch in pending for tensor in batch.values())
        if num_bytes >= self._shard_bytes:
            self._write(section)

    def finish(self, sections: Sequence[Section]) -> Manifest:
        """Return the manifest after writing the pending rows and marking sections as complete.

        Args:
            sections: The captured sections, including those without new examples.
        """
        for section in sections:
            if self._pending[section.name]:
                self._write(section)
        self.manifest = self.manifest.with_end(sections)
        write_manifest(self._folder, self.manifest)
        return self.manifest

    def _write(self, section: Section) -> None:
        pending = self._pending[section.name]
        joined = {
            name: torch.cat([tensors[name] for tensors in pending]).contiguous()
            for name in pending[0]
        }
        # Continuing the count of the manifest reuses the name of a shard that was written but not
        # listed by a killed process; it is overwritten.
        number = len(self.manifest.of(section))
        path = self._folder / f"{section.name}-{number:05d}.safetensors"
        save_tensors(joined, path, metadata={"section": section.name})
        shard = Shard(
            file=path.name,
            section=section.name,
            examples=len(joined["counts"]),
            rows=int(joined["counts"].sum()),
            size=path.stat().st_size,
            sha256=content_digest(path),
        )
        self.manifest = self.manifest.with_shard(shard)
        write_manifest(self._folder, self.manifest)
        pending.clear()


def _known_keys(folder: Path, manifest: Manifest, section: Section) -> set[bytes]:
    for shard in manifest.of(section):
        check_content(folder, shard)
    keys = [open_shard(folder, shard)["keys"].numpy() for shard in manifest.of(section)]
    return {bytes(key) for shard_keys in keys for key in shard_keys}


def _whole(keys: Shaped[np.ndarray, " example"]) -> Shaped[np.ndarray, " example"]:
    """Return keys as void scalars: numpy's byte strings drop trailing zeros."""
    return np.ascontiguousarray(keys).view(f"V{KEY_BYTES}")


def check_content(folder: Path, shard: Shard) -> None:
    """Check the content of a file against the manifest.

    Raises:
        CheckpointError: If the file is missing, damaged or another one.
    """
    path = inside(folder, shard.file)
    _check_size(path, shard)
    if (digest := content_digest(path)) != shard.sha256:
        expected, actual = f"the SHA-256 {shard.sha256[:16]}...", f"{digest[:16]}..."
        raise CheckpointError(_contradiction(path, f"must have {expected}", actual))


def _check_size(path: Path, shard: Shard) -> None:
    """Check that a file exists with the size in the manifest.

    Raises:
        CheckpointError: If it is missing or has another size.
    """
    size = path.stat().st_size if path.is_file() else None
    if size != shard.size:
        actual = "no file" if size is None else str(size)
        raise CheckpointError(_contradiction(path, f"must hold {shard.size} bytes", actual))


def _contradiction(path: Path, rule: str, actual: str) -> str:
    """Return the error sentence for a file that contradicts its manifest."""
    return (
        f"{str(path)!r} {rule} as {str(path.with_name(MANIFEST))!r} says; got {actual}; one of the "
        f"two is damaged or of another store: restore it, or capture into a new folder"
    )


def open_shard(folder: Path, shard: Shard) -> dict[str, Tensor]:
    """Return the tensors of a shard, mapped from disk.

    Raises:
        CheckpointError: If the file is missing, of another size, or contradicts the manifest.
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
    # A reader indexes rows by the counts in the manifest, so shapes are compared before any row is
    # read.
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    actual = sizes.pop("keys", None), sizes.pop("counts", None), *sizes.values()
    expected = shard.examples, shard.examples, *(shard.rows for _ in sizes)
    if actual != expected:
        rule = f"must hold {shard.examples} examples and {shard.rows} rows"
        raise CheckpointError(_contradiction(path, rule, str(actual)))
    return tensors
