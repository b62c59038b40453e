"""Warm start by least squares, bound to models and data.

Binding runs both models on the first batch and notes what cannot be fitted; applying the start
reads the calibration batches and sets the weights. Memory: for all calibration batches the states
of both models at one depth and what the teacher's blocks of one pair compute, and squares of the
widths.
"""

import logging
from dataclasses import dataclass
from typing import final

from curricle.curriculum.initialization import START, LeastSquaresStart
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.least_squares.fitting import CalibrationBatch, fit, inspect
from curricle.least_squares.flops import FitFlops, planned_flops
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
    """FLOPs of the fit, of student and teacher, estimated."""

    @property
    def plan(self) -> StagePlan:
        """Return the start as a stage of no steps."""
        student, teacher = self.student.depth, self.teacher.depth
        ends = block_ends(student, teacher)[: self.declared.blocks]
        pairs = (f"{number} <- {end}" for number, end in enumerate(ends, start=1))
        later = tuple(
            f"{self.student.place(number).path}." for number in range(len(ends) + 1, student + 1)
        )
        named = self.student.module.named_parameters()
        trained = (weight for name, weight in named if not name.startswith(later))
        return StagePlan(
            name=START,
            teacher="final",
            taps=", ".join(pairs),
            objective="least squares, block by block",
            projection=f"principal {self.widths[0]}x{self.widths[1]}",
            widths=f"{self.widths[0]} <- {self.widths[1]}",
            steps=0,
            student_flops=self.flops[0],
            teacher_flops=self.flops[1],
            trained_parameters=sum(weight.numel() for weight in trained),
            memory_bytes=0,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is left as drawn, one sentence each."""
        return tuple(f"'init' leaves as drawn {entry}" for entry in self.unfitted)

    def apply(self) -> Usage:
        """Set the student's weights.

        Returns:
            The examples that were read, and the FLOPs.
        """
        number, stream = self.declared.batches, self.stream
        batches = [_calibration(stream, self.placement, step) for step in range(number)]
        with FitFlops(self.teacher.module) as flops:
            unfitted = fit(self.student, self.teacher, batches, num_blocks=self.declared.blocks)
        for entry in unfitted:
            # Embeddings and heads are known after the fit only; blocks are among the notes.
            if entry not in self.unfitted:
                LOGGER.warning("curricle: 'init' has left as drawn %s", entry)
        return Usage(
            examples=number * stream.batch_size,
            tokens=number * stream.tokens_per_batch,
            student_flops=flops.student,
            teacher_flops=flops.teacher,
        )


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
        BindError: If no block can be fitted, the student is wider or deeper than its teacher, one
            of them has adapters or frozen weights, or both read different tokens.
    """
    for role, model in (("student", student), ("teacher", teacher)):
        _check_model(role, model)
    if student.depth > teacher.depth:
        raise BindError(
            f"'init' by least squares needs a student no deeper than its teacher; got "
            f"{student.depth} and {teacher.depth} blocks"
        )
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
    widths, blocks, sublayers = inspect(student, teacher, batch, num_blocks=start.blocks)
    if widths[0] > widths[1]:
        raise BindError(
            f"'init' by least squares needs a student no wider than its teacher; got widths "
            f"{widths[0]} and {widths[1]}"
        )
    if len(blocks) == (start.blocks or student.depth):
        raise BindError(
            f"'init' by least squares can fit no block of {type(student.module).__name__}: "
            f"{blocks[0]}; 'principal' sets the embeddings alone"
        )
    return BoundLeastSquares(
        declared=start,
        student=student,
        teacher=teacher,
        stream=stream,
        placement=placement,
        unfitted=(*blocks, *sublayers),
        widths=widths,
        flops=planned_flops(student, teacher, (batch.student, batch.teacher), start.batches),
    )


def _check_model(role: str, model: TappedModel) -> None:
    if not model.depth:
        raise BindError(
            f"'init' by least squares needs a {role} with numbered blocks; "
            f"curricle.tapped(model, blocks=[...]) names them"
        )
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
