"""Importance of the channels of a hidden state for the output of a model.

Axes: row (counted positions), channel (of the state), class.

References:
    [FKD] Flex-KD, arXiv 2507.10155: dimensions of the teacher chosen by gradients of its output.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curricle.data.batch import Batch, Rows
from curricle.errors import BindError
from curricle.models.restoring import modes_kept
from curricle.models.tapped import Tap, TappedModel
from curricle.models.wrapping import tapped
from curricle.objectives.base import logits_of
from curricle.objectives.selected_channels import largest_channels


def output_energies(
    model: nn.Module | TappedModel, batches: Iterable[Batch], *, tap: Tap
) -> Float[Tensor, " channel"]:
    """Return the mean squared gradient of the model's prediction by each channel of a state.

    The prediction is the log-probability of the most likely class, summed over the positions of a
    batch; of a single output its value. Each batch costs one forward and one backward pass.

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
    with (
        _differentiable(network.module),
        network.open_taps((place,), logits=True) as forward,
    ):
        for batch in batches:
            activations = forward(batch.inputs, batch.selected)
            state, prediction = (
                activations.hidden[place],
                _prediction(logits_of(activations), batch),
            )
            (gradient,) = torch.autograd.grad(prediction, state, allow_unused=True)
            if gradient is None:
                raise BindError(
                    f"the output must depend on tap {str(place)!r}, whose channels are ranked; it "
                    f"does not"
                )
            rows = Rows.of(f"tap {str(place)!r}", gradient.shape[:-1], batch)
            energies = rows.take(gradient, batch).float().square()
            total = total.to(energies.device) + energies.sum(0)
            count += len(energies)
    if not count:
        raise BindError("'batches' must hold a position to rank channels; got none")
    return total / count


def output_channels(
    model: nn.Module | TappedModel, batches: Iterable[Batch], *, tap: Tap, count: int
) -> tuple[int, ...]:
    """Return the channels of a state on which the model's predictions depend most.

    They are for `Selection(channels=...)`, a projection of the teacher's states to the width of a
    student.

    Args:
        model: The teacher.
        batches: Some batches of the data, beside the model.
        tap: The teacher's tap.
        count: Number of channels: the student's width.

    Source:
        [FKD]; see `output_energies`.
    """
    return largest_channels(output_energies(model, batches, tap=tap), count)


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode, with states that have gradients also in a frozen model."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    with modes_kept(module), torch.enable_grad():
        module.eval()
        for parameter, _ in before:
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            yield
        finally:
            for parameter, flag in before:
                parameter.requires_grad_(flag)


def _prediction(logits: Float[Tensor, "*leading class"], batch: Batch) -> Float[Tensor, ""]:
    """Return the summed log-probability of the most likely class of each position with data."""
    if batch.selected is None:
        logits = Rows.of("'logits'", logits.shape[:-1], batch).take(logits, batch)
    wide = logits.float()
    likely = wide if wide.shape[-1] == 1 else wide.log_softmax(-1).amax(-1)
    return likely.sum()
