"""Warm start by least squares, bound to models and data.

Binding runs both models on the first batch and notes modules without a fit; applying the start
reads the calibration batches and sets the weights. Where no block can be fitted, as in networks
without a stream of states, the start is that of `least_squares.chain_fit`. Memory: for all
calibration batches the states of both models at one depth and those within the teacher's blocks of
one pair, and squares of the widths; of a chain, squares of the numbers of columns alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from curricle.curriculum.initialization import START, LeastSquaresStart
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.least_squares.chain_fit import (
    ChainPlan,
    fit_chain,
    inspect_chain,
    planned_chain_flops,
)
from curricle.least_squares.fitting import CalibrationBatch, fit, inspect
from curricle.least_squares.flops import planned_flops
from curricle.models.peft_adapters import is_tuned
from curricle.models.stacks import block_ends
from curricle.models.tapped import TappedModel
from curricle.records import StagePlan, Usage
from curricle.training.setup.placement import Placement

LOGGER = logging.getLogger("curricle")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLeastSquares:
    """A fit of all blocks that is ready to run."""

    declared: LeastSquaresStart
    student: TappedModel
    teacher: TappedModel
    stream: Stream
    placement: Placement
    unfitted: tuple[str, ...]
    """Blocks and sublayers that stay as drawn, with the reasons."""
    widths: tuple[int, int]
    """Widths of the states of student and teacher."""
    flops: tuple[int, int] = (0, 0)
    """FLOPs of the fit, of student and teacher; of a fit of blocks, estimated."""
    chain: ChainPlan | None = None
    """Fit of a network without a stream of states, in place of that of its blocks."""

    @property
    def plan(self) -> StagePlan:
        """Return the start as a stage of no steps."""
        if self.chain is None:
            ends = block_ends(self.student.depth, self.teacher.depth)[: self.declared.blocks]
            pairs = [(number, end) for number, end in enumerate(ends, start=1)]
            name, law, widths = "block", "principal", [self.widths]
        else:
            pairs, widths, name, law = self.chain.numbers, self.chain.widths, "map", "selection"
        return StagePlan(
            name=START,
            teacher="final",
            taps=", ".join(f"{number} <- {end}" for number, end in pairs),
            objective=f"least squares, {name} by {name}",
            projection=", ".join(
                f"{law} {width}x{teacher_width}" for width, teacher_width in widths
            ),
            widths=", ".join(f"{width} <- {teacher_width}" for width, teacher_width in widths),
            steps=0,
            student_flops=self.flops[0],
            teacher_flops=self.flops[1],
            trained_parameters=self._num_trained,
            memory_bytes=0,
        )

    @property
    def _num_trained(self) -> int:
        fitted = self.student.depth if self.declared.blocks is None else self.declared.blocks
        later = tuple(
            f"{self.student.place(number).path}."
            for number in range(fitted + 1, self.student.depth + 1)
        )
        named = self.student.module.named_parameters()
        return sum(weight.numel() for name, weight in named if not name.startswith(later))

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the parts that are left as drawn, one sentence each."""
        return tuple(f"'init' leaves as drawn {entry}" for entry in self.unfitted)

    def apply(self) -> Usage:
        """Set the student's weights.

        Returns:
            The examples that were read.
        """
        number, stream = self.declared.batches, self.stream
        batches = [_calibration(stream, self.placement, step) for step in range(number)]
        if self.chain is None:
            unfitted = fit(self.student, self.teacher, batches, num_blocks=self.declared.blocks)
        else:
            unfitted = fit_chain(self.student, self.teacher, batches)
        for entry in unfitted:
            # Embeddings and heads are known after the fit only; blocks are among the notes.
            if entry not in self.unfitted:
                LOGGER.warning("curricle: 'init' has left as drawn %s", entry)
        return Usage(examples=number * stream.batch_size, tokens=number * stream.tokens_per_batch)


def bind_least_squares(
    start: LeastSquaresStart,
    student: TappedModel,
    teacher: TappedModel,
    *,
    stream: Stream,
    placement: Placement,
) -> BoundLeastSquares:
    """Return the start, bound.

    Args:
        start: The start as declared.
        student: The model that learns.
        teacher: The model that teaches.
        stream: Training data.
        placement: Placement of the models.

    Raises:
        BindError: If neither blocks nor maps can be fitted, as where the student is wider or deeper
            than its teacher, one of them has adapters or frozen weights, or both read different
            tokens.
    """
    for role, model in (("student", student), ("teacher", teacher)):
        _check_model(role, model)
    frozen = [
        name for name, weight in student.module.named_parameters() if not weight.requires_grad
    ]
    if frozen:
        raise BindError(
            f"'init' by least squares sets all weights of the student; got {frozen[0]!r} frozen; "
            f"set its requires_grad, or leave 'init' out"
        )
    if start.blocks is not None and start.blocks > student.depth:
        raise BindError(
            f"'blocks' of 'init' must be at most the {student.depth} blocks of the student; got "
            f"{start.blocks}"
        )
    batch = _calibration(stream, placement, 0)
    reason, widths, unfitted = _obstacle(student, teacher), (0, 0), tuple[str, ...]()
    if not reason:
        widths, blocks, sublayers = inspect(student, teacher, batch, num_blocks=start.blocks)
        unfitted = (*blocks, *sublayers)
        number = start.blocks or student.depth
        reason = _obstacle_of_fit(student, widths, blocks, number)
    chain = None
    if reason:
        # One stream of states is no chain: between its ends there are skip connections alone. And
        # a chain has no blocks, whose number may be given.
        is_chain = not (student.is_residual or teacher.is_residual or start.blocks)
        chain = inspect_chain(student, teacher, batch) if is_chain else None
        if chain is not None and chain.pairs and not chain.is_fit:
            reason = (
                f"can fit no map of {type(student.module).__name__} but the last: "
                f"{chain.unfitted[0] if chain.unfitted else 'it has no other'}; leave 'init' out, "
                f"or take a student whose maps are no wider than the teacher's"
            )
        if chain is None or not chain.is_fit:
            raise BindError(f"'init' by least squares {reason}")
        unfitted = chain.unfitted
        flops = planned_chain_flops(chain, student, teacher, batch, number=start.batches)
    else:
        flops = planned_flops(student, teacher, (batch.student, batch.teacher), start.batches)
    return BoundLeastSquares(
        declared=start,
        student=student,
        teacher=teacher,
        stream=stream,
        placement=placement,
        unfitted=unfitted,
        widths=widths,
        flops=flops,
        chain=chain,
    )


def _obstacle(student: TappedModel, teacher: TappedModel) -> str:
    """Return the reason why blocks cannot be fitted, before a pass; empty if there is none."""
    for role, model in (("student", student), ("teacher", teacher)):
        if not model.depth:
            return (
                f"needs a {role} with numbered blocks, or a chain of maps without skip "
                f"connections; curricle.tapped(model, blocks=[...]) names blocks"
            )
    if student.depth > teacher.depth:
        return (
            f"needs a student no deeper than its teacher; got {student.depth} and "
            f"{teacher.depth} blocks"
        )
    return ""


def _obstacle_of_fit(
    student: TappedModel, widths: tuple[int, int], unfitted: Sequence[str], num_blocks: int
) -> str:
    """Return the reason why no block can be fitted, as a pass shows it; empty if there is none."""
    if widths[0] > widths[1]:
        return (
            f"needs a student no wider than its teacher; got widths {widths[0]} and {widths[1]}; "
            f"leave 'init' out, or take a student of width {widths[1]} or less"
        )
    if len(unfitted) == num_blocks:
        return (
            f"can fit no block of {type(student.module).__name__}: {unfitted[0]}; "
            f"'principal' sets the embeddings alone"
        )
    return ""


def _check_model(role: str, model: TappedModel) -> None:
    for path, module in model.module.named_modules():
        if is_tuned(module):
            raise BindError(
                f"'init' by least squares needs a {role} without adapters; PEFT has wrapped "
                f"{path!r}; merge the adapter into it (merge_and_unload), or leave 'init' out"
            )
    if any(weight.is_meta for weight in model.module.parameters()):
        raise BindError(
            f"'init' by least squares needs a {role} with all weights in memory; its 'device_map' "
            f"offloads some; load the model without offloading, or leave 'init' out"
        )


def _calibration(stream: Stream, placement: Placement, step: int) -> CalibrationBatch:
    batch = placement.moved(stream.batch(step))
    if batch.alignment is not None:
        raise BindError(
            "'init' by least squares needs models that read the same tokens; the data pair two "
            "tokenizers"
        )
    return CalibrationBatch(
        student=batch.inputs, teacher=batch.for_teacher.inputs, counted=batch.valid
    )
