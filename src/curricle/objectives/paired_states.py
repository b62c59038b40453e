"""States of a student and a teacher at one layer pair, as rows that an objective compares.

The states are at the positions with data, in the same order in both models, whatever the layout:
positions first, frames of samples, maps with padding elsewhere, an encoder beside a decoder.

Axes: leading (example, position), row (counted positions), width, position (of one example).

Design: determined once at bind from a first batch; the methods of a step compute no masks from
values and check no shapes but those that a later batch can change.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float, Int
from torch import Tensor

from curricle.data.batch import Batch, Rows, check_positions, sequence_first_remedy
from curricle.errors import BindError
from curricle.models.tapped import SEQUENCE_FIRST, Activations, Place
from curricle.objectives.base import Reads, Sample, require
from curricle.objectives.frames import FrameCounter, counter_of_states
from curricle.objectives.readings import Reading, StateReading, teacher_batch

Positions = Literal["all", "selected"]
"""Counted positions: all with data, or those selected by the data, if they select any."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PairedStates:
    """Places of both states, and the rows that are compared."""

    student: Place
    """Place of the student."""
    teacher: Place
    """Place of the teacher."""
    rows: Rows
    reading: StateReading
    widths: tuple[int, int]
    """Of student and teacher."""
    takes_selected: bool
    """Whether only selected positions count where a batch selects some."""
    selects: bool
    """Whether the first batch selects positions, so that only these count."""
    is_encoded: bool
    """Whether the states have the positions of an encoder beside a decoder."""
    student_frames: FrameCounter | None
    """Counter of the frames of padded samples, if the student's states have frames."""
    teacher_frames: FrameCounter | None
    """Counter of the frames of padded samples, if the teacher's states have frames."""

    @classmethod
    def of(
        cls, reading: Reading, reads: Reads, sample: Sample, *, takes_selected: bool = False
    ) -> "PairedStates":
        """Return the states of a layer pair.

        Args:
            reading: Compared rows of both states.
            reads: Places and counters of frames, from `LayerPair.reads`.
            sample: A first batch with the activations at these places.
            takes_selected: Whether only selected positions count where a batch selects some.

        Raises:
            BindError: If the two states differ in any axis but their width, or lack the positions
                selected by the data.
        """
        student_place, teacher_place = reads.student[0], reads.teacher[0]
        student = sample.student.hidden[student_place]
        teacher = require(sample.teacher, "teacher").hidden[teacher_place]
        names = f"{student_place} <- {teacher_place}"
        selected = sample.batch.matched_selected if takes_selected else None
        are_encoded = [place.is_encoded for place in (student_place, teacher_place)]
        is_encoded = all(are_encoded) and sample.batch.is_decoded
        if sample.batch.is_decoded and any(are_encoded):
            _check_encoded(
                names, sample.batch, selects=selected is not None, are_both=all(are_encoded)
            )
        batch = sample.batch.for_encoder if is_encoded else sample.batch
        _check_batch_axis([(student_place, student), (teacher_place, teacher)], batch)
        taught = teacher_batch(sample.batch, teacher.shape[:-1], is_encoded=are_encoded[1])
        batch, frames = _framed(reads.student_frames, student, batch)
        taught, teacher_frames = _framed(reads.teacher_frames, teacher, taught)
        state_reading = StateReading.of(reading, names, (student, teacher), (batch, taught))
        rows = state_reading.rows(f"taps {names!r}", tuple(student.shape), batch)
        if reading == "pooled":
            # Equal shapes after pooling would hide padding among positions of the teacher alone.
            state_reading.rows(
                f"teacher's tap {str(teacher_place)!r}", tuple(teacher.shape), taught
            )
        student, teacher = state_reading.read(student, batch), state_reading.read(teacher, taught)
        if student.shape[:-1] != teacher.shape[:-1]:
            shapes = [tuple(state.shape[:-1]) for state in (student, teacher)]
            raise BindError(
                f"taps {names!r} must have the same {state_reading.axes}; got {shapes[0]} and "
                f"{shapes[1]}{_remedy(shapes, batch) or state_reading.remedy}"
            )
        if selected is not None and rows.per_example is not None:
            raise BindError(
                f"taps {names!r} must have the positions {sample.batch.positions} of the data, "
                f"because the data select some of them; got {tuple(student.shape[:-1])}"
            )
        return cls(
            student=student_place,
            teacher=teacher_place,
            rows=rows,
            reading=state_reading,
            widths=(student.shape[-1], teacher.shape[-1]),
            takes_selected=takes_selected,
            selects=selected is not None,
            is_encoded=is_encoded,
            student_frames=frames,
            teacher_frames=teacher_frames,
        )

    @property
    def names(self) -> str:
        """Return the names of both places."""
        return f"{self.student} <- {self.teacher}"

    def describe(self) -> tuple[str, str]:
        """Return taps and widths in words."""
        student_width, teacher_width = self.widths
        taps = f"{self.student.label} <- {self.teacher.label}"
        return taps, f"{student_width} <- {teacher_width}"

    def count(self, batch: Batch) -> int:
        """Return the number of compared rows in a batch."""
        selected = self._selected(batch)
        return self.rows.count(self.side(batch)) if selected is None else selected.numel()

    def student_rows(self, student: Activations, batch: Batch) -> Float[Tensor, "row width"]:
        """Return the compared rows of the student's state."""
        return self._rows(student.hidden[self.student], batch, self.side(batch))

    def teacher_rows(self, teacher: Activations, batch: Batch) -> Float[Tensor, "row width"]:
        """Return the compared rows of the teacher's state."""
        state = teacher.hidden[self.teacher]
        return self._rows(state, batch, self._teacher_side(state, batch))

    def student_sequences(
        self, student: Activations, batch: Batch
    ) -> Float[Tensor, "example position width"]:
        """Return the student's states of all positions, also those without data."""
        states = self.reading.read(student.hidden[self.student], self.side(batch))
        return states.reshape(batch.num_examples, -1, states.shape[-1])

    def teacher_sequences(
        self, teacher: Activations, batch: Batch
    ) -> Float[Tensor, "example position width"]:
        """Return the teacher's states of all positions, also those without data."""
        state = teacher.hidden[self.teacher]
        states = self.reading.read(state, self._teacher_side(state, batch))
        return states.reshape(batch.num_examples, -1, states.shape[-1])

    def side(self, batch: Batch) -> Batch:
        """Return the batch with the mask of the student's states."""
        side = batch.for_encoder if self.is_encoded else batch.for_matching
        return side if self.student_frames is None else self.student_frames.batch(side)

    def _teacher_side(self, states: Tensor, batch: Batch) -> Batch:
        """Return the batch with the mask of the teacher's states.

        Rows that are compared one by one have the student's mask on both sides.
        """
        if self.reading.kind != "pooled":
            return self.side(batch)
        is_encoded = self.teacher.is_encoded
        side = teacher_batch(batch, states.shape[:-1], is_encoded=is_encoded)
        return side if self.teacher_frames is None else self.teacher_frames.batch(side)

    def _selected(self, batch: Batch) -> Int[Tensor, " selected"] | None:
        """Return the compared selected positions; None if all positions with data count."""
        return batch.matched_selected if self.takes_selected else None

    def _rows(
        self, states: Float[Tensor, "*leading width"], batch: Batch, side: Batch
    ) -> Float[Tensor, "row features"]:
        """Return the compared rows of a state.

        Args:
            states: States at a tap.
            batch: The batch of both passes.
            side: The batch with the mask of the states.
        """
        selected = self._selected(batch)
        if selected is None:
            return self.rows.take(self.reading.read(states, side), side)
        check_positions("a state", states.shape[:-1], batch)
        return states.flatten(0, -2)[selected]


def _check_encoded(names: str, batch: Batch, *, selects: bool, are_both: bool) -> None:
    """Check that states of an encoder are compared with states of an encoder, at all positions.

    Raises:
        BindError: If one state is of a decoder, or if positions are selected or aligned, which
            refers to positions of the decoder.
    """
    if not are_both or selects or batch.alignment is not None:
        problem = "'alignment'" if batch.alignment is not None else "selected positions"
        raise BindError(
            f"taps {names!r} must both be of an encoder, at all of its positions; got "
            f"{problem if are_both else 'one of a decoder'}"
        )


def _remedy(shapes: Iterable[tuple[int, ...]], batch: Batch) -> str:
    """Return the remedy for shapes with positions first; empty if there is none."""
    return next(filter(None, (sequence_first_remedy(shape, batch) for shape in shapes)), "")


def _framed(
    counter: FrameCounter | None, state: Tensor, batch: Batch
) -> tuple[Batch, FrameCounter | None]:
    """Return a batch with the positions of a state, and the counter if these are frames."""
    # Where the states have the positions of the data, the mask of the data is theirs.
    frames = counter_of_states(counter, state.shape[:-1], batch)
    return (batch, None) if frames is None else (frames.batch(batch), frames)


def _check_batch_axis(states: Iterable[tuple[Place, Tensor]], batch: Batch) -> None:
    """Check that a state of a model tapped with `batch_axis=1` had its positions first.

    Raises:
        BindError: If its examples were first, so that the declared axis put them behind.
    """
    for place, state in states:
        leading = tuple(state.shape[:-1])
        is_moved = place.order == SEQUENCE_FIRST and leading[:1] != batch.positions[:1]
        if is_moved and sequence_first_remedy(leading, batch):
            raise BindError(
                f"tap {str(place)!r} must have its positions on the first axis, as batch_axis=1 of "
                f"curricle.tapped declares for all taps of the model; got examples, as before a "
                f"transpose to sequence-first layers or after the transpose back; name a tap "
                f"between both"
            )
