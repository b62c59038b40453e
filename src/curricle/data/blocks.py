"""Blocks: the batches of several steps, read at once.

A `Block` concatenates the examples of consecutive batches into a single batch, which a teacher
reads in one forward pass, and splits tensors by step along a new first axis.

Axes: step (of the block), then those of the batch.

Design: all batches of a block have one shape, so nothing about it depends on a tensor's values.
Padded batches have different numbers of positions and make no block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from curricle.data.streams import Batch, Inputs, Stream
from curricle.protocols import conforms


@runtime_checkable
class Joins(Protocol):
    """A stream that gives the batches of several steps at once faster than one by one."""

    def joined(self, step: int, number: int) -> Batch | None:
        """Return the batches of some steps one below the other; None if it is not faster."""
        ...


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

    def cut(self, rows: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return tensors, which may lie deeper, with a first axis of steps.

        Args:
            rows: Tensors of the whole block, step after step along the first axis.
        """
        return {
            name: tensor.unflatten(0, (self.number, -1))
            if isinstance(tensor, Tensor)
            else self.cut(tensor)
            for name, tensor in rows.items()
        }

    @property
    def parts(self) -> dict[str, Any]:
        """Return the tensors of a batch, each with a first axis of steps."""
        batch = self.whole
        named = {"inputs": batch.inputs, "labels": batch.labels, "selected": batch.selected}
        tensors = self.cut({name: tensor for name, tensor in named.items() if tensor is not None})
        if batch.selected is not None:
            offsets = _offsets(self.first, self.number, batch.selected.device)
            tensors["selected"] = tensors["selected"] - offsets[:, None]
        return tensors


def read_block(stream: Stream, step: int, number: int, device: torch.device) -> Block | None:
    """Return the batches of some steps from one on, or None if they make no block.

    Args:
        stream: Stream of the batches.
        step: The first step.
        number: Number of steps.
        device: Device of the returned tensors.
    """
    first = stream.batch(step).to(device)
    joined = stream.joined(step, number) if conforms(stream, Joins) else None
    if joined is not None:
        return Block(first=first, whole=joined.to(device), number=number, shapes=_shapes(first))
    # Parts of a block are tensors alone, which do not have a number of positions with them.
    if first.valid is not None or first.length is not None:
        return None
    following = range(step + 1, step + number)
    batches = [first, *(stream.batch(later_step).to(device) for later_step in following)]
    shapes = _shapes(first)
    if any(_shapes(batch) != shapes for batch in batches):
        return None
    merged = Batch(
        inputs=_below([batch.inputs for batch in batches]),
        labels=None
        if first.labels is None
        else torch.cat([batch.labels for batch in batches if batch.labels is not None]),
        selected=_selected(batches),
    )
    return Block(first=first, whole=merged, number=number, shapes=shapes)


def _selected(batches: Sequence[Batch]) -> Tensor | None:
    selections = [batch.selected for batch in batches if batch.selected is not None]
    if not selections:
        return None
    offsets = _offsets(batches[0], len(selections), selections[0].device)
    return (torch.stack(selections) + offsets[:, None]).flatten()


def _offsets(batch: Batch, number: int, device: torch.device) -> Tensor:
    """Return the number of positions before each of some batches like one."""
    return torch.arange(number, device=device) * math.prod(batch.positions)


def _shapes(batch: Batch) -> tuple[object, ...]:
    inputs = batch.inputs
    named = () if isinstance(inputs, Tensor) else tuple(inputs)
    tensors = (inputs,) if isinstance(inputs, Tensor) else inputs.values()
    return named, *(
        None if tensor is None else (tensor.shape, tensor.dtype)
        for tensor in (*tensors, batch.labels, batch.selected)
    )


def _below(inputs: Sequence[Inputs]) -> Inputs:
    first = inputs[0]
    if isinstance(first, Tensor):
        return torch.cat([tensor for tensor in inputs if isinstance(tensor, Tensor)])
    return {
        name: torch.cat([tensors[name] for tensors in inputs if isinstance(tensors, Mapping)])
        for name in first
    }
