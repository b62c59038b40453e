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

from torch import Tensor
from torch.nn import functional

from curricle.data.batch import Batch, Rows
from curricle.errors import BindError

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
        cls, kind: Reading, names: str, states: Sequence[Tensor], batch: Batch
    ) -> "StateReading":
        """Return the reading of the states of two models.

        Args:
            kind: The reading.
            names: Names of both taps in error messages.
            states: States of both models, features last.
            batch: The batch of both passes.

        Raises:
            BindError: If a state has no axes of the reading, or padding among them.
        """
        if kind in {"positions", "pooled"}:
            return cls(kind)
        if batch.valid is not None:
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


def _mean(state: Tensor, batch: Batch) -> Tensor:
    """Return the mean over the positions with data of each example."""
    states, valid = state.flatten(1, -2), batch.valid
    if valid is None or valid.shape != states.shape[:2]:
        return states.mean(1)
    weights = valid.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1)
