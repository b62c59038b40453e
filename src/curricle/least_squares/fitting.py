"""Closed-form fit of a student to its teacher, in the order of the forward pass.

`inspect` returns the parts that will stay as drawn, without changing a weight; `fit` sets the
weights. No gradient step is taken: every map is the solution of a linear least-squares problem
whose inputs are the student's states by then, and whose targets are the teacher's states at that
place, mapped to the student's width.

Axes: example, position, width.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from curricle.least_squares.block_fit import BlockFit, mismatches, obstacle, teacher_block
from curricle.least_squares.calibrated import CalibratedModel, Understood
from curricle.least_squares.maps import norm_of
from curricle.least_squares.stream_map import stream_map
from curricle.least_squares.surroundings import Pair, fit_front, fit_tail
from curricle.models.restoring import modes_kept
from curricle.models.stacks import block_ends
from curricle.models.tapped import Inputs, TappedModel

ROWS_PER_CHANNEL = 12
"""Rows that the map of the stream is computed from, for each of the teacher's channels."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationBatch:
    """Inputs of both models, and the positions that count."""

    student: Inputs
    teacher: Inputs
    counted: Bool[Tensor, "example position"] | None = None
    """True at the positions that count; None for all."""


def inspect(
    student: TappedModel,
    teacher: TappedModel,
    batch: CalibrationBatch,
    *,
    num_blocks: int | None = None,
) -> tuple[tuple[int, int], tuple[str, ...], tuple[str, ...]]:
    """Return the widths of both models, and the parts of blocks that `fit` would leave as drawn.

    Args:
        student: The student, no deeper than the teacher.
        teacher: The teacher.
        batch: A batch that both can read.
        num_blocks: Leading blocks of the student that are to be fitted; None for all.

    Returns:
        Widths of the states of student and teacher; blocks that are left, and sublayers of fitted
        blocks whose maps that read are left, each with the reason.
    """
    with _calibrated(student, teacher, [batch]) as (student_model, teacher_model):
        obstructed = _obstacle(student_model, teacher_model)
        begin, blocks, sublayers = 0, list[str](), list[str]()
        ends = block_ends(len(student_model.blocks), len(teacher_model.blocks))[:num_blocks]
        for path, (number, end) in zip(student_model.paths, enumerate(ends), strict=False):
            if obstructed:
                blocks.append(f"{path!r}: {obstructed}")
                continue
            understood = student_model.understood(number)
            teachers = _understood(teacher_model, range(begin, end))
            student_model.advance(number)
            begin = end
            reason = obstacle(understood, teachers)
            if reason:
                blocks.append(f"{path!r}: {reason}")
                continue
            for member, mismatch in mismatches(understood, teachers).items():
                reader = understood.sublayers[member].inputs[0].path
                sublayers.append(f"'{path}.{reader}': {mismatch}")
        return (student_model.width, teacher_model.width), tuple(blocks), tuple(sublayers)


def fit(
    student: TappedModel,
    teacher: TappedModel,
    batches: Sequence[CalibrationBatch],
    *,
    num_blocks: int | None = None,
) -> tuple[str, ...]:
    """Fit a student to its teacher.

    Args:
        student: The student, no wider and no deeper than the teacher; its weights are set.
        teacher: The teacher.
        batches: Calibration batches; more rows than the widest input of a map.
        num_blocks: Leading blocks of the student that are fitted; None for all. With a number, the
            stream is mapped by the inputs of these blocks, and maps behind all blocks are the
            teacher's with their inputs mapped.

    Returns:
        Parts that were left as drawn, with the reasons, besides the blocks behind the leading ones.
    """
    with _calibrated(student, teacher, batches) as (student_model, teacher_model):
        reason = _obstacle(student_model, teacher_model)
        if reason:
            return (f"all blocks: {reason}",)
        ends = block_ends(len(student_model.blocks), len(teacher_model.blocks))[:num_blocks]
        depths = (0, *ends) if num_blocks is None else (0, *ends[:-1])
        moments = _moments(teacher_model, depths)
        stream = stream_map(moments, student_model.width, keeps_mean=_subtracts_mean(teacher_model))
        pair = Pair(student_model, teacher_model, stream)
        unfitted = fit_front(pair, maps_outputs=num_blocks is not None)
        student_model.restart()
        begin = 0
        for number, end in enumerate(ends):
            unfitted += _fit_block(pair, number, range(begin, end))
            begin = end
        return (*unfitted, *(fit_tail(pair) if num_blocks is None else ()))


@contextmanager
def _calibrated(
    student: TappedModel, teacher: TappedModel, batches: Sequence[CalibrationBatch]
) -> Iterator[tuple[CalibratedModel, CalibratedModel]]:
    """Open both models in evaluation mode with their calibration.

    Yields:
        Student and teacher.
    """
    with ExitStack() as stack:
        for model in (student, teacher):
            stack.enter_context(modes_kept(model.module))
            model.module.eval()
        counted = [batch.counted for batch in batches]
        yield (
            CalibratedModel(student, [batch.student for batch in batches], counted),
            CalibratedModel(teacher, [batch.teacher for batch in batches], counted),
        )


def _obstacle(student: CalibratedModel, teacher: CalibratedModel) -> str:
    """Return the reason why no block can be fitted; empty if there is none."""
    positions = [[state.shape[:2] for state in model.states] for model in (student, teacher)]
    if not (student.obstacle or teacher.obstacle) and positions[0] != positions[1]:
        return "the teacher's states have other positions"
    return student.obstacle or teacher.obstacle


def _fit_block(pair: Pair, number: int, blocks: range) -> list[str]:
    """Fit a block and advance both models behind it.

    Returns:
        Parts that were left as drawn, with the reason.
    """
    student_model, name = pair.student, pair.student.paths[number]
    understood = student_model.understood(number)
    teachers = [teacher_block(pair.teacher, block) for block in blocks]
    reason = obstacle(understood, [teacher.understood for teacher in teachers])
    if reason:
        unfitted = [f"{name!r}: {reason}"]
        student_model.advance(number)
    else:
        fit_of_block = BlockFit(
            student_model,
            number,
            pair.teacher,
            stream=pair.stream,
            understood=understood,
            teachers=teachers,
        )
        unfitted = [f"'{name}.{path}': {reason}" for path, reason in fit_of_block.fit().items()]
    return unfitted


def _understood(model: CalibratedModel, blocks: range) -> list[Understood]:
    """Return the sublayers of some blocks, and advance the model behind them."""
    understood = []
    for block in blocks:
        understood.append(model.understood(block))
        model.advance(block)
    return understood


def _moments(model: CalibratedModel, depths: Sequence[int]) -> list[Tensor]:
    """Return the second moments of a model's states after some of its blocks."""
    first_states, moments = model.states, []
    rows_needed = ROWS_PER_CHANNEL * model.width
    number, count = 0, 0
    while count < rows_needed and number < len(first_states):
        count += len(model.rows(number, first_states[number]))
        number += 1
    model.states = first_states[:number]
    for depth in range(len(model.blocks) + 1):
        if depth:
            model.advance(depth - 1)
        if depth in depths:
            rows = [model.rows(batch, state) for batch, state in enumerate(model.states)]
            moments.append(torch.stack([states.mT @ states for states in rows]).sum(0))
    model.states, model.num_passed = first_states, 0
    return moments


def _subtracts_mean(model: CalibratedModel) -> bool:
    """Return whether normalizations of the states subtract the mean of their channels."""
    probe = model.states[0][:1, :1]
    are_centered = list[bool]()

    def look(path: str, module: nn.Module) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == probe.shape[-1:]:
            norm = norm_of(path, module, probe, probe)
            if norm is not None:
                are_centered.append(norm.subtracts_mean)

    for path, module in model.module.named_modules():
        look(path, module)
    return any(are_centered)
