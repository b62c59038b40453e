"""What does a probe read of a model, and how much at once?

A *probe* is one function (model, batch) -> named numbers. It may be given any model in any state:
the readings here hold it in evaluation mode without gradients, move the batch to where the model
is, cut it so that wide models fit into memory, and leave the modes as they were.

Axes: example, position, width, selected, class (see `models.tapped`); row (a place whose hidden
state is read: an example of a flat batch, or a position that holds data).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from curricle.data.streams import Batch
from curricle.errors import BindError
from curricle.models.axes import observing
from curricle.models.restoring import looked_at
from curricle.models.tapped import Place, Tap, TappedModel
from curricle.objectives.terms import logits_of

Probe = Callable[[TappedModel, Batch], dict[str, float]]
"""A function from a model and a batch to named numbers; settings are bound beforehand."""
MOST_POSITIONS: Final = 4096
"""Positions, or examples of a flat batch, that a model reads at once."""


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
    """Return the hidden states at some taps by the taps' labels, padding included.

    Args:
        model: The model.
        batch: What it reads; `selected` is not heeded.
        taps: Where to read; at least one.
    """
    return _gathered(model, batch, taps, lambda _, __, states: states)


def hidden_rows(
    model: TappedModel, batch: Batch, taps: Sequence[Tap]
) -> dict[str, Float[Tensor, "row width"]]:
    """Return the hidden states at some taps, one row for each position that holds data.

    Args:
        model: The model.
        batch: What it reads; `selected` is not heeded.
        taps: Where to read; at least one.
    """
    return {
        label: states.flatten(0, -2)
        if batch.valid is None
        else states[batch.valid.to(states.device)]
        for label, states in hidden_states(model, batch, taps).items()
    }


def selected_rows(
    model: TappedModel, batch: Batch, taps: Sequence[Tap]
) -> dict[str, Float[Tensor, "selected width"]]:
    """Return the hidden states at some taps where logits are wanted.

    Args:
        model: The model.
        batch: What it reads.
        taps: Where to read; at least one.
    """
    # Chosen part by part, since a long sequence may have one selected position.
    return _gathered(model, batch, taps, _selected)


def selected_logits(model: TappedModel, batch: Batch) -> Float[Tensor, "selected class"]:
    """Return the logits at the selected positions.

    Raises:
        BindError: If the model gives none.
    """
    with looked_at(model.module), observing(model), model.reading((), logits=True) as read:
        return torch.cat(
            [
                logits_of(read(part.inputs, part.selected))
                for part in portions(batch, device_of(model))
            ]
        )


def portions(batch: Batch, device: torch.device) -> Iterable[Batch]:
    """Yield the batch on a device, in parts that a model reads at once."""
    tokens = max(1, batch.leading[0].numel()) if not batch.is_flat else 1
    for part in batch.chunks(max(1, MOST_POSITIONS // tokens)):
        yield part.to(device)


def device_of(model: TappedModel) -> torch.device:
    """Return the device of a model's first parameter; the CPU if it has none."""
    first = next(model.module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _gathered(
    model: TappedModel,
    batch: Batch,
    taps: Sequence[Tap],
    choose: Callable[[Batch, str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return what is chosen of the hidden states of each part of a batch, by the taps' labels.

    Raises:
        BindError: If there is no such tap, or none is named.
    """
    if not taps:
        raise BindError("'taps' must name at least one tap; got none")
    places = [model.place(tap) for tap in taps]
    parts: dict[Place, list[Tensor]] = {place: [] for place in places}
    with looked_at(model.module), observing(model), model.reading(places, logits=False) as read:
        for part in portions(batch, device_of(model)):
            for place, states in read(part.inputs).hidden.items():
                parts[place].append(choose(part, place.label, states))
    return {place.label: torch.cat(parts[place]) for place in places}


def _selected(
    batch: Batch, label: str, states: Float[Tensor, "example *position width"]
) -> Float[Tensor, "selected width"]:
    """Return the hidden states where logits are wanted.

    Raises:
        BindError: If nothing is selected of a model with several positions an example.
    """
    rows = states.flatten(0, -2)
    if batch.selected is not None:
        rows = rows[batch.selected]
    if len(rows) != batch.num_selected:
        raise BindError(
            f"'selected' must be given where tap {label!r} has more than one position an "
            f"example; got {len(rows)} positions of {batch.num_examples} examples"
        )
    return rows
