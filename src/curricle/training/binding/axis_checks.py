"""Checks that models have examples and positions where the data have them.

Shapes do not distinguish the two axes if a batch has as many examples as positions; nor do they
show the order of rows where a model flattens both axes into one. In these cases a second forward
pass over fewer examples, made while binding, decides.

Axes: leading (axes before the width), example, position.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from curricle.data.batch import DECODER_INPUTS, Batch
from curricle.errors import BindError, CurricleError
from curricle.models.restoring import buffers_kept, modes_kept
from curricle.models.tapped import REFUSALS, Activations, TappedModel

TOLERANCE = 1e-2
"""Largest difference, as a share of the largest number, between rows of equal examples."""


def check_decoder_inputs(module: nn.Module, batch: Batch) -> None:
    """Check that the decoder of a model gets inputs of its own where positions are scored.

    Without them such models make some of the encoder's inputs, which have other positions than the
    labels; labels themselves are not shown to models.

    Args:
        module: The student.
        batch: A batch of its data.

    Raises:
        BindError: If it gets none.
    """
    # A mark of Hugging Face models; others with a decoder are not recognized and pass.
    configuration = getattr(module, "config", None)
    if not getattr(configuration, "is_encoder_decoder", False):
        return
    if batch.selected is None or batch.is_decoded or isinstance(batch.inputs, Tensor):
        return
    raise BindError(
        f"{DECODER_INPUTS[0]!r} must be in the batches of {type(module).__name__}, an "
        f"encoder-decoder whose labels have positions; got inputs "
        f"{', '.join(map(repr, batch.inputs))}; "
        f"'model.prepare_decoder_input_ids_from_labels' makes them in the collate function"
    )


def check_orientation(
    owner: str, model: TappedModel, activations: Activations, batch: Batch
) -> None:
    """Check that states and logits have the examples on their first axis.

    Nothing runs unless shapes leave it open. A model that takes no other number of examples is
    left alone.

    Args:
        owner: Owner of the model, for people.
        model: The model.
        activations: Its activations for the batch.
        batch: The batch.

    Raises:
        BindError: If positions lie on the first axis, or are those of an encoder where a decoder
            is scored.
    """
    # States of the encoder are refused first, as the rest takes the positions of the batch for
    # those of the states.
    _check_side(owner, model, activations, batch)
    if not any(_is_open(leading, batch) for _, leading, _ in _states(activations)):
        return
    # One less changes the axis of examples alone. It is at least 1, since a batch of one example is
    # not open.
    fewer = batch.num_examples - 1
    try:
        # Both anew, in evaluation mode: the activations at hand may hold noise of training, and
        # batch statistics that depend on the number of examples.
        full_pass, smaller_pass = _passes(model, activations, batch, fewer)
    except (CurricleError, *REFUSALS):
        return
    for (name, leading, rows), (_, fewer_leading, fewer_rows) in zip(
        _states(full_pass), _states(smaller_pass), strict=True
    ):
        if not _is_open(leading, batch):
            continue
        # Of rows below each other only the numbers show the order; elsewhere the shape does.
        is_flat = len(leading) == 1
        is_right = _agree(rows, fewer_rows) if is_flat else tuple(fewer_leading[:1]) == (fewer,)
        if not is_right:
            raise BindError(
                f"{name} of the {owner} must have the examples on the first axis and not the "
                f"positions; its positions {tuple(leading)} become {tuple(fewer_leading)} with "
                f"{fewer} of {batch.num_examples} examples; modules of torch take "
                f"'batch_first=True' for that, and curricle.tapped(model, batch_axis=1) declares "
                f"states of those without it"
            )


def _is_open(leading: tuple[int, ...], batch: Batch) -> bool:
    """Return whether a shape leaves open which axis counts examples."""
    count = batch.num_examples
    if count == 1:
        return False
    if len(leading) <= 1:
        # Rows of all examples, one below the other, in one order or the other. A state without an
        # axis of examples is refused by its objective.
        # With one position an example both orders are the same.
        return leading == (math.prod(batch.positions),) and leading != (count,)
    return leading[0] == count and leading[1] == count


def _check_side(owner: str, model: TappedModel, activations: Activations, batch: Batch) -> None:
    """Check that states have the positions of the decoder if the encoder reads as many.

    Raises:
        BindError: If one keeps its positions while the decoder reads one less.
    """
    if not batch.is_decoded or isinstance(batch.inputs, Tensor) or not activations.hidden:
        return
    shape = batch.positions
    # Only where an input of the encoder has the decoder's shape, too, can a state belong to either.
    sides = {name: tensor.shape[:2] == shape for name, tensor in batch.inputs.items()}
    if shape[1] == 1 or not any(
        is_equal and not name.startswith("decoder_") for name, is_equal in sides.items()
    ):
        return
    # The decoder alone reads one position less: states that keep their length are the encoder's.
    shorter = {
        name: tensor[:, :-1] if sides[name] and name.startswith("decoder_") else tensor
        for name, tensor in batch.inputs.items()
    }
    try:
        with (
            torch.no_grad(),
            modes_kept(model.module),
            buffers_kept(model.module),
            model.open_taps(activations.hidden, logits=False) as forward,
        ):
            model.module.eval()
            states = forward(shorter).hidden
    except (CurricleError, *REFUSALS):
        return
    for place, state in states.items():
        if tuple(state.shape[:2]) == shape and not place.is_encoded:
            raise BindError(
                f"tap {str(place)!r} of the {owner} must be a state of the decoder, since masks "
                f"and labels refer to positions of the decoder; its length stays {shape[1]} when "
                f"the decoder reads one token less, so it is a state of the encoder; name taps of "
                f"the encoder 'encoder:1' and so on"
            )


def _passes(
    model: TappedModel, activations: Activations, batch: Batch, fewer: int
) -> tuple[Activations, Activations]:
    """Return activations of a model for all examples and for fewer, in evaluation mode."""
    head = activations.head is not None
    with (
        torch.no_grad(),
        modes_kept(model.module),
        buffers_kept(model.module),
        model.open_taps(
            activations.hidden, logits=activations.logits is not None, head=head
        ) as forward,
    ):
        model.module.eval()
        # The first examples, so that their rows are comparable with the first rows of all.
        smaller = batch.chunks(fewer)[0]
        return forward(batch.inputs, batch.selected), forward(smaller.inputs, smaller.selected)


def _states(activations: Activations) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """Yield the name, the axes before the width and the rows of all that a model has shown."""
    for place, state in activations.hidden.items():
        yield f"tap {str(place)!r}", tuple(state.shape[:-1]), state
    logits = activations.logits if activations.head is None else activations.head.states
    if logits is not None:
        leading = (
            tuple(logits.shape[:-1]) if activations.positions is None else activations.positions
        )
        yield "'logits'", leading, logits


def _agree(states: Tensor, smaller: Tensor) -> bool:
    """Return whether the rows of fewer examples are the first rows of all."""
    first, second = states[: len(smaller)].float(), smaller.float()
    if first.shape != second.shape:
        return False
    # Masked logits are infinite, and would make the scale so, by which any difference would pass.
    finite = torch.cat([first, second]).where(torch.cat([first, second]).isfinite(), 0.0)
    scale = float(finite.abs().amax()) if finite.numel() else 0.0
    # Kernels round differently for another number of rows, so equality cannot be exact.
    return torch.allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)
