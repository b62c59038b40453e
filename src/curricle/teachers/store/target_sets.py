"""Reader of stored targets, independent of batch order and number of students.

A `TargetStore` is an open folder. Rows are looked up by the keys of the examples in a batch, so
order, batch size, seed and number of processes may differ from the capture. A missing row is an
error.

Axes: example (rows of a batch), row (counted positions).

Design: opening compares every file with its digest, so a damaged or foreign store is refused before
training; after that, files are memory-mapped, and only the rows of the batch are read.
"""

from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from curricle.data.example_keys import KEYS, data_counts, example_keys, selected_places
from curricle.data.streams import Batch
from curricle.errors import BindError, CheckpointError, DataError
from curricle.models.weights import weights_digest
from curricle.objectives.base import Target
from curricle.teachers.live import LiveTeacher, Reference
from curricle.teachers.store.codecs import Entries
from curricle.teachers.store.manifest import Manifest, Section, read_manifest
from curricle.teachers.store.shards import check_content, open_shard


@final
class TargetStore:
    """Folder of stored targets, open for reading."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Create a store from a folder checked by `open_store`."""
        self.folder, self.manifest = folder, manifest
        self._readers: dict[str, SectionReader] = {}

    def reader(self, section: Section) -> "SectionReader":
        """Return the reader of a section, with its keys loaded once."""
        if section.name not in self._readers:
            self._readers[section.name] = SectionReader(self.folder, self.manifest, section)
        return self._readers[section.name]

    def check_teacher(self, teacher: LiveTeacher) -> None:
        """Check that the targets are those of a teacher and of its checkpoints.

        Raises:
            BindError: If some belong to another teacher.
        """
        steps = () if teacher.trajectory is None else teacher.trajectory.steps
        references: tuple[Reference, ...] = ("final", *steps)
        for reference in references:
            stored = self.manifest.teacher.weights.get(str(reference))
            # Imported targets have no digest, and not every checkpoint has to be captured.
            if stored is None:
                continue
            if (digest := weights_digest(teacher.at(reference).module)) != stored:
                raise BindError(
                    f"{str(self.folder)!r} must hold targets of this teacher {reference!r}, whose "
                    f"weights and adapters have the SHA-256 {digest[:16]}...; got "
                    f"{stored[:16]}...; capture into another folder"
                )


def open_store(folder: str | Path, *, checks_content: bool = True) -> TargetStore:
    """Return the store in a folder.

    Args:
        folder: Folder of captured or imported targets.
        checks_content: Whether every file is read once to compare its digest; otherwise only its
            size and shapes are checked.

    Raises:
        CheckpointError: If no capture was finished, or a file is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest.finished:
        raise CheckpointError(
            f"{str(folder)!r} must be captured to its end; it is not, and capturing again goes on "
            f"after its {len(manifest.shards)} files"
        )
    for shard in manifest.shards:
        open_shard(folder, shard)
        if checks_content:
            check_content(folder, shard)
    return TargetStore(folder, manifest)


@final
class SectionReader:
    """Finds the targets of examples in the files of one section."""

    def __init__(self, folder: Path, manifest: Manifest, section: Section) -> None:
        """Map the files and load the keys.

        Args:
            folder: Folder of the store.
            manifest: Its manifest.
            section: A section of the manifest.
        """
        self.section = section
        self._is_whole = manifest.is_whole(section)
        files = [open_shard(folder, shard) for shard in manifest.of(section)]
        keys = [tensors.pop("keys").numpy().reshape(-1).view(KEYS) for tensors in files]
        counts = [tensors.pop("counts").numpy().astype(np.int64) for tensors in files]
        starts = [np.cumsum(lengths) - lengths for lengths in counts]
        numbers = [np.full(len(lengths), number) for number, lengths in enumerate(counts)]
        empty = np.empty(0, dtype=np.int64)
        joined = np.concatenate([np.empty(0, dtype=KEYS), *keys])
        # Sorted keys allow a binary search over all shards at once, with 40 bytes per example.
        order = np.argsort(joined, kind="stable")
        self._files: list[dict[str, Tensor]] = files
        self._keys = joined[order]
        self._counts = np.concatenate([empty, *counts])[order]
        self._starts = np.concatenate([empty, *starts])[order]
        self._shards = np.concatenate([empty, *numbers])[order]

    @property
    def num_examples(self) -> int:
        """Return the number of examples."""
        return len(self._keys)

    def check_content(self) -> None:
        """Check that no example is stored twice and that no number is NaN.

        Raises:
            CheckpointError: If an example is stored twice, or a number is NaN.
        """
        if len(np.unique(self._keys)) != len(self._keys):
            raise CheckpointError(
                f"{self.section.name!r} must hold every example once; got one twice"
            )
        for entry in (tensor for file in self._files for tensor in file.values()):
            if entry.is_floating_point() and bool(entry.isnan().any()):
                raise CheckpointError(f"{self.section.name!r} must hold numbers; some are 'nan'")

    def target(self, batch: Batch, *, selected: bool, rows: int) -> Target:
        """Return the targets of a batch.

        Args:
            batch: The batch.
            selected: Whether only its selected positions are read.
            rows: Number of rows, as the objective counts them.

        Raises:
            DataError: If an example or a position is not stored, or the number of stored rows
                differs from `rows`.
        """
        places = self._find(example_keys(batch, selected=self.section.selected))
        counts = self._counts[places]
        if selected and not self.section.selected:
            selection = selected_places(batch)
            lengths = np.array([len(positions) for positions in selection])
            inside = np.concatenate(selection)
        else:
            # After pooling or with patches the positions of a model differ from those of the data,
            # and only the counts of the capture are valid. Otherwise the data's counts are used,
            # since a batch may be shorter than the captured example.
            is_counted = self.section.selected or counts.sum() == rows
            lengths = counts if is_counted else data_counts(batch)
            inside = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        _check_rows(inside, np.repeat(counts, lengths), lengths)
        if len(inside) != rows:
            raise DataError(
                f"'targets' must hold the {rows} rows of the batch that are read; got {len(inside)}"
            )
        # Row of the shard: first row of the example plus the number within the example.
        stored_rows = np.repeat(self._starts[places], lengths) + inside
        entries = self._gather(stored_rows, np.repeat(self._shards[places], lengths))
        device = batch.leading.device
        on_device = {name: entry.to(device, non_blocking=True) for name, entry in entries.items()}
        return self.section.codec.decode(on_device, self.section.width)

    def _find(self, keys: Shaped[np.ndarray, " example"]) -> Int[np.ndarray, " example"]:
        if not len(self._keys):
            raise DataError(f"'targets' must hold some of {self.section.name!r}; got none")
        # The insertion point of a missing key may be past the end or at another key, so the keys
        # found are compared.
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        missing = np.flatnonzero(self._keys[places] != keys)
        if len(missing):
            remedy = (
                "capturing with this spec adds what a longer run or other data need; or read the "
                "data that were captured ('data_seed')"
                if self._is_whole
                else "a capture of them was stopped, and capturing again goes on"
            )
            raise DataError(
                f"'targets' must hold every example that is read; example {missing[0]} of a batch "
                f"is not among the {len(self._keys)} of {self.section.name!r}; {remedy}"
            )
        return places

    def _gather(self, rows: Int[np.ndarray, " row"], shards: Int[np.ndarray, " row"]) -> Entries:
        """Return the encoded rows at some places of some files, in their order."""
        used = np.unique(shards)
        # The common case needs no second copy of the rows.
        if len(used) == 1:
            numbers = torch.from_numpy(rows)
            return {name: tensor[numbers] for name, tensor in self._files[used[0]].items()}
        gathered: dict[str, Tensor] = {}
        for shard in used:
            places = torch.from_numpy(np.flatnonzero(shards == shard))
            numbers = torch.from_numpy(rows[shards == shard])
            for name, tensor in self._files[shard].items():
                if name not in gathered:
                    gathered[name] = tensor.new_empty((len(rows), *tensor.shape[1:]))
                gathered[name][places] = tensor[numbers]
        return gathered


def _check_rows(
    inside: Int[np.ndarray, " row"],
    counts: Int[np.ndarray, " row"],
    lengths: Int[np.ndarray, " example"],
) -> None:
    """Check that every row is stored.

    Args:
        inside: Number of each row within its example.
        counts: Number of stored rows of its example.
        lengths: Number of rows of each example, to name the missing row.

    Raises:
        DataError: If a row is not stored.
    """
    missing = np.flatnonzero(inside >= counts)
    if len(missing):
        first = missing[0]
        example = np.searchsorted(lengths.cumsum(), first, side="right")
        raise DataError(
            f"'targets' must hold every position that is read; position {inside[first]} of example "
            f"{example} of a batch is not among its first {counts[first]}"
        )
