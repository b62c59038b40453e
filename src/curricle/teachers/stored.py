"""Teacher that reads precomputed targets from disk.

A `StoredTeacher` is a drop-in replacement for `LiveTeacher`; no network is loaded. Its targets were
captured once and serve any number of students, seeds and epochs. Binding finds the stored targets
of each objective. Those of another random projection are equally valid, so students of all seeds
are trained with the projection of the store.

Design: binding needs shapes. `placeholders` returns zeros of the teacher's widths at the student's
positions, and `blank` returns targets of zeros, which show whether an objective can read the
compressed form. The training loop reads the targets of a batch from `StoredTargets` and does not
depend on codecs.
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
from curricle.curriculum.stages import TeacherReference
from curricle.data.batch import Batch
from curricle.errors import BindError, CheckpointError
from curricle.models.heads import LinearHead
from curricle.models.inference import Inference
from curricle.models.tapped import Activations, Forward, Place, Tap, tap_number
from curricle.objectives.base import BoundObjective, Reads, Target, target_description
from curricle.teachers.live import PLAIN
from curricle.teachers.store.codecs import Sampled, TopK
from curricle.teachers.store.manifest import CALIBRATION, DRAW, Manifest, TargetSet, target_key
from curricle.teachers.store.target_sets import TargetSetReader, TargetStore, open_store
from curricle.teachers.trajectory import Trajectory
from curricle.values import Plain


def open_targets(folder: str | Path) -> "StoredTeacher":
    """Return the teacher of stored targets, to be passed in place of a model.

    Args:
        folder: Folder of captured or imported targets.
    """
    return StoredTeacher(open_store(folder))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTargets:
    """The stored targets of an objective."""

    reader: TargetSetReader
    """Forward of their target set."""
    selected: bool
    """Whether the objective counts selected positions only."""

    @property
    def is_dense(self) -> bool:
        """Return whether targets are tensors with all numbers of a row."""
        return not self.reader.target_set.is_sparse

    def target(self, batch: Batch, rows: int) -> Target:
        """Return the targets of a batch.

        Args:
            batch: The batch.
            rows: Number of its rows, as counted by the objective.
        """
        return self.reader.target(batch, selected=self.selected, rows=rows)

    def blank(self, rows: int, like: Tensor) -> Target:
        """Return targets of rows of zeros, in the same form as stored ones.

        Args:
            rows: Number of rows.
            like: A tensor that lies where the targets are to lie.
        """
        codec, width = self.reader.target_set.codec, self.reader.target_set.width
        # One row is encoded and repeated, since logits of a whole batch may exceed the memory.
        row = codec.encode(torch.zeros(1, width), lambda count: np.zeros((1, count)))
        repeated = {name: entry.expand(rows, *entry.shape[1:]) for name, entry in row.items()}
        return codec.decode({name: beside(entry, like) for name, entry in repeated.items()}, width)


@final
class StoredTeacher:
    """A teacher without a model, with targets on disk."""

    def __init__(self, store: TargetStore) -> None:
        """Create the teacher of an opened store."""
        self.store = store
        self.model = _ManifestModel(store.manifest)
        self.trajectory: Trajectory | None = None
        """Checkpoints of the teacher, for strategies that select some; their targets are stored."""

    def fingerprint(self, targets: Iterable[StoredTargets | None]) -> str:
        """Return a digest of the dependencies of targets.

        Args:
            targets: Targets of each objective of a run; None for an objective without teacher.
        """
        return self.store.manifest.fingerprint(
            stored.reader.target_set for stored in targets if stored is not None
        )

    def check(self, references: Iterable[TeacherReference]) -> None:
        """Check that targets of every checkpoint of the stages are stored.

        Raises:
            BindError: If not.
        """
        stored = sorted({str(target_set.reference) for target_set in self.store.manifest.sections})
        for reference in references:
            if str(reference) not in stored:
                raise BindError(
                    f"'teacher' checkpoint must be one whose targets are stored, {stored}; got "
                    f"{str(reference)!r}"
                )

    def check_precision(self, precision: str) -> None:
        """Check that the targets were captured in the precision of the run's teacher.

        Raises:
            BindError: If they were captured in another precision.
        """
        # Imported targets have no precision on record.
        captured = self.store.manifest.teacher.precision
        if captured and captured != precision:
            raise BindError(
                f"'teacher_precision' must be {captured!r}, in which the targets in "
                f"{str(self.store.folder)!r} were captured; got {precision!r}"
            )

    def teaching(self, inference: Inference = PLAIN) -> AbstractContextManager[None]:
        """Return an empty context: there is no model with a mode or precision."""
        del inference
        return nullcontext()

    def serving(
        self, objective: BoundObjective, reference: TeacherReference, stream: str
    ) -> StoredTargets:
        """Return the stored targets of an objective.

        Args:
            objective: A bound objective that needs a teacher.
            reference: The teacher of its stage.
            stream: Digest of the stream of its run.

        Raises:
            BindError: If there are none, or the objective cannot read their codec.
        """
        key = target_key(objective, stream)
        description = target_description(objective)
        assert description is not None  # noqa: S101 - or it would have no key
        selected = description.reads_selected
        target_set = self._find(key, reference, selected=selected)
        check_readable(objective, target_set)
        return StoredTargets(reader=self.store.reader(target_set), selected=selected)

    def _find(self, key: Plain, reference: TeacherReference, *, selected: bool) -> TargetSet:
        manifest = self.store.manifest
        readable = tuple(filter(manifest.is_readable, manifest.sections))
        # Selected positions can be picked from all positions, but not the other way round.
        candidates = [stored for stored in readable if not stored.selected or selected]
        # Another random projection is an equally valid target, and so is centering on the mean of
        # other data; the closest match comes first.
        for but in ((), (DRAW,), (CALIBRATION,), (DRAW, CALIBRATION)):
            matches = [stored for stored in candidates if stored.matches(reference, key, but=but)]
            # If targets of both all and selected positions match, the latter need no picking.
            same_rows = [stored for stored in matches if stored.selected == selected]
            matches = same_rows or matches
            if matches:
                break
        if len(matches) == 1:
            return matches[0]
        unfinished = [target_set for target_set in manifest.sections if target_set not in readable]
        remedy = f"; not captured to the end, capture again: {_listed(unfinished)}"
        ambiguity = f", and be one; there are {len(matches)}" if matches else ""
        raise BindError(
            f"{str(self.store.folder)!r} must hold targets of teacher {reference!r} with "
            f"{' '.join(f'{name}={entry}' for name, entry in key.items())}{ambiguity}; stored: "
            f"{_listed(readable) or 'none'}{remedy if unfinished else ''}"
        )

    def placeholders(self, all_reads: Sequence[Reads], student: Activations) -> Activations:
        """Return zeros in the shapes of the teacher's activations.

        Args:
            all_reads: Reads of each objective of a stage.
            student: Activations of the student, which has the same positions.
        """
        hidden = {
            teacher_place: student.hidden[student_place].new_zeros(
                (*student.hidden[student_place].shape[:-1], self.model.width(teacher_place))
            )
            for reads in all_reads
            for student_place, teacher_place in zip(reads.student, reads.teacher, strict=False)
        }
        logits = head = None
        if student.logits is not None and any(reads.teacher_logits for reads in all_reads):
            shape = (*student.logits.shape[:-1], self.model.num_classes)
            # Expanded from one number: logits of a large vocabulary are not allocated for shapes.
            logits = student.logits.new_zeros(1).expand(shape)
        if student.head is not None and any(reads.teacher_head for reads in all_reads):
            # Width 1 suffices: a loss on the head needs the positions and the number of classes.
            states = student.head.states[..., :1].detach()
            weight = states.new_zeros((self.model.num_classes, 1))
            head = LinearHead(states=states, weight=weight)
        return Activations(hidden, logits, head)


def _listed(target_sets: Iterable[TargetSet]) -> str:
    return "; ".join(map(str, target_sets))


def check_readable(objective: BoundObjective, target_set: TargetSet) -> None:
    """Check that an objective can read the codec of its targets.

    Args:
        objective: A bound objective with stored targets.
        target_set: Its targets.

    Raises:
        BindError: If it cannot.
    """
    codec = target_set.codec
    # Dense codecs decode to the tensors of a live teacher.
    if not isinstance(codec, (Sampled, TopK)):
        return
    description = target_description(objective)
    temperature = None if description is None else description.sparse_temperature
    if temperature is None:
        raise BindError(
            f"'targets' of codec {codec.kind!r} must be read by 'logits' with divergence "
            f"'forward_kl'; got {objective.describe()[1]!r}"
        )
    # Probabilities were softened before most classes were dropped; this cannot be undone.
    if temperature != codec.temperature:
        raise BindError(
            f"'teacher_temperature' must be {codec.temperature:g}, the temperature of targets of "
            f"codec {codec.kind!r}; got {temperature:g}"
        )


@final
class _ManifestModel:
    """A model without weights, with the taps and widths in a manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self.module = nn.Module()
        self.is_residual = manifest.teacher.is_residual
        self._taps = manifest.teacher.taps
        keys = [target_set.facts for target_set in manifest.sections]
        try:
            self._widths = {
                str(key["place"]): int(key["teacher_width"])
                for key in keys
                if {"place", "teacher_width"} <= key.keys()
            }
            counts = {int(key["num_classes"]) for key in keys if "num_classes" in key}
        except (ValueError, TypeError, OverflowError) as error:
            # The checksum covers the manifest, but another program may have written it.
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
            BindError: If no targets of it are stored.
        """
        if str(place) not in self._widths:
            raise BindError(
                f"'targets' must hold hidden states at the teacher's tap {place.label!r}; got "
                f"those at {sorted(self._widths)}"
            )
        return self._widths[str(place)]

    def open_taps(
        self, places: Iterable[Place], *, logits: bool, head: bool = False
    ) -> AbstractContextManager[Forward]:
        """Refuse a forward pass.

        Raises:
            BindError: Always.
        """
        del logits, head
        raise BindError(
            f"'teacher' must be a model to be read at {[str(place) for place in places]}; got "
            f"stored targets"
        )
