"""Gradient of a model's predictions by one of its hidden states.

Axes: leading (example, position), class, channel (of the state).

References:
    [FKD] Flex-KD, arXiv 2507.10155: channels of the teacher chosen by gradients of its output.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curricle.data.batch import Batch, Rows
from curricle.errors import BindError
from curricle.models.restoring import modes_kept
from curricle.models.tapped import Place, TappedModel
from curricle.objectives.base import logits_of


def output_gradient(model: TappedModel, place: Place, batch: Batch) -> Tensor:
    """Return the gradient of the prediction of a batch by a state, in the shape of the state.

    The prediction is the log-probability of the most likely class, summed over the positions of
    the batch; of a single output its value. It costs one forward and one backward pass.

    Args:
        model: The model, run in evaluation mode; its weights and modes stay as they are.
        place: Place of the state.
        batch: Data beside the model.

    Raises:
        BindError: If the output does not depend on the state, as where stored targets replace the
            model.
    """
    with (
        _differentiable(model.module),
        model.open_taps((place,), logits=True) as forward,
    ):
        activations = forward(batch.inputs, batch.selected)
        state, logits = activations.hidden[place], logits_of(activations)
        gradient = None
        if state.requires_grad:
            prediction = _prediction(logits, batch)
            (gradient,) = torch.autograd.grad(prediction, state, allow_unused=True)
    if gradient is None:
        raise BindError(
            f"the output must depend on tap {str(place)!r}, whose channels are ranked; it does not"
        )
    return gradient


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
