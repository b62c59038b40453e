"""Choice of a start among those that the models allow.

Binding tries the candidates of an `AutoStart` in order. The first that can be bound is taken, and
the reasons against those before it become notes of the plan.

Design: a start can be bound or raises `BindError` with the reason, so the choice needs no rule of
its own and takes every start that exists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from curricle.curriculum.initialization import AutoStart, ClosedForm, WarmStart
from curricle.data.streams import Stream
from curricle.errors import BindError, rule
from curricle.models.tapped import TappedModel
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.starting import BoundStart, bind_start, start_notes
from curricle.training.setup.placement import Placement


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StartChoice:
    """A bound start, or none, and the reasons."""

    start: BoundStart | None
    """The start; None leaves the student as drawn."""
    notes: tuple[str, ...]
    """Sentences for people."""


def choose_start(
    declared: WarmStart | None,
    student: TappedModel,
    teacher: LiveTeacher | None,
    *,
    stream: Stream,
    seed: int,
    placement: Placement,
) -> StartChoice:
    """Return a start bound to models and data; of an `AutoStart` the first that can be bound.

    Args:
        declared: The start as declared.
        student: The model that learns.
        teacher: The model that teaches; None where its targets are stored. A start reads whole
            weights, which a teacher in shares does not have.
        stream: Training data.
        seed: Seed of the run.
        placement: Placement of the models.

    Raises:
        BindError: If a declared start does not fit; an `AutoStart` always fits.
    """
    is_divided = teacher is not None and teacher.is_divided
    if is_divided and declared is not None and not isinstance(declared, AutoStart):
        raise BindError(
            f"'init' must be None with teacher_parallel='fsdp2', since a start reads whole weights "
            f"of the teacher; got {declared.kind!r}; set teacher_parallel='whole'"
        )

    def bound(start: ClosedForm | None) -> BoundStart | None:
        return bind_start(start, student, teacher, stream=stream, seed=seed, placement=placement)

    if not isinstance(declared, AutoStart):
        start = bound(declared)
        return StartChoice(start=start, notes=start_notes(start))
    if teacher is None or is_divided:
        why = "the teacher is in shares" if is_divided else "stored targets have no weights"
        note = f"the student begins as drawn, since {why}"
        return StartChoice(start=None, notes=(note,))
    reasons: dict[str, list[str]] = {}
    for candidate in declared.candidates:
        try:
            start = bound(candidate)
        except BindError as error:
            reasons.setdefault(rule(error), []).append(candidate.kind)
            continue
        note = f"the start is {candidate.kind!r}, the first that fits the models"
        return StartChoice(start=start, notes=(_listed(note, reasons), *start_notes(start)))
    note = "the student begins as drawn, since no closed-form start fits the models"
    return StartChoice(start=None, notes=(_listed(note, reasons),))


def _listed(note: str, reasons: Mapping[str, Sequence[str]]) -> str:
    """Return a note with the starts that do not fit, by the rule that excludes them."""
    excluded = [f"{', '.join(map(repr, kinds))} ({why})" for why, kinds in reasons.items()]
    return f"{note}; not applicable: {', '.join(excluded)}" if excluded else note
