"""Manifest of a folder of stored targets.

`manifest.json` describes the teacher (a digest of its weights, its taps), the data (digests of the
data and of the tokenizer), each kind of target with its codec (one `Section`), and every file with
its size and SHA-256. A reader needs nothing else.

Axes: example (rows of a batch), row (counted positions of all examples).

Design: the manifest is written after each shard, atomically. Unlisted files are ignored, so an
interrupted capture continues after its last complete shard. A section that was once captured
completely stays readable, independent of later captures into the same folder. The manifest ends
with a checksum of its own content, and all listed files must lie inside its folder.
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
"""Prefix of the facts that identify the draw of a projection."""
CALIBRATION = "calibrated_on"
"""Fact with the digest of the stream on which an objective was calibrated."""


@final
@value
class TeacherFacts:
    """Identity of the teacher."""

    weights: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the weights by reference; empty if the targets were made elsewhere."""
    taps: tuple[str, ...] = ()
    """Places of the numbered taps, starting at 0; empty if they have no numbers."""
    is_residual: bool = False
    """Whether the taps lie on one residual stream."""
    parameters: int = 0
    """Number of parameters; 0 if it is not known."""
    precision: str = ""
    """Precision of the teacher's passes."""


@final
@value
class DataFacts:
    """Identity of the data."""

    name: str = ""
    """Short description of the data."""
    fingerprint: str = ""
    """Digest of the stream that was captured; empty if the targets were made elsewhere."""
    tokenizer: str = ""
    """SHA-256 of the tokenizer; empty if there is none, or none is known."""


@final
@value
class Section:
    """One kind of target."""

    reference: Reference = "final"
    """The teacher: the finished one, or a checkpoint."""
    facts: Plain
    """Description by the objective: tap, projection and its draw, or number of classes."""
    selected: bool
    """Whether rows are those of selected positions; else of all with data, or the first of them."""
    codec: Codec
    """Encoding of the rows."""
    width: int = Field(gt=0)
    """Length of a row before encoding: width of a state, or number of classes."""

    def __post_init__(self) -> None:
        """Check that the facts have a kind, the prefix of the file names.

        Raises:
            SpecError: If they have none, or it is not a plain file name.
        """
        # The kind enters file names, so a manifest of foreign origin must not smuggle in a path.
        kind = self.facts.get("kind")
        if not isinstance(kind, str) or not is_plain_name(kind):
            raise SpecError(
                f"'facts' of stored targets must have a 'kind' such as 'hidden' or 'logits'; got "
                f"{kind!r}"
            )

    @property
    def name(self) -> str:
        """Return the prefix of its files: the kind and a digest of everything but the codec."""
        # Without the codec, so that capturing again with another codec meets the stored section
        # and is rejected instead of silently storing both.
        identity = [self.reference, self.facts, self.selected]
        return f"{self.facts['kind']}-{fingerprint(identity)[:8]}"

    @property
    def is_sparse(self) -> bool:
        """Return whether only some classes of a row are kept."""
        return self.codec.kind in {"sampled", "top_k"}

    def matches(self, reference: Reference, facts: Plain, *, but: tuple[str, ...] = ()) -> bool:
        """Return whether the targets serve an objective.

        Args:
            reference: The teacher of its stage.
            facts: Its description of the targets.
            but: Beginnings of facts that may differ.
        """
        stored, required = (
            {name: fact for name, fact in named_facts.items() if not name.startswith(but)}
            for named_facts in (self.facts, facts)
        )
        return self.reference == reference and stored == required

    def __str__(self) -> str:
        """Return a short description."""
        details = " ".join(f"{name}={fact}" for name, fact in self.facts.items() if name != "kind")
        where = "selected" if self.selected else "all"
        return f"{self.facts['kind']} of {self.reference}, {where} positions, {details}"


def facts_of(objective: BoundObjective, stream: str) -> Plain:
    """Return an objective's description of its targets, with its calibration stream if it has one.

    Args:
        objective: A bound objective.
        stream: Digest of the stream that it reads.

    Raises:
        BindError: If it has no `target_facts`.
    """
    # Centered targets depend on the mean over the calibration stream, which names them as well.
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
    """Description of a folder of stored targets."""

    format: Literal[1] = 1
    """Version of the layout."""
    teacher: TeacherFacts = TeacherFacts()
    """Identity of the teacher."""
    data: DataFacts = DataFacts()
    """Identity of the data."""
    sections: tuple[Section, ...] = ()
    """The kinds of targets."""
    shards: tuple[Shard, ...] = ()
    """The files."""
    finished: dict[str, int] = Field(default_factory=dict)
    """Number of files of each section at the end of its last complete capture."""

    @property
    def is_complete(self) -> bool:
        """Return whether all sections are complete."""
        return all(map(self.is_whole, self.sections))

    def is_whole(self, section: Section) -> bool:
        """Return whether no capture of a section was interrupted after the last complete one."""
        # An interrupted capture adds files without raising the count in `finished`.
        return self.finished.get(section.name) == len(self.of(section))

    def is_readable(self, section: Section) -> bool:
        """Return whether a section was captured completely; later files do not change that."""
        return section.name in self.finished

    def fingerprint(self, sections: Iterable[Section]) -> str:
        """Return a digest of the provenance of some sections, independent of the stored examples.

        Args:
            sections: The sections of the run; others do not change the digest.
        """
        # A folder can be extended by further captures. Checkpoints of runs that read it stay valid,
        # because neither new sections nor weights of other references enter the digest.
        read = {section.name: section for section in sections}
        references = {str(section.reference) for section in read.values()}
        weights = {
            name: digest for name, digest in self.teacher.weights.items() if name in references
        }
        teacher = replace(self.teacher, weights=weights)
        return fingerprint(
            [plain(teacher), {name: plain(section) for name, section in read.items()}]
        )

    def section(self, name: str) -> Section | None:
        """Return the section of a name; None if there is none."""
        return next((section for section in self.sections if section.name == name), None)

    def of(self, section: Section) -> tuple[Shard, ...]:
        """Return the files of a section."""
        return tuple(shard for shard in self.shards if shard.section == section.name)

    def with_shard(self, shard: Shard) -> "Manifest":
        """Return the manifest with one more file."""
        return replace(self, shards=(*self.shards, shard))

    def with_end(self, sections: Iterable[Section]) -> "Manifest":
        """Return the manifest after a complete capture of some sections."""
        ends = {section.name: len(self.of(section)) for section in sections}
        return replace(self, finished={**self.finished, **ends})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder atomically."""
    write_sealed(folder / MANIFEST, plain(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        CheckpointError: If it is missing, damaged, of another format, or lists a file outside of
            the folder.
    """
    path = folder / MANIFEST
    try:
        # Version 0.1 wrote no checksum.
        manifest: Manifest = parse(Manifest, read_sealed(path, needs_check=False))
    except (OSError, ValueError, CurricleError) as error:
        raise CheckpointError(
            f"{str(path)!r} must describe stored targets, as 'curricle targets capture' writes "
            f"it: {reason(error)}; capture into a new folder"
        ) from None
    # A shared folder may come from elsewhere: `../` in a listed name must not reach other files.
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
