"""Readings of a hidden state with positions: each position, a coarser grid, their mean, channels.

States of convolutional networks are maps whose size differs between models, and those of vision
transformers are sequences of patches. A reading makes rows of them that two models can share.

| reading | rows of a map (example, row, column, channel) | width |
|---|---|---|
| `positions` | each pixel of each example | channels |
| `grid` | each cell of the smaller map, adaptive mean of the larger | channels |
| `pooled` | each example, mean over its positions with data | channels |
| `channels` | each channel of each example | pixels |

Axes: example, space (any number of axes), channel; features are on the last axis.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from curricle.data.batch import SEQUENCE_AXES, Batch, Rows, data_mask, with_host
from curricle.errors import BindError, DataError

Reading = Literal["positions", "grid", "pooled", "channels"]
FLAT_AXES = 2
"""Axes of a state without positions: example and channel."""
POOLING: Mapping[int, Callable[[Tensor, Any], Tensor]] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}
"""Mean over the cells of a grid, by number of its axes."""


@final
@dataclass(frozen=True, slots=True)
class StateReading:
    """A reading with the grid of two models."""

    kind: Reading = "positions"
    """The reading."""
    cells: tuple[int, ...] = ()
    """Size of the grid of `grid`: of each axis the smaller of both models."""

    @classmethod
    def of(
        cls, kind: Reading, names: str, states: Sequence[Tensor], batches: Sequence[Batch]
    ) -> "StateReading":
        """Return the reading of the states of two models.

        Args:
            kind: The reading.
            names: Names of both taps in error messages.
            states: States of both models, features last.
            batches: The batches of both passes.

        Raises:
            BindError: If a state has no axes of the reading, or padding among them.
        """
        if kind in {"positions", "pooled"}:
            return cls(kind)
        if any(batch.valid is not None for batch in batches):
            raise BindError(
                f"'reading' of taps {names!r} must be 'positions' or 'pooled' for padded data; "
                f"got {kind!r}"
            )
        shapes = [tuple(state.shape) for state in states]
        spaces = [shape[1:-1] for shape in shapes]
        if not all(spaces) or (kind == "grid" and len(spaces[0]) != len(spaces[1])):
            raise BindError(
                f"'reading' of taps {names!r} must be 'pooled' for states of shapes {shapes[0]} "
                f"and {shapes[1]} (features last), which have no common map; got {kind!r}"
            )
        if kind == "channels":
            return cls(kind)
        return cls(kind, tuple(map(min, *spaces)))

    @property
    def axes(self) -> str:
        """Return the axes that two read states share, in words."""
        return "examples and channels" if self.kind == "channels" else "examples and positions"

    @property
    def label(self) -> str:
        """Return the reading in words, as in a plan; empty for all positions."""
        return "" if self.kind == "positions" else self.kind

    @property
    def remedy(self) -> str:
        """Return the readings for states without common positions, as the end of a sentence."""
        if self.kind != "positions":
            return ""
        return (
            "; LayerPair(reading='pooled') compares the means over positions, reading='grid' maps "
            "at the smaller resolution"
        )

    def check_stored(self) -> None:
        """Check that targets of the reading may be stored.

        Raises:
            BindError: If they depend on the map of the student.
        """
        if self.kind in {"grid", "channels"}:
            raise BindError(
                f"'reading' must be 'positions' or 'pooled' for stored targets, which are the same "
                f"for every student; got {self.kind!r}"
            )

    def read(self, state: Tensor, batch: Batch) -> Tensor:
        """Return a state as the reading has it, features last.

        Args:
            state: State at a tap, features last.
            batch: The batch of its pass.

        Raises:
            DataError: If padding among averaged positions is unknown.
        """
        if self.kind == "positions" or state.ndim <= FLAT_AXES:
            return state
        if self.kind == "pooled":
            return _mean(state, batch)
        if self.kind == "channels":
            return state.flatten(1, -2).mT
        if tuple(state.shape[1:-1]) == self.cells:
            return state
        return POOLING[len(self.cells)](state.movedim(-1, 1), self.cells).movedim(1, -1)

    def rows(self, names: str, shape: tuple[int, ...], batch: Batch) -> Rows:
        """Return the counted rows of a state.

        Args:
            names: Names of the taps in error messages.
            shape: Shape of the state before it is read, features last.
            batch: The batch of its pass.
        """
        # Before pooling too: padding among unknown positions is refused.
        rows = Rows.of(names, shape[:-1], batch)
        if self.kind == "pooled":
            return Rows(1)
        if self.kind == "channels":
            return Rows(shape[-1])
        return Rows(math.prod(self.cells)) if self.cells else rows


def teacher_batch(batch: Batch, leading: Sequence[int], *, is_encoded: bool) -> Batch:
    """Return the batch with the positions of a teacher's states, without labels.

    Args:
        batch: The batch of both passes.
        leading: Shape of a state without the width, at the positions of the student if the batch
            has an alignment.
        is_encoded: Whether the states are of an encoder beside a decoder.
    """
    student = batch.for_encoder if is_encoded and batch.is_decoded else batch.for_matching
    if batch.teacher_inputs is None or batch.alignment is not None:
        return student
    teacher = Batch(inputs=batch.teacher_inputs, step=batch.step, offset=batch.offset)
    inputs = (teacher.for_encoder if is_encoded else teacher).inputs
    mask = data_mask(inputs)
    has_common_positions = student.positions in {
        tuple(leading),
        tuple((teacher.leading if mask is None else mask).shape[:SEQUENCE_AXES]),
    }
    masks = [student.valid if has_common_positions else None, None if mask is None else mask.bool()]
    read = Batch(inputs=inputs, valid=_intersection(masks), step=batch.step, offset=batch.offset)
    if batch.host is None:
        return read
    return with_host(read, teacher_batch(batch.host, leading, is_encoded=is_encoded))


def _intersection(
    masks: Sequence[Bool[Tensor, "example position"] | None],
) -> Bool[Tensor, "example position"] | None:
    """Return the positions that all masks hold; None without any mask."""
    known = [mask for mask in masks if mask is not None]
    return torch.stack(known).all(0) if known else None


def _mean(state: Tensor, batch: Batch) -> Tensor:
    """Return the mean over the positions with data of each example.

    Raises:
        DataError: If the positions of a mask are others than those of the state.
    """
    states, valid = state.flatten(1, -2), batch.valid
    if valid is None:
        return states.mean(1)
    if valid.shape != states.shape[:2]:
        raise DataError(
            f"a 'pooled' state must have the positions {tuple(valid.shape)} of the padded data in "
            f"every batch; got {tuple(states.shape[:2])}"
        )
    weights = valid.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)
