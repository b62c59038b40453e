"""Reading of stored targets in any order and by any number of students.

A `TargetStore` is an opened folder. Rows are looked up by the keys of the examples of a batch, so
they do not depend on the student's order, batch size, seed and number of processes. A missing row
is an error.

Axes: example (rows of a batch), row (counted positions).

Design: opening compares every file with its digest, so a damaged or foreign store is refused before
training; after that, files are memory-mapped, and only the rows of a batch are read.
"""

from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from curricle.colocation import beside
from curricle.curriculum.stages import TeacherReference
from curricle.data.batch import Batch
from curricle.data.example_keys import KEYS, data_counts, example_keys, selected_places
from curricle.errors import BindError, CheckpointError, DataError
from curricle.models.weights import weights_digest
from curricle.objectives.base import Target
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import Entries
from curricle.teachers.store.manifest import Manifest, TargetSet, read_manifest
from curricle.teachers.store.shards import check_content, open_shard


@final
class TargetStore:
    """A folder of stored targets, open for reading."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Create the store from the results of `open_store`."""
        self.folder, self.manifest = folder, manifest
        self._readers: dict[str, TargetSetReader] = {}

    def reader(self, target_set: TargetSet) -> "TargetSetReader":
        """Return the reader of a target set; its keys are loaded once."""
        if target_set.name not in self._readers:
            self._readers[target_set.name] = TargetSetReader(self.folder, self.manifest, target_set)
        return self._readers[target_set.name]

    def check_teacher(self, teacher: LiveTeacher) -> None:
        """Check that the targets are those of a teacher and of its checkpoints.

        Raises:
            BindError: If a digest of weights differs.
        """
        steps = () if teacher.trajectory is None else teacher.trajectory.steps
        references: tuple[TeacherReference, ...] = ("final", *steps)
        for reference in references:
            stored = self.manifest.teacher.weights.get(str(reference))
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
        checks_content: Whether every file is read once to compare its digest; otherwise only sizes
            and shapes are compared.

    Raises:
        CheckpointError: If no capture was finished, or a file is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest.finished:
        raise CheckpointError(
            f"{str(folder)!r} must hold a finished capture; got an unfinished one: run `curricle "
            f"targets capture` again, which continues after its {len(manifest.shards)} files"
        )
    for shard in manifest.shards:
        open_shard(folder, shard)
        if checks_content:
            check_content(folder, shard)
    return TargetStore(folder, manifest)


@final
class TargetSetReader:
    """Look-up of targets by example in the files of a target set."""

    def __init__(self, folder: Path, manifest: Manifest, target_set: TargetSet) -> None:
        """Map the files and load the keys.

        Args:
            folder: Folder of the store.
            manifest: Its manifest.
            target_set: A target set of the manifest.
        """
        self.target_set = target_set
        self._has_all = manifest.has_all(target_set)
        files = [open_shard(folder, shard) for shard in manifest.of(target_set)]
        keys = [tensors.pop("keys").numpy().reshape(-1).view(KEYS) for tensors in files]
        counts = [tensors.pop("counts").numpy().astype(np.int64) for tensors in files]
        starts = [np.cumsum(shard_counts) - shard_counts for shard_counts in counts]
        numbers = [np.full(len(shard), number) for number, shard in enumerate(counts)]
        # A set without files has empty arrays of the same types; `concatenate` needs at least one.
        empty = np.empty(0, dtype=np.int64)
        all_keys = np.concatenate([np.empty(0, dtype=KEYS), *keys])
        # Sorted keys allow a binary search for the examples of a batch.
        order = np.argsort(all_keys, kind="stable")
        self._files: list[dict[str, Tensor]] = files
        self._keys = all_keys[order]
        self._counts = np.concatenate([empty, *counts])[order]
        self._starts = np.concatenate([empty, *starts])[order]
        self._shards = np.concatenate([empty, *numbers])[order]

    @property
    def num_examples(self) -> int:
        """Return the number of examples."""
        return len(self._keys)

    def check_content(self) -> None:
        """Check that examples are unique and no number is 'nan'.

        Raises:
            CheckpointError: If not.
        """
        if len(np.unique(self._keys)) != len(self._keys):
            raise CheckpointError(
                f"{self.target_set.name!r} must hold every example once; got one twice"
            )
        for tensor in (tensor for file in self._files for tensor in file.values()):
            # Infinities are legal: unused entries of `top_k` and classes ruled out by a head.
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                raise CheckpointError(f"{self.target_set.name!r} must hold numbers; some are 'nan'")

    def target(self, batch: Batch, *, selected: bool, rows: int) -> Target:
        """Return the targets of a batch.

        Args:
            batch: The batch.
            selected: Whether only its selected positions are read.
            rows: Number of rows, as counted by the objective.

        Raises:
            DataError: If an example or a position is not stored, with its number. If the number of
                stored rows differs.
        """
        # Examples are found by their content, for which a batch on a GPU would come back.
        host = batch.readable
        places = self._find(example_keys(host, selected=self.target_set.selected))
        counts = self._counts[places]
        if selected and not self.target_set.selected:
            # Targets of all positions serve an objective on selected ones: pick their rows.
            row_numbers = selected_places(host)
            lengths = np.array([len(numbers) for numbers in row_numbers])
            offsets = np.concatenate(row_numbers)
        else:
            # With pooling or patches the positions differ from those of the data, and only the
            # counts of the capture are right. Otherwise the student may read shorter examples.
            is_counted = self.target_set.selected or counts.sum() == rows
            lengths = counts if is_counted else data_counts(host)
            # 0, 1, ... within each example, without a loop.
            offsets = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        _check_rows(offsets, np.repeat(counts, lengths), lengths)
        if len(offsets) != rows:
            raise DataError(
                f"'targets' must hold the {rows} rows of the batch that are read; got "
                f"{len(offsets)}"
            )
        shard_rows = np.repeat(self._starts[places], lengths) + offsets
        entries = self._gather(shard_rows, np.repeat(self._shards[places], lengths))
        # Compressed entries are moved to the batch and decoded there: fewer bytes to transfer.
        entries = {name: beside(entry, batch.leading) for name, entry in entries.items()}
        return self.target_set.codec.decode(entries, self.target_set.width)

    def _find(self, keys: Shaped[np.ndarray, " example"]) -> Int[np.ndarray, " example"]:
        if not len(self._keys):
            raise DataError(f"'targets' must hold some of {self.target_set.name!r}; got none")
        # A key greater than all stored ones would be found past the end.
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        missing = np.flatnonzero(self._keys[places] != keys)
        if len(missing):
            remedy = (
                "capturing with this spec adds the targets of a longer run or of other data; or "
                "read the captured data ('data_seed')"
                if self._has_all
                else "their capture was stopped; run `curricle targets capture` again to finish"
            )
            raise DataError(
                f"'targets' must hold every example that is read; example {missing[0]} of a batch "
                f"is not among the {len(self._keys)} of {self.target_set.name!r}; {remedy}"
            )
        return places

    def _gather(self, rows: Int[np.ndarray, " row"], shards: Int[np.ndarray, " row"]) -> Entries:
        """Return encoded rows of several files, in the order of the arguments."""
        distinct = np.unique(shards)
        # Batches in the order of the capture come from a single file, without a copy in between.
        if len(distinct) == 1:
            index = torch.from_numpy(rows)
            return {name: tensor[index] for name, tensor in self._files[distinct[0]].items()}
        entries: dict[str, Tensor] = {}
        for shard in distinct:
            places = torch.from_numpy(np.flatnonzero(shards == shard))
            index = torch.from_numpy(rows[shards == shard])
            for name, tensor in self._files[shard].items():
                if name not in entries:
                    entries[name] = tensor.new_empty((len(rows), *tensor.shape[1:]))
                entries[name][places] = tensor[index]
        return entries


def _check_rows(
    offsets: Int[np.ndarray, " row"],
    counts: Int[np.ndarray, " row"],
    lengths: Int[np.ndarray, " example"],
) -> None:
    """Check that every row is stored.

    Args:
        offsets: Number of each row in its example.
        counts: Stored rows of the example of each row.
        lengths: Rows read of each example.

    Raises:
        DataError: If a row is not stored; the message has its position and example.
    """
    missing = np.flatnonzero(offsets >= counts)
    if len(missing):
        first = missing[0]
        example = np.searchsorted(lengths.cumsum(), first, side="right")
        raise DataError(
            f"'targets' must hold every position that is read; position {offsets[first]} of "
            f"example {example} of a batch is not among its first {counts[first]}"
        )
