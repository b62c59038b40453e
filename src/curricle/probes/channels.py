"""Importance of the channels of a hidden state for the output of a model.

Axes: row (counted positions), channel (of the state).

References:
    [FKD] Flex-KD, arXiv 2507.10155: dimensions of the teacher chosen by gradients of its output.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curricle.colocation import beside
from curricle.data.batch import Batch, Rows
from curricle.errors import BindError
from curricle.models.tapped import Tap, TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.channel_selection import largest_channels
from curricle.objectives.output_gradients import output_gradient


def output_energies(
    model: nn.Module | TappedModel, batches: Iterable[Batch], *, tap: Tap
) -> Float[Tensor, " channel"]:
    """Return the mean squared gradient of the model's prediction by each channel of a state.

    The prediction is that of `output_gradient`. Each batch costs one forward and one backward pass.

    Args:
        model: The model, run in evaluation mode; its weights and modes stay as they are.
        batches: Some batches of the data, beside the model.
        tap: Tap of the state.

    Returns:
        Mean over the positions with data, in squared nats by squared units of the state.

    Raises:
        BindError: If there is no batch, or the output does not depend on the state.

    Source:
        [FKD]. Deviation: squares in place of absolute values, and the model's own predictions in
        place of labels.
    """
    network = tapped(model)
    place = network.place(tap)
    total, count = torch.zeros(1), 0
    for batch in batches:
        gradient = output_gradient(network, place, batch)
        rows = Rows.of(f"tap {str(place)!r}", gradient.shape[:-1], batch)
        energies = rows.take(gradient, batch).float().square()
        total = beside(total, energies) + energies.sum(0)
        count += len(energies)
    if not count:
        raise BindError("'batches' must hold a position to rank channels; got none")
    return total / count


def output_channels(
    model: nn.Module | TappedModel, batches: Iterable[Batch], *, tap: Tap, count: int
) -> tuple[int, ...]:
    """Return the channels of a state on which the model's predictions depend most.

    They are for `ChannelSelection(channels=...)`, a projection of the teacher's states to the width
    of a student.

    Args:
        model: The teacher.
        batches: Some batches of the data, beside the model.
        tap: The teacher's tap.
        count: Number of channels: the student's width.

    Source:
        [FKD]; see `output_energies`.
    """
    return largest_channels(output_energies(model, batches, tap=tap), count)
