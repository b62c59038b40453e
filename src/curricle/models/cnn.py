"""Convolutional network for signals and images of run specs.

Blocks of convolution and ReLU, each of which may halve the map, then a linear head on the mean over
the map or, for dense prediction, at each of its positions. PyTorch's default initialization. Block
l is tap l, with its features on axis 1.

Axes: example, channel, place (positions of a signal, or rows and columns of an image), class,
scored (places with logits; none where there is one output an example).
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from curricle.errors import SpecError
from curricle.memory import check_memory
from curricle.models.hooked import HookedModel
from curricle.models.mlp import MOST_LAYERS
from curricle.values import value

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
"""Layers by number of axes of a map."""


@final
class CNN(nn.Module):
    """Blocks of convolution and ReLU under a linear head."""

    def __init__(
        self,
        num_inputs: int,
        channels: tuple[int, ...],
        num_classes: int,
        *,
        axes: int = 2,
        kernel: int = 3,
        stride: int = 1,
        is_dense: bool = False,
    ) -> None:
        """Initialize the weights from torch's global generator, as in every torch layer.

        Args:
            num_inputs: Channels of the input.
            channels: Channels of each block.
            num_classes: Number of classes.
            axes: Axes of a map: 1 of signals, 2 of images.
            kernel: Size of the kernels along each axis; odd.
            stride: Step of each block along each axis.
            is_dense: Whether logits have the positions of the map.
        """
        super().__init__()
        convolution = CONVOLUTIONS[axes - 1]
        sizes = (num_inputs, *channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(convolution(before, after, kernel, stride, kernel // 2), nn.ReLU())
            for before, after in pairwise(sizes)
        )
        self.is_dense = is_dense
        self.head: nn.Module = (
            convolution(sizes[-1], num_classes, 1)
            if is_dense
            else nn.Linear(sizes[-1], num_classes)
        )

    def forward(
        self, pixel_values: Float[Tensor, "example channel *place"]
    ) -> Float[Tensor, "example class *scored"]:
        """Return the logits; without places unless predictions are dense."""
        state = pixel_values
        for block in self.blocks:
            state = block(state)
        logits: Tensor = self.head(state if self.is_dense else state.flatten(2).mean(-1))
        return logits

    def tapped(self) -> HookedModel:
        """Return the network with its blocks as taps."""
        paths = [f"blocks.{number}" for number in range(len(self.blocks))]
        return HookedModel(self, blocks=paths, width_axis=1)


@final
@value
class CNNSpec:
    """A convolutional network, built for a task's numbers of channels and classes."""

    kind: Literal["cnn"] = "cnn"
    channels: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1, max_length=MOST_LAYERS)
    """Channels of each block, first to last; positive. At most 1,000 blocks."""
    axes: Literal[1, 2] = 2
    """Axes of a map: 1 of signals, as `mnist1d`, or 2 of images."""
    kernel: int = Field(default=3, gt=0)
    """Size of the kernels along each axis; odd, so that a map keeps its size."""
    stride: int = Field(default=1, gt=0)
    """Step of each block along each axis; 2 halves the map in each block."""
    output: Literal["example", "positions"] = "example"
    """Whether logits are those of the example, or of each of its `positions` (dense prediction, as
    segmentation, with a stride of 1)."""

    def __post_init__(self) -> None:
        """Check that the map of dense predictions has the size of the input.

        Raises:
            SpecError: If not.
        """
        if self.kernel % 2 == 0:
            raise SpecError(f"'kernel' must be odd, so that maps keep a size; got {self.kernel}")
        if self.output == "positions" and self.stride > 1:
            raise SpecError(
                f"'stride' must be 1 with output 'positions', whose logits have the positions of "
                f"the labels; got {self.stride}"
            )

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
            num_inputs: Channels of the input.
            num_classes: Number of classes.
            num_positions: Not used; the head takes maps of any size.
            padding_token: Not used, either.

        Raises:
            BindError: If the network would not fit into memory.
        """
        del num_positions, padding_token
        place = self.kernel**self.axes
        sizes = (num_inputs, *self.channels)
        count = sum((place * before + 1) * after for before, after in pairwise(sizes))
        count += math.prod((sizes[-1] + 1, num_classes))
        check_memory(
            4 * count,
            f"the network of 'channels' with {count:,} parameters for {num_inputs} channels",
        )
        return CNN(
            num_inputs,
            self.channels,
            num_classes,
            axes=self.axes,
            kernel=self.kernel,
            stride=self.stride,
            is_dense=self.output == "positions",
        ).tapped()
