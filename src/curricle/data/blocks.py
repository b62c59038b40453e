"""Blocks: the batches of several steps, read at once.

A `Block` concatenates the examples of consecutive batches into a single batch, which a teacher
reads in one forward pass, and splits tensors by step along a new first axis.

Axes: step (of the block), then those of the batch.

Design: all batches of a block have one shape, so nothing about it depends on a tensor's values.
Padded batches have different numbers of positions and make no block.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import itemgetter
from typing import TypedDict, final

import torch
from torch import Tensor

from curricle.colocation import count_beside
from curricle.data.batch import SEQUENCE_AXES, Batch, Inputs, data_mask, named
from curricle.data.streams import Stream


def concatenated(stream: Stream, step: int, number: int) -> Batch | None:
    """Return the concatenated batches of steps, if the stream has a method of this name.

    Args:
        stream: The stream.
        step: The first step.
        number: Number of steps.

    Returns:
        The batches; None if the stream cannot read them faster than one by one.
    """
    read: Callable[[int, int], Batch | None] | None = getattr(stream, "concatenated", None)
    return None if read is None else read(step, number)


@final
class StudentTensors(TypedDict, total=False):
    """Tensors that students read of a batch; those it lacks have no key."""

    inputs: Inputs
    labels: Tensor
    selected: Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The batches of consecutive steps."""

    first: Batch
    """The batch of the first step."""
    whole: Batch
    """All examples, in order."""
    number: int
    """Number of steps."""
    shapes: tuple[object, ...]
    """Names, shapes and types of all that a batch holds; the same for every step."""

    @property
    def length(self) -> int | None:
        """Return the number of positions of an example, which parts may not have themselves."""
        positions = self.first.positions
        return positions[1] if len(positions) == SEQUENCE_AXES else None

    def cut(self, rows: Tensor) -> Tensor:
        """Return a tensor with a first axis of steps.

        Args:
            rows: Rows of the whole block, step after step along the first axis.
        """
        steps: Tensor = rows.unflatten(0, (self.number, -1))
        return steps

    @property
    def parts(self) -> StudentTensors:
        """Return the tensors of the student's side of a batch, each with a first axis of steps."""
        batch = self.whole
        tensors = StudentTensors(inputs=_mapped(batch.inputs, self.cut))
        if batch.labels is not None:
            tensors["labels"] = self.cut(batch.labels)
        if batch.selected is not None:
            offsets = _offsets(self.first, self.number, batch.selected)
            tensors["selected"] = self.cut(batch.selected) - offsets[:, None]
        return tensors


def of_step(tensors: StudentTensors, number: int) -> StudentTensors:
    """Return the tensors of one step among those of a block."""
    step = StudentTensors(inputs=_mapped(tensors["inputs"], itemgetter(number)))
    if "labels" in tensors:
        step["labels"] = tensors["labels"][number]
    if "selected" in tensors:
        step["selected"] = tensors["selected"][number]
    return step


def _mapped(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Return inputs with a function applied to each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}


def read_block(
    stream: Stream, step: int, number: int, place: Callable[[Batch], Batch]
) -> Block | None:
    """Return the batches of some steps from one on, or None if they make no block.

    Args:
        stream: Where they are read.
        step: The first step.
        number: How many there are.
        place: Puts a batch where it is read.
    """
    first = place(stream.batch(step))
    # Parts of a block hold the tensors of students alone, without the mask of the teacher.
    if first.teacher_inputs is not None and data_mask(first.teacher_inputs) is not None:
        return None
    joined = concatenated(stream, step, number)
    if joined is not None:
        whole = place(replace(joined, step=step))
        return Block(first=first, whole=whole, number=number, shapes=_shapes(first))
    if first.valid is not None or first.matched is not None:
        return None
    following = range(step + 1, step + number)
    batches = [first, *(place(stream.batch(later)) for later in following)]
    shapes = _shapes(first)
    if any(_shapes(batch) != shapes for batch in batches):
        return None
    merged = concatenate(batches)
    return Block(first=first, whole=merged, number=number, shapes=shapes)


def _offsets(batch: Batch, number: int, like: Tensor) -> Tensor:
    """Return the number of positions before each of some batches like one."""
    return count_beside(like, number) * math.prod(batch.positions)


def _shapes(batch: Batch) -> tuple[object, ...]:
    inputs, teacher_inputs = named(batch.inputs), named(batch.teacher_inputs)
    tensors = (*inputs.values(), *teacher_inputs.values())
    return (
        tuple(inputs),
        tuple(teacher_inputs),
        batch.length,
        *(
            None if tensor is None else (tensor.shape, tensor.dtype)
            for tensor in (*tensors, batch.labels, batch.selected, batch.alignment, batch.matched)
        ),
    )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Return batches of equal positions one below the other, as a batch of the first one's step.

    Args:
        batches: At least one; all have the same fields.
    """
    first = batches[0]
    width = math.prod(first.positions[1:])
    starts = [0, *accumulate(batch.num_examples for batch in batches)]
    selected = [
        None if batch.selected is None else batch.selected + start * width
        for batch, start in zip(batches, starts, strict=False)
    ]
    teacher_inputs = [batch.teacher_inputs for batch in batches if batch.teacher_inputs is not None]
    return Batch(
        inputs=_inputs_below([batch.inputs for batch in batches]),
        labels=_below([batch.labels for batch in batches]),
        selected=_below(selected),
        valid=_below([batch.valid for batch in batches]),
        length=first.length,
        teacher_inputs=_inputs_below(teacher_inputs) if teacher_inputs else None,
        alignment=_below([batch.alignment for batch in batches]),
        matched=_below([batch.matched for batch in batches]),
        group=first.group,
        step=first.step,
        offset=first.offset,
    )


def _below(columns: Sequence[Tensor | None]) -> Tensor | None:
    """Return tensors one below the other; None for none."""
    tensors = [column for column in columns if column is not None]
    return torch.cat(tensors) if tensors else None


def _inputs_below(columns: Sequence[Inputs]) -> Inputs:
    """Return inputs one below the other."""
    joined = {
        name: torch.cat([named(column)[name] for column in columns]) for name in named(columns[0])
    }
    return joined[""] if isinstance(columns[0], Tensor) else joined
