"""Manifest of a folder of stored targets.

`manifest.json` describes the teacher (digests of its weights, its taps), the data (digests of the
stream and of the tokenizer), the kinds of targets and their compression (one `TargetSet` each), and
every file with its size and SHA-256. Reading needs nothing else.

Axes: example (rows of a batch), row (counted positions of all examples).

Design: the manifest is written atomically after each shard. A file that it does not list is
ignored, so a killed capture continues after its last complete shard. A target set that was once
captured to its end stays readable, whatever happens to later captures into the same folder. The
manifest ends with a checksum of itself, and every listed file must lie in its folder. On disk,
target sets are named sections and their keys facts.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

from pydantic import Field

from curricle.checksums import read_sealed, write_sealed
from curricle.curriculum.stages import TeacherReference
from curricle.errors import BindError, CheckpointError, CurricleError, SpecError, reason
from curricle.files import inside, is_plain_name
from curricle.objectives.base import BoundObjective, pending_calibration, target_description
from curricle.objectives.paired_logits import MatchPairedLogits
from curricle.teachers.store.codecs import Codec
from curricle.values import Plain, fingerprint, parse, plain, value
from curricle.yaml_specs import Document

MANIFEST = "manifest.json"
DRAW = "projection_"
"""Prefix of the entries of a key that identify a random projection."""
CALIBRATION = "calibrated_on"
"""Entry of a key with the stream of a calibrated objective's statistics."""


@final
@value
class TeacherFacts:
    """Description of the teacher."""

    weights: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the weights by reference; empty for imported targets."""
    taps: tuple[str, ...] = ()
    """Places of the numbered taps, from 0 on; empty if they have no numbers."""
    is_residual: bool = False
    """Whether the taps lie on one residual stream."""
    parameters: int = 0
    """Number of parameters; 0 if unknown."""
    precision: str = ""
    """Precision of the teacher's forward passes."""


@final
@value
class DataFacts:
    """Description of the data."""

    name: str = ""
    """Short name of the data."""
    fingerprint: str = ""
    """Digest of the captured stream; empty for imported targets."""
    tokenizer: str = ""
    """SHA-256 of the tokenizer; empty if there is none or it is unknown."""


@final
@value
class TargetSet:
    """One kind of target of one teacher."""

    reference: TeacherReference = "final"
    """The finished teacher or the step of a checkpoint."""
    facts: Plain
    """Key of the targets, from the objective: tap, projection and its draw, or classes."""
    selected: bool
    """Whether rows are those of selected positions; else of all with data, or the first of them."""
    codec: Codec
    """Compression."""
    width: int = Field(gt=0)
    """Numbers per row before compression: width of a state, or number of classes."""

    def __post_init__(self) -> None:
        """Check that the targets have a kind, with which the names of their files begin.

        Raises:
            SpecError: If not.
        """
        kind = self.facts.get("kind")
        if not isinstance(kind, str) or not is_plain_name(kind):
            raise SpecError(
                f"'facts' of stored targets must have a 'kind' such as 'hidden' or 'logits'; got "
                f"{kind!r}"
            )

    @property
    def name(self) -> str:
        """Return the prefix of its file names: the kind and a digest of all but the codec."""
        # Without the codec, a capture with another codec into the same folder collides and is
        # refused, instead of leaving two sets that both serve an objective.
        identity = [self.reference, self.facts, self.selected]
        return f"{self.facts['kind']}-{fingerprint(identity)[:8]}"

    @property
    def is_sparse(self) -> bool:
        """Return whether only some classes of a row are stored."""
        return self.codec.kind in {"sampled", "top_k"}

    def matches(
        self, reference: TeacherReference, key: Plain, *, but: tuple[str, ...] = ()
    ) -> bool:
        """Return whether the targets serve an objective.

        Args:
            reference: The teacher of its stage.
            key: Key of its targets.
            but: Prefixes of entries of the key that may differ.
        """
        stored, required = (
            {name: entry for name, entry in entries.items() if not name.startswith(but)}
            for entries in (self.facts, key)
        )
        return self.reference == reference and stored == required

    def __str__(self) -> str:
        """Return a short description."""
        key = " ".join(f"{name}={entry}" for name, entry in self.facts.items() if name != "kind")
        positions = "selected" if self.selected else "all"
        return f"{self.facts['kind']} of {self.reference}, {positions} positions, {key}"


def target_key(objective: BoundObjective, stream: str) -> Plain:
    """Return the key of an objective's targets, with the stream if it awaits calibration.

    Args:
        objective: A bound objective.
        stream: Digest of the stream of its run.

    Raises:
        BindError: If it has no 'target_facts', or compares two tokenizers.
    """
    # Statistics of other data give other targets, even of the same teacher and examples.
    calibration = {} if pending_calibration(objective) is None else {CALIBRATION: stream}
    # Users' objectives need not support stored targets.
    description = target_description(objective)
    if isinstance(getattr(objective, "declared", None), MatchPairedLogits):
        raise BindError(
            "targets of 'paired_logits' cannot be stored, since they belong to positions of two "
            "tokenizers; run the teacher beside the student"
        )
    if description is None:
        raise BindError(
            f"{type(objective).__name__!r} must have 'target_facts' to store targets or to read "
            f"stored ones; it has none"
        )
    return {**description.facts, **calibration}


@final
@value
class Shard:
    """One file of stored targets."""

    file: str
    """Name in the folder."""
    section: str
    """Name of the target set; the field is named as in the file."""
    examples: int = Field(ge=0)
    """Number of examples."""
    rows: int = Field(ge=0)
    """Number of rows."""
    size: int = Field(ge=0)
    """Bytes of the file."""
    sha256: str
    """Digest of its content."""


@final
@value
class Manifest:
    """Description of a folder of stored targets."""

    format: Literal[1] = 1
    """Version of the layout."""
    teacher: TeacherFacts = TeacherFacts()
    """The teacher."""
    data: DataFacts = DataFacts()
    """The data."""
    # The key of the file, which keeps the former name of target sets so that folders stay readable.
    sections: tuple[TargetSet, ...] = ()
    """The target sets."""
    shards: tuple[Shard, ...] = ()
    """The files."""
    finished: dict[str, int] = Field(default_factory=dict)
    """Number of files of each target set at the end of its last finished capture."""

    @property
    def is_complete(self) -> bool:
        """Return whether all target sets are complete."""
        return all(map(self.has_all, self.sections))

    def has_all(self, target_set: TargetSet) -> bool:
        """Return whether no files were added to a target set since a finished capture."""
        return self.finished.get(target_set.name) == len(self.of(target_set))

    def is_readable(self, target_set: TargetSet) -> bool:
        """Return whether a target set was captured to its end; later files do not change that."""
        return target_set.name in self.finished

    def fingerprint(self, target_sets: Iterable[TargetSet]) -> str:
        """Return a digest of the dependencies of target sets, not of their examples.

        Args:
            target_sets: The target sets of a run; others do not enter.
        """
        # Neither data nor shards enter: a run may be resumed after more targets were captured.
        by_name = {target_set.name: target_set for target_set in target_sets}
        references = {str(target_set.reference) for target_set in by_name.values()}
        weights = {name: sha for name, sha in self.teacher.weights.items() if name in references}
        teacher = replace(self.teacher, weights=weights)
        sets = {name: plain(target_set) for name, target_set in by_name.items()}
        return fingerprint([plain(teacher), sets])

    def target_set(self, name: str) -> TargetSet | None:
        """Return the target set of a name; None if there is none."""
        return next((target_set for target_set in self.sections if target_set.name == name), None)

    def of(self, target_set: TargetSet) -> tuple[Shard, ...]:
        """Return the files of a target set."""
        return tuple(shard for shard in self.shards if shard.section == target_set.name)

    def with_shard(self, shard: Shard) -> "Manifest":
        """Return the manifest with an additional file."""
        return replace(self, shards=(*self.shards, shard))

    def with_finished(self, target_sets: Iterable[TargetSet]) -> "Manifest":
        """Return the manifest after a finished capture of target sets."""
        counts = {target_set.name: len(self.of(target_set)) for target_set in target_sets}
        return replace(self, finished={**self.finished, **counts})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder atomically."""
    write_sealed(folder / MANIFEST, plain(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another format, or lists a file
            outside of the folder.
    """
    path = folder / MANIFEST
    try:
        # Version 0.1 wrote no checksum.
        content = read_sealed(path, needs_check=False)
        manifest: Manifest = parse(Manifest, _with_present_names(content))
    except (OSError, ValueError, CurricleError) as error:
        raise CheckpointError(
            f"{str(path)!r} must describe stored targets, as 'curricle targets capture' writes "
            f"it: {reason(error)}; capture into a new folder"
        ) from None
    # A manifest from elsewhere must not make this process read, or a repair delete, other files.
    for shard in manifest.shards:
        inside(folder, shard.file)
    return manifest


def _with_present_names(content: Document) -> Document:
    """Return a manifest whose codecs have the field names of this version."""
    # What has another form is left to the parser, which names it.
    target_sets = content.get("sections")
    for target_set in target_sets if isinstance(target_sets, list) else ():
        codec = target_set.get("codec") if isinstance(target_set, dict) else None
        if isinstance(codec, dict) and "draws" in codec:
            codec["num_samples"] = codec.pop("draws")
    return content


def missing_files(folder: Path, manifest: Manifest) -> list[str]:
    """Return the names of files that are missing or of another size, without reading any.

    Args:
        folder: Folder of the store.
        manifest: Its manifest.
    """
    sizes = {
        shard: (folder / shard.file).stat().st_size if (folder / shard.file).is_file() else None
        for shard in manifest.shards
    }
    return [shard.file for shard, size in sizes.items() if size != shard.size]
