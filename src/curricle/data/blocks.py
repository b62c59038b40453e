"""How are the batches of several steps read at once?

A `Block` holds the examples of consecutive batches one below the other, as one batch that a teacher
reads in one pass, and gives what belongs to each step along a new first axis.

Axes: step (of the block), then those of the batch.

Design: all batches of a block have one shape, so nothing about it depends on a tensor's values.
Padded batches, whose numbers of positions differ, make no block.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from curricle.data.streams import Batch, Inputs, Stream


def joined(stream: Stream, step: int, number: int) -> Batch | None:
    """Return the concatenated batches of steps, if the stream has a method of this name.

    Args:
        stream: The stream.
        step: The first step.
        number: Number of steps.

    Returns:
        The batches; None if the stream cannot read them faster than one by one.
    """
    read: Callable[[int, int], Batch | None] | None = getattr(stream, "joined", None)
    return None if read is None else read(step, number)


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
            rows: What belongs to the whole block, step after step along the first axis.
        """
        return {
            name: one.unflatten(0, (self.number, -1)) if isinstance(one, Tensor) else self.cut(one)
            for name, one in rows.items()
        }

    @property
    def parts(self) -> dict[str, Any]:
        """Return what a batch is made of, each with a first axis of steps."""
        whole = self.whole
        named = {"inputs": whole.inputs, "labels": whole.labels, "selected": whole.selected}
        found = self.cut({name: one for name, one in named.items() if one is not None})
        if whole.selected is not None:
            offsets = _offsets(self.first, self.number, whole.selected.device)
            found["selected"] = found["selected"] - offsets[:, None]
        return found


def read_block(stream: Stream, step: int, number: int, device: torch.device) -> Block | None:
    """Return the batches of some steps from one on, or None if they make no block.

    Args:
        stream: Where they are read.
        step: The first step.
        number: How many there are.
        device: Where they are put.
    """
    first = stream.batch(step).to(device)
    found = joined(stream, step, number)
    if found is not None:
        return Block(first=first, whole=found.to(device), number=number, shapes=_shapes(first))
    # Parts of a block are tensors alone, which do not have a number of positions with them.
    if first.valid is not None or first.length is not None:
        return None
    following = range(step + 1, step + number)
    batches = [first, *(stream.batch(one).to(device) for one in following)]
    shapes = _shapes(first)
    if any(_shapes(batch) != shapes for batch in batches):
        return None
    whole = Batch(
        inputs=_below([batch.inputs for batch in batches]),
        labels=None
        if first.labels is None
        else torch.cat([batch.labels for batch in batches if batch.labels is not None]),
        selected=_selected(batches),
    )
    return Block(first=first, whole=whole, number=number, shapes=shapes)


def _selected(batches: Sequence[Batch]) -> Tensor | None:
    each = [batch.selected for batch in batches if batch.selected is not None]
    if not each:
        return None
    offsets = _offsets(batches[0], len(each), each[0].device)
    return (torch.stack(each) + offsets[:, None]).flatten()


def _offsets(batch: Batch, number: int, device: torch.device) -> Tensor:
    """Return the number of positions before each of some batches like one."""
    return torch.arange(number, device=device) * math.prod(batch.positions)


def _shapes(batch: Batch) -> tuple[object, ...]:
    inputs = batch.inputs
    named = () if isinstance(inputs, Tensor) else tuple(inputs)
    tensors = (inputs,) if isinstance(inputs, Tensor) else inputs.values()
    return named, *(
        None if one is None else (one.shape, one.dtype)
        for one in (*tensors, batch.labels, batch.selected)
    )


def _below(each: Sequence[Inputs]) -> Inputs:
    first = each[0]
    if isinstance(first, Tensor):
        return torch.cat([one for one in each if isinstance(one, Tensor)])
    return {
        name: torch.cat([one[name] for one in each if isinstance(one, Mapping)]) for name in first
    }
