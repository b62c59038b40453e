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
class FlatMLP(nn.Module):
    """A fully connected network that reads the values of a map as one vector."""

    def __init__(self, num_inputs: int, widths: tuple[int, ...], num_classes: int) -> None:
        """Initialize the weights from torch's global generator, as in every torch layer."""
        super().__init__()
        self.network = MLP(num_inputs, widths, num_classes)

    def forward(
        self, pixel_values: Float[Tensor, "example channel *place"]
    ) -> Float[Tensor, "example class"]:
        """Return the logits."""
        logits: Tensor = self.network(pixel_values.flatten(1))
        return logits

    def tapped(self) -> HookedModel:
        """Return the network with its blocks as taps."""
        blocks = range(len(self.network.blocks))
        return HookedModel(self, blocks=[f"network.blocks.{number}" for number in blocks])


@final
@value
class MLPSpec:
    """A fully connected network, built for a task's numbers of inputs and classes."""

    kind: Literal["mlp"] = "mlp"
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1, max_length=MOST_LAYERS)
    """Width of each hidden layer, first to last; positive. At most 1,000 layers."""
    axes: Literal[0, 1, 2] = Field(default=0, exclude_if=lambda axes: axes == 0)
    """Axes of the maps that are read as one vector: 1 of signals, 2 of images of equal edges; 0 for
    data that are vectors."""

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
            num_inputs: Features per example, or channels of its map.
            num_classes: Number of classes.
            num_positions: Length of an edge of a map; not used with vectors.
            padding_token: Not used.

        Raises:
            BindError: If the network would not fit into memory.
        """
        del padding_token
        num_inputs *= num_positions**self.axes
        sizes = (num_inputs, *self.widths, num_classes)
        count = sum((before + 1) * after for before, after in pairwise(sizes))
        check_memory(
            4 * count, f"the network of 'widths' with {count:,} parameters for {num_inputs} inputs"
        )
        network = FlatMLP if self.axes else MLP
        return network(num_inputs, self.widths, num_classes).tapped()
