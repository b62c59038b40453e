"""Teacher that reads precomputed targets from disk.

A `StoredTeacher` is a drop-in replacement for `LiveTeacher` that loads no network: its targets were
captured once and serve any number of students, seeds and epochs. Binding finds the stored targets
of each objective. A projection drawn with another seed serves as well, so students of other seeds
use the projection of the store.

Design: binding a stage needs shapes. `shown` returns zeros of the teacher's widths at the student's
positions, and `blank` targets check that an objective can read the stored form. The engine reads
the targets of a batch from `StoredTargets` and does not depend on codecs.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import nn

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
    """Return the teacher of the targets in a folder, to be passed in place of a model.

    Args:
        folder: Where targets were captured or imported.
    """
    return StoredTeacher(open_store(folder))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTargets:
    """The targets of one objective."""

    reader: SectionReader
    """Reader of their target set."""
    selected: bool
    """Whether the objective reads selected positions only."""

    @property
    def is_dense(self) -> bool:
        """Return whether the targets hold all numbers of a row."""
        return not self.reader.section.is_sparse

    def target(self, batch: Batch, rows: int) -> Target:
        """Return the targets of a batch.

        Args:
            batch: The batch.
            rows: Number of its rows, as the objective counts them.
        """
        return self.reader.target(batch, selected=self.selected, rows=rows)

    def blank(self, rows: int, device: torch.device) -> Target:
        """Return targets of all-zero rows, in the form of decoded targets.

        Args:
            rows: Number of rows.
            device: Device of the tensors.
        """
        # One row is encoded and repeated: all rows are equal, and encoding is the slow step.
        codec, width = self.reader.section.codec, self.reader.section.width
        entries = codec.encode(torch.zeros(1, width), lambda count: np.zeros((1, count)))
        repeated = {name: entry.expand(rows, *entry.shape[1:]) for name, entry in entries.items()}
        return codec.decode({name: entry.to(device) for name, entry in repeated.items()}, width)


@final
class StoredTeacher:
    """Teacher without a network, represented by its stored targets."""

    def __init__(self, store: TargetStore) -> None:
        """Take an opened store."""
        self.store = store
        self.model = _Described(store.manifest)
        self.trajectory: Trajectory | None = None
        """Checkpoints of the teacher for strategies that select among them."""

    def fingerprint(self, targets: Iterable[StoredTargets | None]) -> str:
        """Return a digest of the provenance of some of its targets.

        Args:
            targets: The targets of each objective of a run; None for an objective without any.
        """
        read = [target_set.reader.section for target_set in targets if target_set is not None]
        return self.store.manifest.fingerprint(read)

    def check(self, references: Iterable[Reference]) -> None:
        """Check that targets of every checkpoint named by a stage are stored.

        Raises:
            BindError: If a checkpoint has none.
        """
        stored = sorted({str(section.reference) for section in self.store.manifest.sections})
        for reference in references:
            if str(reference) not in stored:
                raise BindError(
                    f"'teacher' checkpoint must be one whose targets are stored, {stored}; got "
                    f"{str(reference)!r}"
                )

    def check_precision(self, precision: str) -> None:
        """Check that the targets were captured in the precision that the run requires.

        Raises:
            BindError: If they were captured in another precision.
        """
        captured = self.store.manifest.teacher.precision
        if captured and captured != precision:
            raise BindError(
                f"'teacher_precision' must be {captured!r}, in which the targets in "
                f"{str(self.store.folder)!r} were captured; got {precision!r}"
            )

    def teaching(self, inference: Inference = PLAIN) -> AbstractContextManager[None]:
        """Return an empty context: there is no model with a mode or precision to set."""
        del inference
        return nullcontext()

    def serving(
        self, objective: BoundObjective, reference: Reference, stream: str
    ) -> StoredTargets:
        """Return the stored targets of an objective.

        Args:
            objective: A bound objective that needs a teacher.
            reference: The teacher of its stage.
            stream: Digest of the stream that it reads.

        Raises:
            BindError: If there are none, or it cannot read their form.
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
        # Targets of all positions contain those of selected positions, but not the other way round.
        candidates = tuple(
            section for section in readable if not section.selected or objective.reads_selected
        )
        # Another draw of the projection or another calibration mean serves as well, so exact
        # matches are tried first and the match is relaxed step by step.
        for but in ((), (DRAW,), (CALIBRATION,), (DRAW, CALIBRATION)):
            matches = [
                section for section in candidates if section.matches(reference, facts, but=but)
            ]
            matches = [
                section for section in matches if section.selected == objective.reads_selected
            ] or matches
            if matches:
                break
        if len(matches) == 1:
            return matches[0]
        stored = "; ".join(map(str, readable)) or "none"
        incomplete = "; ".join(
            str(section) for section in manifest.sections if section not in readable
        )
        remedy = (
            f"; not captured to the end, capturing again goes on: {incomplete}"
            if incomplete
            else ""
        )
        description = " ".join(f"{name}={fact}" for name, fact in facts.items())
        many = f", and be one; there are {len(matches)}" if matches else ""
        raise BindError(
            f"{str(self.store.folder)!r} must hold targets of teacher {reference!r} with "
            f"{description}{many}; stored: {stored}{remedy}"
        )

    def shown(self, readings: Sequence[Reads], student: Activations) -> Activations:
        """Return zeros in the shapes of the teacher's activations.

        Args:
            readings: The places that each objective of a stage reads.
            student: The student's activations, whose positions are used.
        """
        # The teacher's positions are not stored. They equal the student's, as each row of targets
        # belongs to one position of the student.
        hidden = {
            teacher_place: student.hidden[student_place].new_zeros(
                (*student.hidden[student_place].shape[:-1], self.model.width(teacher_place))
            )
            for reads in readings
            for student_place, teacher_place in zip(reads.student, reads.teacher, strict=False)
        }
        logits = head = None
        if student.logits is not None and any(reads.teacher_logits for reads in readings):
            # One expanded number: the teacher's classes at every position could fill the memory.
            shape = (*student.logits.shape[:-1], self.model.num_classes)
            logits = student.logits.new_zeros(1).expand(shape)
        if student.head is not None and any(reads.teacher_head for reads in readings):
            # A head of width 1 suffices, since only the number of classes is read from it.
            states = student.head.states[..., :1].detach()
            weight = states.new_zeros((self.model.num_classes, 1))
            head = LinearHead(states=states, weight=weight)
        return Activations(hidden, logits, head)


def check_readable(objective: BoundObjective, section: Section) -> None:
    """Check that an objective can read targets in their stored form.

    Args:
        objective: A bound objective with `target_facts`.
        section: Its target set.

    Raises:
        BindError: If it cannot.
    """
    codec = section.codec
    if not isinstance(codec, (Sampled, TopK)):
        return
    # The stored classes are drawn from, or ranked by, probabilities at one temperature. They cannot
    # be softened again, because the other logits are lost.
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
    """Model as described by a manifest: taps and widths without weights."""

    def __init__(self, manifest: Manifest) -> None:
        # An empty module, so that counting parameters or switching modes needs no special case.
        self.module = nn.Module()
        self.is_residual = manifest.teacher.is_residual
        self._taps = manifest.teacher.taps
        facts = [section.facts for section in manifest.sections]
        try:
            self._widths = {
                str(fact["place"]): int(fact["teacher_width"])
                for fact in facts
                if {"place", "teacher_width"} <= fact.keys()
            }
            counts = {int(fact["num_classes"]) for fact in facts if "num_classes" in fact}
        except (ValueError, TypeError, OverflowError) as error:
            # The seal only covers accidental damage: another program may have written the file.
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
        """Raise, because there is no network to run.

        Raises:
            BindError: Always.
        """
        del logits, head
        raise BindError(
            f"'teacher' must be a model to be read at {[str(place) for place in places]}; got "
            f"stored targets"
        )
