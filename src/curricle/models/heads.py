"""Uncomputed logits: states, weights and operations of a head's last linear map.

A `LinearHead` represents logits that have not been computed: the inputs of the map, its weights,
and the operations on its output. For a large vocabulary it is far smaller than the logits, and a
loss can be computed from it a few positions at a time (`objectives.chunked`).

Axes: selected (positions, any number of axes), width (of a state), class.

Design: weights are passed with the states. Several checkpoints of a teacher may be read in turns,
and a reference to the module could combine the states of a checkpoint with the head of another.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEnd:
    """Path of the last linear map of a head, and the operations of `forward` on its output."""

    path: str
    """Module path of the `nn.Linear`."""
    scale: float = 1.0
    """Factor on its output; dimensionless."""
    soft_cap: float | None = None
    """Bound c of the scaled output x, which becomes c tanh(x / c); None for no bound."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """Logits before the matrix product."""

    states: Float[Tensor, "*selected width"]
    """Inputs of the linear map, in the precision of its product."""
    weight: Float[Tensor, "class width"]
    """Its weight: the model's own parameter, tied or not."""
    bias: Float[Tensor, " class"] | None = None
    """Its bias, if it has one."""
    scale: float = 1.0
    """As in `HeadEnd`."""
    soft_cap: float | None = None
    """As in `HeadEnd`."""

    @property
    def num_classes(self) -> int:
        """Return the number of logits a position."""
        return len(self.weight)

    @property
    def flops(self) -> int:
        """Return the FLOPs of the product, as counted by torch."""
        return 2 * self.states.numel() * self.num_classes

    @property
    def flat(self) -> "LinearHead":
        """Return the head with positions on one axis."""
        return replace(self, states=self.states.flatten(0, -2))

    @property
    def detached(self) -> "LinearHead":
        """Return the head without gradient, with weights in the precision of the states."""
        dtype = self.states.dtype
        return replace(
            self,
            states=self.states.detach(),
            weight=self.weight.detach().to(dtype),
            bias=None if self.bias is None else self.bias.detach().to(dtype),
        )

    def first(self, num_classes: int | None) -> "LinearHead":
        """Return the head of the first classes, without padding; of all classes for None."""
        if num_classes is None or num_classes == self.num_classes:
            return self
        bias = None if self.bias is None else self.bias[:num_classes]
        return replace(self, weight=self.weight[:num_classes], bias=bias)

    def at(self, rows: slice) -> "LinearHead":
        """Return the head at some positions; the states must be `flat`."""
        return replace(self, states=self.states[rows])

    def product(self, out: Tensor | None = None) -> Float[Tensor, "*selected class"]:
        """Return the output of the linear map, in the precision of the states.

        Args:
            out: Tensor for the output, without gradient; the states must then be `flat`.
        """
        dtype = self.states.dtype
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if out is None:
            return functional.linear(self.states, weight, bias)
        if bias is None:
            return torch.mm(self.states, weight.T, out=out)
        return torch.addmm(bias, self.states, weight.T, out=out)

    def finished(
        self, product: Float[Tensor, "*selected class"]
    ) -> Float[Tensor, "*selected class"]:
        """Return the logits from the output of the linear map."""
        scaled = product if self.scale == 1 else product * self.scale
        if self.soft_cap is None:
            return scaled
        return torch.tanh(scaled / self.soft_cap) * self.soft_cap

    def logits(self) -> Float[Tensor, "*selected class"]:
        """Return the logits."""
        return self.finished(self.product())

    def gives(self, logits: Float[Tensor, "*selected class"]) -> bool:
        """Return whether logits are those of the head, up to rounding."""
        computed = self.logits()
        if computed.shape != logits.shape:
            return False
        size = logits.abs().max().item() if logits.numel() else 0.0
        # A root of the precision is far above rounding and far below a forgotten factor.
        tolerance = math.sqrt(torch.finfo(computed.dtype).eps) / 10 * size
        return torch.allclose(computed.to(logits.dtype), logits, rtol=0.0, atol=tolerance)
