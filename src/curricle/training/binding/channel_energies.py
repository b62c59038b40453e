"""Energy of the channels of a teacher's states on calibration batches.

Axes: depth, width, row (a counted position, or an example), selected.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from curricle.colocation import beside
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.least_squares.flops import passes_of
from curricle.models.restoring import modes_kept
from curricle.models.tapped import TappedModel
from curricle.records import Usage
from curricle.training.setup.placement import Placement


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelEnergies:
    """The channels of a teacher's states, to be measured on the first batches of a stream."""

    teacher: TappedModel
    stream: Stream
    placement: Placement
    batches: int
    """Number of batches."""

    @property
    def usage(self) -> Usage:
        """Return the examples that are read."""
        return Usage(
            examples=self.batches * self.stream.batch_size,
            tokens=self.batches * self.stream.tokens_per_batch,
        )

    @torch.no_grad()
    def roots(self, width: int) -> Float[Tensor, "depth width"]:
        """Return the root of each channel's share in the energy of the states at each depth.

        Args:
            width: Width of the embeddings.

        Raises:
            BindError: If the teacher's states have another width.
        """
        totals: Tensor | None = None
        for energies in self._energies(width):
            totals = energies if totals is None else totals + energies
        assert totals is not None  # noqa: S101 - there is a batch at least
        return (
            totals / totals.sum(1, keepdim=True).clamp_min(torch.finfo(totals.dtype).tiny)
        ).sqrt()

    def _energies(self, width: int) -> Iterator[Float[Tensor, "depth width"]]:
        """Yield the sum of squares of each channel in each batch."""
        places = [self.teacher.place(tap) for tap in range(self.teacher.depth + 1)]
        with modes_kept(self.teacher.module):
            self.teacher.module.eval()
            with self.teacher.open_taps(places, logits=False) as forward:
                for step in range(self.batches):
                    batch = self.placement.moved(self.stream.batch(step)).for_teacher
                    with passes_of(self.teacher.module):
                        states = forward(batch.inputs).hidden
                    yield torch.stack(
                        [_energy(states[place], batch.valid, width) for place in places]
                    )


def _energy(state: Tensor, counted: Tensor | None, width: int) -> Float[Tensor, " width"]:
    if state.shape[-1] != width:
        raise BindError(
            f"'init' by selection needs a teacher whose states are as wide as its embeddings; got "
            f"widths {state.shape[-1]} and {width}"
        )
    rows = state.reshape(-1, width)
    if counted is not None and len(rows) == counted.numel():
        rows = rows[beside(counted.flatten(), rows)]
    return rows.to("cpu", torch.float64).square().sum(0)
