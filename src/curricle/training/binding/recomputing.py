"""Activation checkpoints that recompute a forward pass inside of the backward pass.

Torch's reentrant checkpoints run a nested backward pass, which supports neither gradients of a
subset of the parameters nor a forward pass that ends early. In both cases autograd raises an error
or computes no gradient of the parameters inside, as in a student with a frozen base and trained
adapters.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from curricle.errors import BindError

REENTRANT = "CheckpointFunctionBackward"
"""Name of a reentrant checkpoint in the graph of autograd."""
NO_GRADIENT = "None of the inputs have requires_grad"
"""Beginning of torch's warning of a checkpoint that loses gradients."""
REFUSAL = (
    "'student' must not have reentrant activation checkpoints, which cannot be stopped early or "
    "lose gradients; got 'use_reentrant' True; set it to False, as gradient_checkpointing_enable("
    "gradient_checkpointing_kwargs={'use_reentrant': False}) does"
)


@contextmanager
def without_reentrant_checkpoints() -> Iterator[None]:
    """Refuse activation checkpoints that lose gradients or cannot compute some of them alone.

    Yields:
        Nothing.

    Raises:
        BindError: If a model has such checkpoints.
        RuntimeError: If something else is wrong.
        UserWarning: If another warning is an error where this runs.
    """
    with warnings.catch_warnings():
        # A checkpoint whose inputs need no gradient gives none to the weights inside, either.
        warnings.filterwarnings("error", message=NO_GRADIENT)
        try:
            yield
        except (RuntimeError, UserWarning) as error:
            # Torch has no class of its own for these errors, so their words decide; all others
            # pass.
            if not any(words in str(error) for words in ("use_reentrant", NO_GRADIENT)):
                raise
            raise BindError(REFUSAL) from error


def check_recomputation(loss: Tensor) -> None:
    """Check that a loss does not go through a reentrant checkpoint.

    Autograd leaves such a checkpoint out if no gradient before it is requested, and with it the
    weights inside, which would count as unreached.

    Args:
        loss: A loss with its graph.

    Raises:
        BindError: If it does.
    """
    # A list of its own instead of recursion, which the graph of a deep model would exhaust.
    nodes = [loss.grad_fn]
    seen = {*nodes}
    while nodes:
        node = nodes.pop()
        # Inputs without a gradient stand in the graph as None.
        if node is None:
            continue
        if node.name() == REENTRANT:
            raise BindError(REFUSAL)
        # Each node once: residual connections double the number of paths with every block.
        inputs = {source for source, _ in node.next_functions} - seen
        seen |= inputs
        nodes.extend(inputs)
