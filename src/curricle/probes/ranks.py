"""Effective rank of hidden states, per tap of a student and beside those of its teacher.

`tap_ranks` gives the effective rank of each tap of a model. `student_ranks` puts two numbers beside
those of a student:

- `teacher_<tap>`: the rank of the teacher's states at the corresponding tap, in as many of their
  leading principal directions as the student's tap is wide: the highest rank for a student of this
  width;
- `target_<tap>`: the rank of the target that the student was fitted to there, as projected to its
  width and normalized.

A target of low rank, or a student far below its teacher, is a collapse of the representation, as
random projections to a smaller width may cause.

Axes: row (an example or position with data), width.

Source:
    Roy and Vetterli 2007 (EUSIPCO): effective rank.
    RED 2026 (arXiv 2605.29327): collapse of the rank of states under random projections. Deviation:
    the teacher's rank is cut to the student's width, since a narrower state has fewer directions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.models.axes import observing
from curricle.models.restoring import evaluation_mode
from curricle.models.tapped import Place, Tap, TappedModel
from curricle.objectives.base import BoundObjective, Objective, pending_calibration
from curricle.probes.forward_passes import chunks, hidden_rows, numbered_taps
from curricle.probes.representations import effective_rank

NUM_AXES = 2
"""Axes of states in rows: row and width."""

Term = tuple[Objective, BoundObjective]
"""An objective as declared and as bound."""


def tap_ranks(
    model: TappedModel, batch: Batch, *, taps: Sequence[Tap] | None = None
) -> dict[str, float]:
    """Return the effective rank of the hidden states of each tap; the names are `rank_<tap>`.

    Args:
        model: The model.
        batch: Its inputs; positions without data are ignored.
        taps: Taps of the model; None for all numbered taps.
    """
    taps = numbered_taps(model) if taps is None else taps
    return {
        f"rank_{label}": effective_rank(rows)
        for label, rows in hidden_rows(model, batch, taps).items()
    }


def student_ranks(
    model: TappedModel, batch: Batch, *, teacher: TappedModel, terms: Sequence[Term] = ()
) -> dict[str, float]:
    """Return the ranks of a student's numbered taps, of its teacher's, and of its targets.

    The teacher's tap is that of the layer pair if it is a numbered one, else that of equal depth.

    Args:
        model: The student.
        batch: Inputs of both; positions without data are ignored.
        teacher: The finished teacher.
        terms: Objectives of the student's stages. Those that read one hidden state of each model
            have a target here, with their statistics of the batch; of several at one tap the last
            counts.
    """
    pairs = {tap: _partner(tap, model, teacher) for tap in numbered_taps(model)}
    teacher_taps = {teacher.place(tap): tap for tap in numbered_taps(teacher)}
    targets: dict[str, float] = {}
    for declared, bound in terms:
        reads = declared.reads(model, teacher)
        if len(reads.student) != 1 or len(reads.teacher) != 1:
            continue
        (student_place,), (teacher_place,) = reads.student, reads.teacher
        paired = [tap for tap in pairs if model.place(tap) == student_place]
        states = _targets(bound, teacher, teacher_place, batch)
        for tap in paired if states else []:
            # A module path that is no numbered tap leaves the tap of equal depth.
            pairs[tap] = teacher_taps.get(teacher_place, pairs[tap])
            targets[f"target_{tap}"] = effective_rank(torch.cat(states))
    student_states = hidden_rows(model, batch, [*pairs])
    teacher_states = hidden_rows(teacher, batch, [*dict.fromkeys(pairs.values())])
    numbers = {f"rank_{label}": effective_rank(rows) for label, rows in student_states.items()}
    for tap, partner in pairs.items():
        width = student_states[model.place(tap).label].shape[-1]
        taught = teacher_states[teacher.place(partner).label]
        numbers[f"teacher_{tap}"] = effective_rank(taught, directions=width)
    return numbers | targets


def _targets(
    bound: BoundObjective, teacher: TappedModel, place: Place, batch: Batch
) -> list[Tensor]:
    """Return the targets of an objective that are states in rows, chunk by chunk."""
    with (
        evaluation_mode(teacher.module),
        observing(teacher),
        teacher.open_taps((place,), logits=False) as forward,
    ):
        passes = [(forward(chunk.inputs), chunk) for chunk in chunks(teacher, batch)]
        calibrate = pending_calibration(bound)
        measured = bound if calibrate is None else calibrate(passes)
        targets = [measured.target(states, chunk) for states, chunk in passes]
    # Targets with further axes, as relations, are no rows of states.
    return [rows for rows in targets if isinstance(rows, Tensor) and rows.ndim == NUM_AXES]


def _partner(tap: int, student: TappedModel, teacher: TappedModel) -> int:
    """Return the teacher's tap of equal relative depth, as `LayerPair` chooses it."""
    nearest = (2 * tap * teacher.depth + student.depth) // (2 * student.depth)
    return max(1, nearest) if tap else 0
