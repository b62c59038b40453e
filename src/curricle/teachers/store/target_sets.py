"""How are stored targets read, in whatever order and by however many students?

A `TargetStore` is an opened folder. It is asked with a batch: the keys of the examples say which
rows are wanted, so the reader's order, batch size, seed and number of processes do not matter. A
row that is not there is an error, never a guess.

Axes: example (rows of a batch), row (counted positions).

Design: opening compares every file with its digest, so a damaged or foreign store is refused before
training; after that, files are mapped, and only the rows that are asked for are read.
"""

from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from curricle.colocation import beside
from curricle.data.example_keys import KEYS, data_counts, example_keys, selected_places
from curricle.data.streams import Batch
from curricle.errors import BindError, CheckpointError, DataError
from curricle.models.weights import weights_digest
from curricle.objectives.base import Target
from curricle.teachers.live import LiveTeacher, Reference
from curricle.teachers.store.codecs import Entries
from curricle.teachers.store.manifest import Manifest, Section, read_manifest
from curricle.teachers.store.shards import check_content, opened


@final
class TargetStore:
    """A folder of stored targets, open for reading."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take what `open_store` has checked."""
        self.folder, self.manifest = folder, manifest
        self._readers: dict[str, SectionReader] = {}

    def reader(self, section: Section) -> "SectionReader":
        """Return what reads a section; its keys are loaded once."""
        if section.name not in self._readers:
            self._readers[section.name] = SectionReader(self.folder, self.manifest, section)
        return self._readers[section.name]

    def check_teacher(self, teacher: LiveTeacher) -> None:
        """Check that the targets are those of a teacher and of its checkpoints.

        Raises:
            BindError: If some are another's.
        """
        steps = () if teacher.trajectory is None else teacher.trajectory.steps
        known: tuple[Reference, ...] = ("final", *steps)
        for reference in known:
            told = self.manifest.teacher.weights.get(str(reference))
            if told is None:
                continue
            if (found := weights_digest(teacher.at(reference).module)) != told:
                raise BindError(
                    f"{str(self.folder)!r} must hold targets of this teacher {reference!r}, whose "
                    f"weights and adapters have the SHA-256 {found[:16]}...; got "
                    f"{told[:16]}...; capture into another folder"
                )


def open_store(folder: str | Path, *, checks_content: bool = True) -> TargetStore:
    """Return the store in a folder.

    Args:
        folder: Where targets were captured or imported.
        checks_content: Whether every file is read once to compare its digest; without, its size
            and shape are looked at.

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
        opened(folder, shard)
        if checks_content:
            check_content(folder, shard)
    return TargetStore(folder, manifest)


@final
class SectionReader:
    """Finds the targets of examples in the files of one section."""

    def __init__(self, folder: Path, manifest: Manifest, section: Section) -> None:
        """Map the files and load the keys.

        Args:
            folder: Of the store.
            manifest: Its manifest.
            section: One of its sections.
        """
        self.section = section
        self._is_whole = manifest.is_whole(section)
        files = [opened(folder, shard) for shard in manifest.of(section)]
        keys = [one.pop("keys").numpy().reshape(-1).view(KEYS) for one in files]
        counts = [one.pop("counts").numpy().astype(np.int64) for one in files]
        starts = [np.cumsum(one) - one for one in counts]
        numbers = [np.full(len(one), number) for number, one in enumerate(counts)]
        empty = np.empty(0, dtype=np.int64)
        joined = np.concatenate([np.empty(0, dtype=KEYS), *keys])
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
        """Check that no example is there twice and that every number is one.

        Raises:
            CheckpointError: If not.
        """
        if len(np.unique(self._keys)) != len(self._keys):
            raise CheckpointError(
                f"{self.section.name!r} must hold every example once; got one twice"
            )
        for kept in (one for file in self._files for one in file.values()):
            if kept.is_floating_point() and bool(kept.isnan().any()):
                raise CheckpointError(f"{self.section.name!r} must hold numbers; some are 'nan'")

    def target(self, batch: Batch, *, selected: bool, rows: int) -> Target:
        """Return the targets of a batch.

        Args:
            batch: The batch.
            selected: Whether only its selected positions are wanted.
            rows: Number of rows that are wanted, as the objective counts them.

        Raises:
            DataError: If an example or a position is not stored; it is named. If other rows are
                stored than are wanted.
        """
        places = self._find(example_keys(batch, selected=self.section.selected))
        counts = self._counts[places]
        if selected and not self.section.selected:
            chosen = selected_places(batch)
            lengths = np.array([len(one) for one in chosen])
            inside = np.concatenate(chosen)
        else:
            # Where a model has other positions than the data, as after pooling or with patches, it
            # alone knows their number, and the capture has counted them.
            is_counted = self.section.selected or counts.sum() == rows
            lengths = counts if is_counted else data_counts(batch)
            inside = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        _check_rows(inside, np.repeat(counts, lengths), lengths)
        if len(inside) != rows:
            raise DataError(
                f"'targets' must hold the {rows} rows of the batch that are read; got {len(inside)}"
            )
        chosen_rows = np.repeat(self._starts[places], lengths) + inside
        entries = self._gather(chosen_rows, np.repeat(self._shards[places], lengths))
        moved = {name: beside(entry, batch.leading) for name, entry in entries.items()}
        return self.section.codec.decode(moved, self.section.width)

    def _find(self, keys: Shaped[np.ndarray, " example"]) -> Int[np.ndarray, " example"]:
        if not len(self._keys):
            raise DataError(f"'targets' must hold some of {self.section.name!r}; got none")
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
        """Return what is kept of some rows of some files, in their order."""
        used = np.unique(shards)
        if len(used) == 1:
            chosen = torch.from_numpy(rows)
            return {name: one[chosen] for name, one in self._files[used[0]].items()}
        found: dict[str, Tensor] = {}
        for shard in used:
            places = torch.from_numpy(np.flatnonzero(shards == shard))
            chosen = torch.from_numpy(rows[shards == shard])
            for name, one in self._files[shard].items():
                if name not in found:
                    found[name] = one.new_empty((len(rows), *one.shape[1:]))
                found[name][places] = one[chosen]
        return found


def _check_rows(
    inside: Int[np.ndarray, " row"],
    counts: Int[np.ndarray, " row"],
    lengths: Int[np.ndarray, " example"],
) -> None:
    """Check that every row is stored, given its number in its example and how many are there.

    Raises:
        DataError: If one is not; it is named.
    """
    missing = np.flatnonzero(inside >= counts)
    if len(missing):
        first = missing[0]
        example = np.searchsorted(lengths.cumsum(), first, side="right")
        raise DataError(
            f"'targets' must hold every position that is read; position {inside[first]} of example "
            f"{example} of a batch is not among its first {counts[first]}"
        )
