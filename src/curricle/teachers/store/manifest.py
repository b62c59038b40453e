"""Manifest of a folder of stored targets.

`manifest.json` holds whose targets they are (a digest of the teacher's weights, its taps), of which
data (digests of the data and of the tokenizer), how they were made and packed (one `Section` for
each kind of target), and every file with its size and SHA-256. A reader needs nothing else.

Axes: example (rows of a batch), row (counted positions of all examples).

Design: the manifest is written after each shard, in one step. What it does not list does not exist,
so a capture that was killed goes on after its last whole shard. A section that was once captured to
its end stays readable, whatever becomes of later captures into the same folder. The manifest ends
with a check of itself, and no file that it lists may lie outside of its folder.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

from pydantic import Field

from curricle.errors import BindError, CheckpointError, CurricleError, SpecError, reason
from curricle.files import inside, is_plain_name
from curricle.objectives.base import BoundObjective, Storable, pending_calibration
from curricle.protocols import conforms
from curricle.seals import read_sealed, write_sealed
from curricle.teachers.live import Reference
from curricle.teachers.store.codecs import Codec
from curricle.values import Plain, fingerprint, parse, plain, value

MANIFEST = "manifest.json"
DRAW = "projection_"
"""How facts begin that tell one draw of a projection from another."""
CALIBRATION = "calibrated_on"
"""Fact that tells on which stream an objective was calibrated, if it was."""


@final
@value
class TeacherFacts:
    """Whose targets are stored."""

    weights: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the weights by reference; empty if the targets were made elsewhere."""
    taps: tuple[str, ...] = ()
    """Places of the numbered taps, from 0 on; empty if they have no numbers."""
    is_residual: bool = False
    """Whether the taps lie on one residual stream."""
    parameters: int = 0
    """Number of parameters; 0 if it is not known."""
    precision: str = ""
    """Precision of the teacher's passes."""


@final
@value
class DataFacts:
    """Of which data."""

    name: str = ""
    """The data in a few words."""
    fingerprint: str = ""
    """Digest of the stream that was captured; empty if the targets were made elsewhere."""
    tokenizer: str = ""
    """SHA-256 of the tokenizer; empty if there is none, or none is known."""


@final
@value
class Section:
    """One kind of target."""

    reference: Reference = "final"
    """Which teacher was asked."""
    facts: Plain
    """What the targets are, as the objective says it: tap, projection and its draw, or classes."""
    selected: bool
    """Whether rows are those of selected positions; else of all with data, or the first of them."""
    codec: Codec
    """How they are packed."""
    width: int = Field(gt=0)
    """Numbers of a row before it was packed: width of a state, or classes."""

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
        """Return what its files begin with: the kind and a digest of all but the codec."""
        told = [self.reference, self.facts, self.selected]
        return f"{self.facts['kind']}-{fingerprint(told)[:8]}"

    @property
    def is_sparse(self) -> bool:
        """Return whether only some classes of a row are kept."""
        return self.codec.kind in {"sampled", "top_k"}

    def matches(self, reference: Reference, facts: Plain, *, but: tuple[str, ...] = ()) -> bool:
        """Return whether the targets serve an objective.

        Args:
            reference: The teacher that it asks.
            facts: What it says of its targets.
            but: Beginnings of facts that may differ.
        """
        own, wanted = (
            {name: found for name, found in one.items() if not name.startswith(but)}
            for one in (self.facts, facts)
        )
        return self.reference == reference and own == wanted

    def __str__(self) -> str:
        """Return what it is in a few words."""
        told = " ".join(f"{name}={found}" for name, found in self.facts.items() if name != "kind")
        where = "selected" if self.selected else "all"
        return f"{self.facts['kind']} of {self.reference}, {where} positions, {told}"


def facts_of(objective: BoundObjective, stream: str) -> Plain:
    """Return what an objective says of its targets, and on what it is calibrated if it is to be.

    Args:
        objective: A bound objective.
        stream: Digest of the stream that it reads.

    Raises:
        BindError: If it says nothing.
    """
    calibrated = {} if pending_calibration(objective) is None else {CALIBRATION: stream}
    if not conforms(objective, Storable):
        raise BindError(
            f"{type(objective).__name__!r} must say its 'target_facts' to have targets stored or "
            f"to read stored ones; it does not"
        )
    return {**objective.target_facts, **calibrated}


@final
@value
class Shard:
    """One file of stored targets."""

    file: str
    """Name in the folder."""
    section: str
    """Name of the section."""
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
    """All that is known of a folder of stored targets."""

    format: Literal[1] = 1
    """Version of the layout."""
    teacher: TeacherFacts = TeacherFacts()
    """Whose targets."""
    data: DataFacts = DataFacts()
    """Of which data."""
    sections: tuple[Section, ...] = ()
    """The kinds of targets."""
    shards: tuple[Shard, ...] = ()
    """The files."""
    finished: dict[str, int] = Field(default_factory=dict)
    """Files that each section had when a capture of it last came to its end."""

    @property
    def is_complete(self) -> bool:
        """Return whether all sections are whole."""
        return all(map(self.is_whole, self.sections))

    def is_whole(self, section: Section) -> bool:
        """Return whether a capture came to its end when all files of a section were there."""
        return self.finished.get(section.name) == len(self.of(section))

    def is_readable(self, section: Section) -> bool:
        """Return whether a section was captured to its end; later files do not change that."""
        return section.name in self.finished

    def fingerprint(self, sections: Iterable[Section]) -> str:
        """Return a digest of what some kinds of targets depend on, but not of which are there.

        Args:
            sections: The kinds that are read; what else is stored does not matter.
        """
        read = {section.name: section for section in sections}
        asked = {str(section.reference) for section in read.values()}
        weights = {name: one for name, one in self.teacher.weights.items() if name in asked}
        teacher = replace(self.teacher, weights=weights)
        return fingerprint([plain(teacher), {name: plain(one) for name, one in read.items()}])

    def section(self, name: str) -> Section | None:
        """Return the section of a name; None if there is none."""
        return next((one for one in self.sections if one.name == name), None)

    def of(self, section: Section) -> tuple[Shard, ...]:
        """Return the files of a section."""
        return tuple(one for one in self.shards if one.section == section.name)

    def with_shard(self, shard: Shard) -> "Manifest":
        """Return the manifest with one more file."""
        return replace(self, shards=(*self.shards, shard))

    def with_end(self, sections: Iterable[Section]) -> "Manifest":
        """Return the manifest after a capture of some sections that has come to its end."""
        ends = {one.name: len(self.of(one)) for one in sections}
        return replace(self, finished={**self.finished, **ends})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder in one step."""
    write_sealed(folder / MANIFEST, plain(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another format, or lists a file
            outside of the folder.
    """
    path = folder / MANIFEST
    try:
        # Version 0.1 wrote no check.
        manifest: Manifest = parse(Manifest, read_sealed(path, needs_check=False))
    except (OSError, ValueError, CurricleError) as error:
        raise CheckpointError(
            f"{str(path)!r} must describe stored targets, as 'curricle targets capture' writes "
            f"it: {reason(error)}; capture into a new folder"
        ) from None
    for shard in manifest.shards:
        inside(folder, shard.file)
    return manifest


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
