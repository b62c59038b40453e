"""Forward passes of probes: hidden states and logits of a batch.

A *probe* is a function (model, batch) -> named numbers for a model in any mode. The functions here
run it in evaluation mode without gradients, move the batch to its weights, split the batch so that
wide models fit into memory, and restore the modes afterwards.

Axes: example, position, width, selected, class (see `models.tapped`); row (an example of a flat
batch, or a position with data).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from curricle.colocation import beside
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.axes import observing
from curricle.models.restoring import evaluation_mode
from curricle.models.tapped import Place, Tap, TappedModel
from curricle.objectives.base import logits_of

Probe = Callable[[TappedModel, Batch], dict[str, float]]
"""A function from a model and a batch to named numbers; settings are bound beforehand."""
MOST_POSITIONS: Final = 4096
"""Maximum number of positions, or examples of a flat batch, in one forward pass."""


def numbered_taps(model: TappedModel) -> tuple[int, ...]:
    """Return every numbered tap of a model, from 0 to its depth.

    Raises:
        BindError: If the model has no numbered blocks.
    """
    if not model.depth:
        raise BindError(
            f"'taps' must be named for a model without numbered blocks; got "
            f"{type(model.module).__name__!r}"
        )
    return tuple(range(model.depth + 1))


def hidden_states(
    model: TappedModel, batch: Batch, taps: Sequence[Tap]
) -> dict[str, Float[Tensor, "example *position width"]]:
    """Return the hidden states at some taps by the labels of the taps, padding included.

    Args:
        model: The model.
        batch: Its inputs; `selected` is ignored.
        taps: Taps of the model; at least one.
    """
    return _gather(model, batch, taps, lambda _, __, states: states)


def hidden_rows(
    model: TappedModel, batch: Batch, taps: Sequence[Tap]
) -> dict[str, Float[Tensor, "row width"]]:
    """Return the hidden states at some taps, one row for each position with data.

    Args:
        model: The model.
        batch: Its inputs; `selected` is ignored.
        taps: Taps of the model; at least one.
    """
    return {
        label: states.flatten(0, -2) if batch.valid is None else states[beside(batch.valid, states)]
        for label, states in hidden_states(model, batch, taps).items()
    }


def selected_rows(
    model: TappedModel, batch: Batch, taps: Sequence[Tap]
) -> dict[str, Float[Tensor, "selected width"]]:
    """Return the hidden states at some taps at the selected positions.

    Args:
        model: The model.
        batch: Its inputs.
        taps: Taps of the model; at least one.
    """
    # Selected chunk by chunk, because a long sequence may have only one selected position.
    return _gather(model, batch, taps, _select)


def selected_logits(model: TappedModel, batch: Batch) -> Float[Tensor, "selected class"]:
    """Return the logits at the selected positions.

    Raises:
        BindError: If the model has no logits.
    """
    with (
        evaluation_mode(model.module),
        observing(model),
        model.open_taps((), logits=True) as forward,
    ):
        return torch.cat(
            [logits_of(forward(chunk.inputs, chunk.selected)) for chunk in chunks(model, batch)]
        )


def chunks(model: TappedModel, batch: Batch) -> Iterator[Batch]:
    """Yield the batch where the weights of a model lie, in chunks for one forward pass each."""
    weight = next(model.module.parameters(), None)
    positions = max(1, batch.num_read_tokens // batch.num_examples)
    for chunk in batch.chunks(max(1, MOST_POSITIONS // positions)):
        yield chunk if weight is None else chunk.map(partial(beside, like=weight))


def _gather(
    model: TappedModel,
    batch: Batch,
    taps: Sequence[Tap],
    select: Callable[[Batch, str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the selected rows of the hidden states of a batch, by the labels of the taps.

    Raises:
        BindError: If a tap does not exist, or `taps` is empty.
    """
    if not taps:
        raise BindError("'taps' must name at least one tap; got none")
    places = [model.place(tap) for tap in taps]
    rows: dict[Place, list[Tensor]] = {place: [] for place in places}
    with (
        evaluation_mode(model.module),
        observing(model),
        model.open_taps(places, logits=False) as forward,
    ):
        for chunk in chunks(model, batch):
            for place, states in forward(chunk.inputs).hidden.items():
                rows[place].append(select(chunk, place.label, states))
    return {place.label: torch.cat(rows[place]) for place in places}


def _select(
    batch: Batch, label: str, states: Float[Tensor, "example *position width"]
) -> Float[Tensor, "selected width"]:
    """Return the hidden states at the selected positions.

    Raises:
        BindError: If a state has several positions per example and the batch selects none.
    """
    rows = states.flatten(0, -2)
    if batch.selected is not None:
        rows = rows[batch.selected]
    if len(rows) != batch.num_selected:
        raise BindError(
            f"'selected' must be set for tap {label!r}, which has more than one position per "
            f"example; got {len(rows)} positions of {batch.num_examples} examples"
        )
    return rows
