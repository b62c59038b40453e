"""Where do targets come from if the teacher has spoken before?

A `StoredTeacher` stands where a `LiveTeacher` stands, and no network does: its targets were made
once and are read by any number of students, seeds and epochs. Binding finds for each objective
the stored targets that serve it; a projection of another draw serves as well, so students of other
seeds are taught by that of the store.

Design: to bind, a stage has to see shapes. `shown` gives zeros of the teacher's widths at the
student's positions, and `blank` targets tell whether an objective can read what is kept. The
engine asks `StoredTargets` for the targets of a batch and knows nothing of codecs.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from curricle.colocation import beside
from curricle.data.streams import Batch
from curricle.errors import BindError, CheckpointError
from curricle.models.heads import LinearHead
from curricle.models.inference import Inference
from curricle.models.tapped import Activations, Place, Reader, Tap, tap_number
from curricle.objectives.base import BoundObjective, Reads, Storable, Target
from curricle.protocols import conforms
from curricle.teachers.live import PLAIN, Reference
from curricle.teachers.store.codecs import Sampled, TopK
from curricle.teachers.store.manifest import CALIBRATION, DRAW, Manifest, Section, facts_of
from curricle.teachers.store.target_sets import SectionReader, TargetStore, open_store
from curricle.teachers.trajectory import Trajectory
from curricle.values import Plain


def open_targets(folder: str | Path) -> "StoredTeacher":
    """Return the teacher whose targets lie in a folder, to be passed in place of a model.

    Args:
        folder: Where targets were captured or imported.
    """
    return StoredTeacher(open_store(folder))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTargets:
    """The targets of one objective."""

    reader: SectionReader
    """Where they are."""
    selected: bool
    """Whether the objective counts selected positions only."""

    @property
    def is_dense(self) -> bool:
        """Return whether targets are tensors that stand for all numbers of a row."""
        return not self.reader.section.is_sparse

    def target(self, batch: Batch, rows: int) -> Target:
        """Return what the objective compares the student with.

        Args:
            batch: The batch.
            rows: Number of its rows, as the objective counts them.
        """
        return self.reader.target(batch, selected=self.selected, rows=rows)

    def blank(self, rows: int, like: Tensor) -> Target:
        """Return targets of rows of zeros, in the form in which stored ones come.

        Args:
            rows: How many.
            like: A tensor that lies where they are to lie.
        """
        codec, width = self.reader.section.codec, self.reader.section.width
        one = codec.encode(torch.zeros(1, width), lambda count: np.zeros((1, count)))
        repeated = {name: kept.expand(rows, *kept.shape[1:]) for name, kept in one.items()}
        return codec.decode({name: beside(entry, like) for name, entry in repeated.items()}, width)


@final
class StoredTeacher:
    """A teacher of whom only targets are left."""

    def __init__(self, store: TargetStore) -> None:
        """Take an opened store."""
        self.store = store
        self.model = _Described(store.manifest)
        self.trajectory: Trajectory | None = None
        """Checkpoints of the teacher, by which a strategy may choose; their targets are stored."""

    def fingerprint(self, targets: Iterable[StoredTargets | None]) -> str:
        """Return a digest of what some of its targets depend on.

        Args:
            targets: Those of each objective of a run; None where it reads none.
        """
        read = [one.reader.section for one in targets if one is not None]
        return self.store.manifest.fingerprint(read)

    def check(self, references: Iterable[Reference]) -> None:
        """Check that every checkpoint that stages name has been asked.

        Raises:
            BindError: If one has not.
        """
        stored = sorted({str(section.reference) for section in self.store.manifest.sections})
        for reference in references:
            if str(reference) not in stored:
                raise BindError(
                    f"'teacher' checkpoint must be one whose targets are stored, {stored}; got "
                    f"{str(reference)!r}"
                )

    def check_precision(self, precision: str) -> None:
        """Check that the teacher has spoken in the precision in which it is to be asked.

        Raises:
            BindError: If it has spoken in another one.
        """
        told = self.store.manifest.teacher.precision
        if told and told != precision:
            raise BindError(
                f"'teacher_precision' must be {told!r}, in which the targets in "
                f"{str(self.store.folder)!r} were captured; got {precision!r}"
            )

    def teaching(self, inference: Inference = PLAIN) -> AbstractContextManager[None]:
        """Return a block that does nothing: no model is to be held in a mode or precision."""
        del inference
        return nullcontext()

    def serving(
        self, objective: BoundObjective, reference: Reference, stream: str
    ) -> StoredTargets:
        """Return the stored targets of an objective.

        Args:
            objective: A bound objective that needs a teacher.
            reference: The teacher that its stage asks.
            stream: Digest of the stream that it reads.

        Raises:
            BindError: If there are none, or it cannot read what was kept.
        """
        facts = facts_of(objective, stream)
        storable = objective
        assert conforms(storable, Storable)  # noqa: S101 - or it would have no facts
        section = self._find(storable, facts, reference)
        check_readable(objective, section)
        return StoredTargets(reader=self.store.reader(section), selected=storable.reads_selected)

    def _find(self, objective: Storable, facts: Plain, reference: Reference) -> Section:
        manifest = self.store.manifest
        readable = tuple(filter(manifest.is_readable, manifest.sections))
        # Of all positions some can be selected, but not the other way round.
        known = tuple(one for one in readable if not one.selected or objective.reads_selected)
        # Targets of another draw teach as well, and so do those centered on the mean of other data.
        for but in ((), (DRAW,), (CALIBRATION,), (DRAW, CALIBRATION)):
            found = [one for one in known if one.matches(reference, facts, but=but)]
            found = [one for one in found if one.selected == objective.reads_selected] or found
            if found:
                break
        if len(found) == 1:
            return found[0]
        stored = "; ".join(map(str, readable)) or "none"
        begun = "; ".join(str(one) for one in manifest.sections if one not in readable)
        remedy = f"; not captured to the end, capturing again goes on: {begun}" if begun else ""
        wanted = " ".join(f"{name}={fact}" for name, fact in facts.items())
        many = f", and be one; there are {len(found)}" if found else ""
        raise BindError(
            f"{str(self.store.folder)!r} must hold targets of teacher {reference!r} with "
            f"{wanted}{many}; stored: {stored}{remedy}"
        )

    def shown(self, each: Sequence[Reads], student: Activations) -> Activations:
        """Return zeros in the shapes of what the teacher would show.

        Args:
            each: What each objective of a stage reads.
            student: What the student shows there, which tells the positions.
        """
        hidden = {
            theirs: student.hidden[ours].new_zeros(
                (*student.hidden[ours].shape[:-1], self.model.width(theirs))
            )
            for reads in each
            for ours, theirs in zip(reads.student, reads.teacher, strict=False)
        }
        logits = head = None
        if student.logits is not None and any(reads.teacher_logits for reads in each):
            shape = (*student.logits.shape[:-1], self.model.num_classes)
            logits = student.logits.new_zeros(1).expand(shape)
        if student.head is not None and any(reads.teacher_head for reads in each):
            states = student.head.states[..., :1].detach()
            weight = states.new_zeros((self.model.num_classes, 1))
            head = LinearHead(states=states, weight=weight)
        return Activations(hidden, logits, head)


def check_readable(objective: BoundObjective, section: Section) -> None:
    """Check that an objective can read targets in the form in which they are kept.

    Args:
        objective: A bound objective that says its facts.
        section: Its targets.

    Raises:
        BindError: If it cannot.
    """
    codec = section.codec
    if not isinstance(codec, (Sampled, TopK)):
        return
    softening = objective.sparse_temperature if conforms(objective, Storable) else None
    if softening is None:
        raise BindError(
            f"'targets' of codec {codec.kind!r} must be read by 'logits' with divergence "
            f"'forward_kl'; got {objective.describe()[1]!r}"
        )
    if softening != codec.temperature:
        raise BindError(
            f"'teacher_temperature' must be {codec.temperature:g}, the temperature of targets of "
            f"codec {codec.kind!r}; got {softening:g}"
        )


@final
class _Described:
    """What a manifest tells of a model: taps and widths, and not a weight."""

    def __init__(self, manifest: Manifest) -> None:
        self.module = nn.Module()
        self.is_residual = manifest.teacher.is_residual
        self._taps = manifest.teacher.taps
        facts = [section.facts for section in manifest.sections]
        try:
            self._widths = {
                str(known["place"]): int(known["teacher_width"])
                for known in facts
                if {"place", "teacher_width"} <= known.keys()
            }
            counts = {int(known["num_classes"]) for known in facts if "num_classes" in known}
        except (ValueError, TypeError, OverflowError) as error:
            # A check covers the manifest, but whoever wrote it may have been another program.
            raise CheckpointError(
                f"'facts' of a set of stored targets must hold whole numbers: {error}"
            ) from None
        self._classes = sorted(counts)

    @property
    def depth(self) -> int:
        """Return the number of blocks."""
        return max(len(self._taps) - 1, 0)

    @property
    def num_classes(self) -> int:
        """Return the number of classes.

        Raises:
            BindError: If no logits are stored.
        """
        if not self._classes:
            raise BindError(
                f"'targets' must hold logits to match them; got hidden states at "
                f"{sorted(self._widths)}"
            )
        return self._classes[-1]

    def place(self, tap: Tap) -> Place:
        """Return the place of a tap."""
        if isinstance(tap, str):
            return Place(tap)
        number = tap_number(tap, self.depth)
        path = self._taps[number] if self._taps else ""
        return Place(path, tap=str(number))

    def width(self, place: Place) -> int:
        """Return the width of a place.

        Raises:
            BindError: If nothing of it is stored.
        """
        if str(place) not in self._widths:
            raise BindError(
                f"'targets' must hold those of the teacher's tap {place.label!r}; stored are those "
                f"at {sorted(self._widths)}"
            )
        return self._widths[str(place)]

    def reading(
        self, places: Iterable[Place], *, logits: bool, head: bool = False
    ) -> AbstractContextManager[Reader]:
        """Refuse to run.

        Raises:
            BindError: Always.
        """
        del logits, head
        raise BindError(
            f"'teacher' must be a model to be read at {[str(place) for place in places]}; got "
            f"stored targets"
        )
