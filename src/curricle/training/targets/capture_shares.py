"""Capture of a teacher's targets by several processes, each of which makes a share of the passes.

Every process walks through all batches of the runs, as one process would, and numbers those with
examples that are not stored yet. Share `n` of `N` runs the teacher on each `N`th of them. So each
target comes from the same pass as in one process, none is computed twice, and the stores of the
shares together hold the same bits.

Axes: example (rows of a batch).

Design: processes need no communication. The store does not change while its shares are written, so
all of them number the passes alike, also after one of them was killed and begun again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Shaped

from curricle.teachers.store.manifest import (
    DataFacts,
    Manifest,
    TargetSet,
    write_manifest,
)
from curricle.teachers.store.shards import ShardWriter, StoredKeys, read_keys
from curricle.teachers.store.writing import SHARES, open_writer, present_and_new, take_shares
from curricle.training.binding.bound_run import BoundRun
from curricle.training.setup.torch_state import standard_state
from curricle.training.targets.capture import TargetCompression, Watch, plan_capture
from curricle.values import value


@final
@value
class Share:
    """Share of the passes of a capture."""

    number: int
    """Number of the share, from 0 on."""
    count: int
    """Number of all shares."""

    def __str__(self) -> str:
        """Return number and count, as in the name of the folder."""
        return f"{self.number}-of-{self.count}"

    def folder(self, folder: Path) -> Path:
        """Return the folder of the share's own store.

        Args:
            folder: Folder of the store.
        """
        return folder / SHARES / str(self)


@final
@dataclass(slots=True)
class _Passes:
    """Passes of one share."""

    share: Share
    """The share."""
    writer: ShardWriter
    """Writer of the share's own store, which may hold files from before an interruption."""
    keys: StoredKeys
    """Keys of the store, to which those of all shares are added pass by pass."""
    passes: int = field(default=0, init=False)
    """Passes so far, of all shares."""

    def find_missing(
        self,
        target_sets: Sequence[TargetSet],
        keys: Sequence[Shaped[np.ndarray, " example"]],
    ) -> list[Shaped[np.ndarray, " example"]]:
        """Return masks of the examples of a batch whose targets this share stores.

        Args:
            target_sets: Kinds of targets that the batch has.
            keys: Keys of its examples, for each kind.
        """
        missing = list(map(self.keys.find_missing, target_sets, keys))
        if not any(is_missing.any() for is_missing in missing):
            return missing
        for target_set, keys_of_set, is_missing in zip(target_sets, keys, missing, strict=True):
            self.keys.add(target_set, keys_of_set[is_missing])
        is_of_share = self.passes % self.share.count == self.share.number
        self.passes += 1
        if not is_of_share:
            return [np.zeros_like(is_missing) for is_missing in missing]
        pending = map(self.writer.find_missing, target_sets, keys)
        return [
            is_missing & is_pending for is_missing, is_pending in zip(missing, pending, strict=True)
        ]


@standard_state()
def capture_share(
    runs: Sequence[BoundRun],
    folder: Path,
    share: Share,
    *,
    compression: TargetCompression = TargetCompression(),
    watch: Watch | None = None,
) -> None:
    """Capture the missing targets of a share of the passes.

    Args:
        runs: Runs of one live teacher.
        folder: Where the store is, which another process keeps open; see `capture_in_shares`.
        share: Which share.
        compression: In which form targets are kept.
        watch: Receives the progress through the steps of all shares.

    Raises:
        BindError: If a run has no live teacher or an objective has no targets to store.
        CheckpointError: If the folder holds targets of another teacher, or in another form, or
            another process writes the same share.
        DataError: If a target is not finite.
    """
    plan = plan_capture(runs, compression, DataFacts())
    stored = present_and_new(folder, plan.manifest)
    with open_writer(share.folder(folder), plan.manifest, shard_bytes=plan.shard_bytes) as writer:
        passes = _Passes(share, writer, read_keys(folder, stored))
        plan.capture(writer, passes.find_missing, watch)
        writer.finish(plan.manifest.sections)


@standard_state()
def capture_in_shares(
    runs: Sequence[BoundRun],
    folder: Path,
    capture_all: Callable[[int], None],
    *,
    compression: TargetCompression = TargetCompression(),
    data: DataFacts = DataFacts(),
) -> Manifest:
    """Capture the missing targets of some runs in shares.

    Args:
        runs: Runs of one live teacher.
        folder: Where the store is or will be.
        capture_all: Has every share captured by `capture_share`, in any processes; it takes the
            number of steps of all runs, beyond which shares would be empty.
        compression: In which form targets are kept.
        data: Facts about the data.

    Returns:
        The manifest of the store.

    Raises:
        BindError: If a run has no live teacher or an objective has no targets to store.
        CheckpointError: If the folder holds targets of another teacher, or in another form, or
            another process writes into it.
    """
    plan = plan_capture(runs, compression, data)
    with open_writer(folder, plan.manifest, shard_bytes=plan.shard_bytes) as writer:
        capture_all(plan.num_steps)
        manifest = take_shares(folder, writer.manifest).with_finished(plan.manifest.sections)
        write_manifest(folder, manifest)
        return manifest
