"""What may an objective train beside the student?

An *adapter* is a module that belongs to a bound objective: a linear map from the student's width to
the teacher's, or a temperature. The engine trains it by the optimizer settings of the student,
checkpoints it with the student, and drops it when its stage ends; the student and what is exported
of it never hold it. An objective without adapter costs a step nothing.

Axes: row (any number of axes), inputs, outputs.

Design: a bound objective shows its adapter as an attribute, and that is all the engine knows of it.
The bound adapter keeps its first values: each stage trains a copy. An adapter that wants to know
the step of its stage has `advance`, which is called after every update; it counts in a buffer, and
buffers are checkpointed.

References:
    [R14] Romero et al. 2014, FitNets, arXiv 1412.6550: a regressor from the student's width to the
        teacher's, trained with the student and then thrown away.
"""

from typing import Protocol, final, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from curricle.protocols import conforms


@runtime_checkable
class OwnsAdapter(Protocol):
    """A bound objective that may have a module of its own."""

    @property
    def adapter(self) -> nn.Module | None:
        """Return the module that is trained beside the student; None if there is none."""
        ...


@runtime_checkable
class CountsSteps(Protocol):
    """An adapter that follows the steps of its stage."""

    def advance(self) -> None:
        """Take note that the optimizer has made one more update."""
        ...


def adapter_of(objective: object) -> nn.Module | None:
    """Return what an objective trains beside the student, if it trains anything."""
    return objective.adapter if conforms(objective, OwnsAdapter) else None


@final
class LinearMap(nn.Module):
    """A trained matrix without a bias."""

    def __init__(self, first: Float[Tensor, "outputs inputs"]) -> None:
        """Take the first values; nothing is drawn.

        Args:
            first: The matrix before training.
        """
        super().__init__()
        self.weight = nn.Parameter(first)

    def forward(self, states: Float[Tensor, "*row inputs"]) -> Float[Tensor, "*row outputs"]:
        """Return the mapped states in the precision of the matrix."""
        return functional.linear(states.to(self.weight.dtype), self.weight)
