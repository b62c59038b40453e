"""Adapters: modules that an objective trains beside the student.

An *adapter* belongs to a bound objective: a linear map from the student's width to the teacher's,
or a temperature. The engine trains it with the optimizer settings of the student, saves it in the
student's checkpoints, and drops it at the end of its stage. Neither the student nor an exported
student contains it. An objective without adapter adds no cost to a step.

Axes: row (any number of axes), inputs, outputs.

Design: the engine reads the adapter from an attribute of the bound objective and needs no other
method. The bound adapter keeps its initial values, since each stage trains a copy. Three optional
methods follow the steps: `begin` is called when a stage begins, but not when it goes on from a
checkpoint, `prepare` before every update, before gradients are clipped, and `advance` after every
update, as for a counter of steps, which is a buffer, so it is checkpointed. `update_flops` counts
the FLOPs of both.

References:
    [R14] Romero et al. 2014, FitNets, arXiv 1412.6550: a regressor from the student's width to the
        teacher's, trained with the student and then thrown away.
"""

from collections.abc import Callable, Iterable
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def adapter_of(objective: object) -> nn.Module | None:
    """Return the adapter of an objective; None without an adapter."""
    adapter: nn.Module | None = getattr(objective, "adapter", None)
    return adapter


def methods_of(
    adapters: Iterable[nn.Module], name: Literal["prepare", "advance"]
) -> list[Callable[[], None]]:
    """Return the method of a name of each adapter that has it."""
    return [getattr(adapter, name) for adapter in adapters if hasattr(adapter, name)]


@final
class LinearMap(nn.Module):
    """A trained matrix without a bias."""

    def __init__(self, initial: Float[Tensor, "outputs inputs"]) -> None:
        """Set the initial matrix; no random numbers are drawn.

        Args:
            initial: The matrix before training.
        """
        super().__init__()
        self.weight = nn.Parameter(initial)

    def forward(self, states: Float[Tensor, "*row inputs"]) -> Float[Tensor, "*row outputs"]:
        """Return the mapped states in the precision of the matrix."""
        return functional.linear(states.to(self.weight.dtype), self.weight)
