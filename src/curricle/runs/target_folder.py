"""Capture, description and verification of the targets of a spec.

`capture_targets_of` fills the folder named by the spec, `describe_targets` lists its content, and
`verify_targets` checks that it is intact and, with the spec, equal to the targets of the teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from curricle.errors import CheckpointError
from curricle.runs.assemble import open_task
from curricle.runs.spec import RunSpec, require_field
from curricle.runs.target_capture import Progress, capture_shares
from curricle.runs.train import captured_runs
from curricle.runs.workers import Work, Workers
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.manifest import DataFacts, Manifest, TargetSet
from curricle.teachers.stored import open_targets
from curricle.training.targets.capture import Watch, capture
from curricle.training.targets.capture_shares import Share, capture_in_shares, capture_share
from curricle.training.targets.verification import Agreement, agreement

STEPS = 4
"""Steps of each stage at which a store is compared with its teacher."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Kind of stored target, in words and numbers."""

    target_set: TargetSet
    """The kind of target."""
    examples: int
    """Number of examples."""
    rows: int
    """Number of rows: counted positions."""
    size: int
    """Bytes of its files."""

    @property
    def bytes_a_row(self) -> float:
        """Return the bytes of a row, keys and headers included."""
        return self.size / max(self.rows, 1)


def capture_targets_of(
    spec: RunSpec, watch: Watch | None = None, *, new_workers: Callable[[], Workers] | None = None
) -> Manifest:
    """Return the manifest after capturing the missing targets of a spec.

    Args:
        spec: Spec of the run; its teacher must be finished.
        watch: Receives the progress after every step.
        new_workers: Returns processes that capture a share each; None captures in this process.

    Raises:
        CheckpointError: If a worker is lost, for example because memory has run out.
    """
    targets = require_field(spec.targets, "targets", "targets capture")
    folder, compression = Path(targets.folder), targets.compression
    runs = captured_runs(spec)
    task_name = open_task(spec, spec.seed, "student").name
    facts = DataFacts(name=task_name, tokenizer=spec.task.tokenizer_digest(Path(spec.cache_dir)))
    if new_workers is None:
        return capture(runs, folder, compression=compression, data=facts, watch=watch)

    def sent(threads: int) -> Work[Share, Progress]:
        # Each worker opens teacher and data of the spec itself.
        return partial(_capture_share, replace(spec, engine=replace(spec.engine, threads=threads)))

    capture_all = partial(
        capture_shares,
        sent,
        new_workers=new_workers,
        watch=watch,
        again="curricle targets capture",
    )
    return capture_in_shares(runs, folder, capture_all, compression=compression, data=facts)


def _capture_share(spec: RunSpec, share: Share, watch: Callable[[str, Progress], None]) -> None:
    targets = require_field(spec.targets, "targets", "targets capture")
    capture_share(
        captured_runs(spec),
        Path(targets.folder),
        share,
        compression=targets.compression,
        watch=lambda *progress: watch(str(share), progress),
    )


def describe_targets(manifest: Manifest) -> list[Described]:
    """Return the content of a folder, kind by kind."""
    return [
        Described(
            target_set=target_set,
            examples=sum(shard.examples for shard in manifest.of(target_set)),
            rows=sum(shard.rows for shard in manifest.of(target_set)),
            size=sum(shard.size for shard in manifest.of(target_set)),
        )
        for target_set in manifest.sections
    ]


def verify_targets(folder: Path, spec: RunSpec | None = None) -> list[Agreement]:
    """Return how the targets in a folder compare with the teacher of a spec; empty without one.

    Args:
        folder: Where targets are stored.
        spec: Spec of the capture; None checks the files only.

    Raises:
        CheckpointError: If a file is damaged, or the targets are not those of the teacher.
    """
    stored = open_targets(folder)
    for target_set in stored.store.manifest.sections:
        stored.store.reader(target_set).check_content()
    if spec is None:
        return []
    runs = captured_runs(spec)
    for run in runs:
        if isinstance(run.teacher, LiveTeacher):
            stored.store.check_teacher(run.teacher)
    agreements = agreement(runs, stored, steps=STEPS)
    for agreement_ in agreements:
        if not agreement_.holds:
            raise CheckpointError(
                f"{str(folder)!r} must hold the teacher's targets; of "
                f"{agreement_.target_set.name!r} only {agreement_.share:.1%} of "
                f"{agreement_.rows} rows agree; capture into a new folder"
            )
    return agreements
