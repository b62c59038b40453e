"""Fully connected network of the parity experiments.

Blocks of linear map and ReLU, then a linear head; PyTorch's default initialization, as in the code
of both papers. Block l is tap l.

Axes: place (example, or example and position), input, class.

Source:
    Panigrahi et al. 2024 (arXiv 2410.05464), section on sparse parity: one hidden layer.
"""

from itertools import pairwise
from typing import Annotated, Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from curricle.memory import check_memory
from curricle.models.hooked import HookedModel
from curricle.values import value

MOST_LAYERS = 1_000
"""Maximum number of hidden layers; deeper networks take minutes to build."""


@final
class MLP(nn.Module):
    """Blocks of linear map and ReLU under a linear head."""

    def __init__(self, num_inputs: int, widths: tuple[int, ...], num_classes: int) -> None:
        """Initialize the weights from torch's global generator, as in every torch layer."""
        super().__init__()
        sizes = (num_inputs, *widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(sizes)
        )
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, inputs: Float[Tensor, "*place input"]) -> Float[Tensor, "*place class"]:
        """Return the logits, also at each position of an example."""
        state = inputs
        for block in self.blocks:
            state = block(state)
        logits: Tensor = self.head(state)
        return logits

    def tapped(self) -> HookedModel:
        """Return the network with its blocks as taps."""
        paths = [f"blocks.{number}" for number in range(len(self.blocks))]
        # No `head`: there are no positions to select, and without hooks a step is faster.
        return HookedModel(self, blocks=paths)


@final
@value
class MLPSpec:
    """A fully connected network, built for a task's numbers of inputs and classes."""

    kind: Literal["mlp"] = "mlp"
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1, max_length=MOST_LAYERS)
    """Width of each hidden layer, first to last; positive. At most 1,000 layers."""

    def build(
        self,
        *,
        num_inputs: int,
        num_classes: int,
        num_positions: int,
        padding_token: int | None = 0,
    ) -> HookedModel:
        """Return the network with weights from torch's global generator.

        Args:
            num_inputs: Features per example.
            num_classes: Number of classes.
            num_positions: Not used; an MLP has no positions.
            padding_token: Not used, either.

        Raises:
            BindError: If the network would not fit into memory.
        """
        del num_positions, padding_token
        sizes = (num_inputs, *self.widths, num_classes)
        count = sum((before + 1) * after for before, after in pairwise(sizes))
        check_memory(
            4 * count, f"the network of 'widths' with {count:,} parameters for {num_inputs} inputs"
        )
        return MLP(num_inputs, self.widths, num_classes).tapped()
