"""Files of stored targets, in which rows are found by their example.

A shard is one safetensors file with `keys` (one a row of it, see `data.example_keys`), `counts`
(rows of each example) and what the codec keeps of the rows. Shards are mapped into memory, so a
store may be larger than it; of every example only its key and its place are held.

Axes: example (rows of a batch), row (counted positions of all examples).

Design: a shard is written beside its final name and renamed, then listed in the manifest. So a
kill costs at most the rows of one shard, and nothing is read that is not whole. Who adds to a store
checks the hashes of the files that are there, since they are counted as done.
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
"""Bytes of targets that are collected before they are written."""


def uniforms(
    section: Section, keys: Shaped[np.ndarray, " example"], counts: Int[np.ndarray, " example"]
) -> Uniforms:
    """Return the random numbers of the rows of some examples, which depend on nothing else.

    Args:
        section: What is stored; its codec may have a seed.
        keys: Of the examples.
        counts: Rows of each.
    """
    seed = getattr(section.codec, "seed", 0)

    def drawn(number: int) -> Float64[np.ndarray, "row draw"]:
        words = np.ascontiguousarray(keys).view("<u4").reshape(-1, KEY_BYTES // 4)
        parts = [
            numpy_generator(seed, "targets", *map(int, word)).random((int(count), number))
            for word, count in zip(words, counts, strict=True)
        ]
        return np.concatenate(parts) if parts else np.empty((0, number))

    return drawn


@final
class ShardWriter:
    """Writes targets into a folder, or adds to those that are there."""

    def __init__(self, folder: Path, manifest: Manifest, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Begin or go on with a folder.

        Args:
            folder: Where the store is or will be.
            manifest: What it is to hold; shards are those that are there.
            shard_bytes: Bytes after which a file is written.
        """
        self._folder, self._shard_bytes = folder, shard_bytes
        # Whoever adds to a store holds its lock, so nobody else is writing.
        remove_leftovers(folder, rf"{re.escape(MANIFEST)}|[\w-]+\.safetensors")
        self.manifest = manifest
        self._known = {one.name: _known_keys(folder, manifest, one) for one in manifest.sections}
        self._pending: dict[str, list[dict[str, Tensor]]] = {one: [] for one in self._known}
        # Until there is more to read, what a manifest says of a folder stays true.
        if not (folder / MANIFEST).is_file():
            write_manifest(folder, manifest)

    def lacks(
        self, section: Section, keys: Shaped[np.ndarray, " example"]
    ) -> Shaped[np.ndarray, " example"]:
        """Return for each example whether its targets are not there yet, nor earlier in the row."""
        known = self._known[section.name]
        wanted = np.zeros(len(keys), dtype=np.bool_)
        wanted[np.unique(keys, return_index=True)[1]] = True
        return wanted & np.array([bytes(key) not in known for key in _whole(keys)], dtype=np.bool_)

    def add(
        self,
        section: Section,
        keys: Shaped[np.ndarray, " example"],
        counts: Int[np.ndarray, " example"],
        entries: Entries,
    ) -> None:
        """Add the targets of examples that are not there yet.

        Args:
            section: Which kind of target.
            keys: Of the examples.
            counts: Rows of each.
            entries: What the codec keeps of all rows, example after example.
        """
        self._known[section.name].update(bytes(key) for key in _whole(keys))
        part = {name: one.detach().cpu() for name, one in entries.items()}
        part["keys"] = torch.from_numpy(_whole(keys).view(np.uint8).reshape(-1, KEY_BYTES).copy())
        part["counts"] = torch.from_numpy(counts.astype(np.int32))
        pending = self._pending[section.name]
        pending.append(part)
        held = sum(one.nbytes for kept in pending for one in kept.values())
        if held >= self._shard_bytes:
            self._write(section)

    def finish(self, sections: Sequence[Section]) -> Manifest:
        """Return the manifest after writing what is left, and that some sections are complete.

        Args:
            sections: All to which targets were added, and those of which none were lacking.
        """
        for section in sections:
            if self._pending[section.name]:
                self._write(section)
        self.manifest = self.manifest.with_end(sections)
        write_manifest(self._folder, self.manifest)
        return self.manifest

    def _write(self, section: Section) -> None:
        parts = self._pending[section.name]
        joined = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
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
        parts.clear()


def _known_keys(folder: Path, manifest: Manifest, section: Section) -> set[bytes]:
    for shard in manifest.of(section):
        check_content(folder, shard)
    found = [opened(folder, shard)["keys"].numpy() for shard in manifest.of(section)]
    return {bytes(key) for part in found for key in part}


def _whole(keys: Shaped[np.ndarray, " example"]) -> Shaped[np.ndarray, " example"]:
    """Return keys in a type of which no zero at the end is lost."""
    return np.ascontiguousarray(keys).view(f"V{KEY_BYTES}")


def check_content(folder: Path, shard: Shard) -> None:
    """Check the content of a file against the manifest.

    Raises:
        CheckpointError: If the file is missing, damaged or another one.
    """
    path = inside(folder, shard.file)
    _check_size(path, shard)
    if (digest := content_digest(path)) != shard.sha256:
        expected, found = f"the SHA-256 {shard.sha256[:16]}...", f"{digest[:16]}..."
        raise CheckpointError(_contradiction(path, f"must have {expected}", found))


def _check_size(path: Path, shard: Shard) -> None:
    """Check that a file is there, with the size that the manifest lists.

    Raises:
        CheckpointError: If not.
    """
    size = path.stat().st_size if path.is_file() else None
    if size != shard.size:
        found = "no file" if size is None else str(size)
        raise CheckpointError(_contradiction(path, f"must hold {shard.size} bytes", found))


def _contradiction(path: Path, rule: str, found: str) -> str:
    """Return the sentence about a file and a manifest of which either may be the wrong one."""
    return (
        f"{str(path)!r} {rule} as {str(path.with_name(MANIFEST))!r} says; got {found}; one of the "
        f"two is damaged or of another store: restore it, or capture into a new folder"
    )


def opened(folder: Path, shard: Shard) -> dict[str, Tensor]:
    """Return the tensors of a shard, mapped from disk.

    Raises:
        CheckpointError: If the file is missing, of another size, or not as the manifest says.
    """
    path = inside(folder, shard.file)
    _check_size(path, shard)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{str(path)!r} must be a safetensors file: {error}; restore it, or capture into a new "
            f"folder"
        ) from None
    sizes = {name: len(one) for name, one in found.items()}
    told = sizes.pop("keys", None), sizes.pop("counts", None), *sizes.values()
    wanted = shard.examples, shard.examples, *(shard.rows for _ in sizes)
    if told != wanted:
        rule = f"must hold {shard.examples} examples and {shard.rows} rows"
        raise CheckpointError(_contradiction(path, rule, str(told)))
    return found
