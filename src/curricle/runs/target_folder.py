"""How are the targets of a spec captured, told and verified?

`capture_targets` fills the folder that the spec names; `described` tells what a folder holds, and
`verified` whether it is whole and, with the spec, whether it is what the teacher says.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from curricle.errors import CheckpointError
from curricle.runs.assemble import open_task
from curricle.runs.spec import RunSpec, given
from curricle.runs.train import captured_runs
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.manifest import DataFacts, Manifest, Section
from curricle.teachers.stored import open_targets
from curricle.training.targets.capture import Watch, capture
from curricle.training.targets.verification import Agreement, agreement

STEPS = 4
"""Steps of each stage at which a store is compared with its teacher."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What one kind of stored target is, in words and numbers."""

    section: Section
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


def capture_targets(spec: RunSpec, watch: Watch | None = None) -> Manifest:
    """Return the manifest after making the targets of a spec, or what is missing of them.

    Args:
        spec: What will be trained; its teacher must be finished.
        watch: Told of every step.
    """
    wanted = given(spec.targets, "targets", "targets capture")
    runs = captured_runs(spec)
    told = open_task(spec, spec.seed, "student").name
    facts = DataFacts(name=told, tokenizer=spec.task.tokenizer(Path(spec.cache_dir)))
    return capture(runs, Path(wanted.folder), codecs=wanted.codecs, data=facts, watch=watch)


def described(manifest: Manifest) -> list[Described]:
    """Return what a folder holds, kind by kind."""
    return [
        Described(
            section=section,
            examples=sum(shard.examples for shard in manifest.of(section)),
            rows=sum(shard.rows for shard in manifest.of(section)),
            size=sum(shard.size for shard in manifest.of(section)),
        )
        for section in manifest.sections
    ]


def verified(folder: Path, spec: RunSpec | None = None) -> list[Agreement]:
    """Return how the targets in a folder compare with the teacher of a spec; empty without one.

    Args:
        folder: Where targets are stored.
        spec: What was captured; None looks at the files alone.

    Raises:
        CheckpointError: If a file is damaged, or the targets are not what the teacher says.
    """
    stored = open_targets(folder)
    for section in stored.store.manifest.sections:
        stored.store.reader(section).check_content()
    if spec is None:
        return []
    runs = captured_runs(spec)
    for run in runs:
        if isinstance(run.teacher, LiveTeacher):
            stored.store.check_teacher(run.teacher)
    found = agreement(runs, stored, steps=STEPS)
    for one in found:
        if not one.holds:
            raise CheckpointError(
                f"{str(folder)!r} must hold what the teacher says; of {one.section.name!r} only "
                f"{one.share:.1%} of {one.rows} rows agree; capture into a new folder"
            )
    return found
