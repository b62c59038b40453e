"""Linear least squares from sums over batches.

Only the products of inputs and targets are kept, in float64, so that these take no memory for each
row. A small ridge pulls toward a prior solution, which decides the directions
that the inputs do not reach.

Axes: row, input, output.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-4
"""Ridge relative to the mean second moment of an input; dimensionless."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """An affine map y = W x + b."""

    weight: Float[Tensor, "output input"]
    bias: Float[Tensor, " output"]


@final
class Moments:
    """Sums of products of inputs and targets over rows."""

    def __init__(self, *, has_bias: bool) -> None:
        """Begin with no rows.

        Args:
            has_bias: Whether the map to fit has a bias.
        """
        self._has_bias = has_bias
        self._inputs: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, inputs: Float[Tensor, "row input"], targets: Float[Tensor, "row output"]) -> None:
        """Add the rows of a batch."""
        inputs, targets = inputs.double(), targets.double()
        if self._has_bias:
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        gram, products = inputs.mT @ inputs, inputs.mT @ targets
        if self._inputs is None or self._products is None:
            self._inputs, self._products = gram, products
            return
        self._inputs += gram
        self._products += products

    def mapped(self, matrix: Float[Tensor, "mapped output"]) -> "Moments":
        """Return the moments with a linear map of the targets as targets."""
        mapped = Moments(has_bias=self._has_bias)
        assert self._products is not None  # noqa: S101 - after rows were added
        mapped._inputs, mapped._products = self._inputs, self._products @ matrix.mT
        return mapped

    def solve(self, prior: Affine) -> Affine:
        """Return the map with the least squared error plus ridge times the distance to a prior.

        Args:
            prior: The solution in directions without inputs.
        """
        assert self._inputs is not None and self._products is not None  # noqa: S101, PT018
        weight = prior.weight.double()
        if self._has_bias:
            weight = torch.cat([weight, prior.bias.double()[:, None]], dim=1)
        gram, size = self._inputs, self._inputs.shape[0]
        ridge = RIDGE * gram.diagonal().mean()
        penalized = gram + ridge * torch.eye(size, dtype=gram.dtype)
        # Of the residual of the prior, so that a prior that fits is returned as it is.
        correction = torch.linalg.solve(penalized, self._products - gram @ weight.mT).mT
        solution = weight + correction
        if self._has_bias:
            return Affine(solution[:, :-1], solution[:, -1])
        return Affine(solution, prior.bias)


@final
class ChannelMoments:
    """Sums for the fit of a gain and a shift of each channel."""

    def __init__(self) -> None:
        """Begin with no rows."""
        self._count = 0
        self._sums: list[Tensor] = []

    def add(self, inputs: Float[Tensor, "row width"], targets: Float[Tensor, "row width"]) -> None:
        """Add the rows of a batch."""
        x, y = inputs.double(), targets.double()
        sums = [x.sum(0), y.sum(0), x.square().sum(0), (x * y).sum(0)]
        totals = self._sums or [torch.zeros_like(total) for total in sums]
        self._sums = [total + new for total, new in zip(totals, sums, strict=True)]
        self._count += len(x)

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel of the inputs."""
        x, _, xx, _ = (total / self._count for total in self._sums)
        return x, (xx - x.square()).clamp_min(0)

    def gain_and_shift(self, *, has_shift: bool) -> tuple[Tensor, Tensor]:
        """Return gain and shift of each channel with the least squared error."""
        x, y, xx, xy = (total / self._count for total in self._sums)
        if not has_shift:
            return xy / xx.clamp_min(1e-12), torch.zeros_like(x)
        gain = (xy - x * y) / (xx - x.square()).clamp_min(1e-12)
        return gain, y - gain * x
