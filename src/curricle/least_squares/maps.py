"""Linear maps and normalizations inside modules, read and set in one form.

Axes: input, output, width.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from curricle.least_squares.solving import Affine


@final
@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """A module that computes W x + b over the last axis."""

    path: str
    module: nn.Module
    is_transposed: bool
    """Whether the weight is stored as (input, output), as in transformers' `Conv1D`."""

    @property
    def has_bias(self) -> bool:
        """Return whether the map has a bias."""
        return isinstance(self.module.bias, Tensor)

    @property
    def weight(self) -> Tensor:
        """Return the weight as (output, input)."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # noqa: S101 - checked by `linear_map`
        return weight.mT if self.is_transposed else weight

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the numbers of outputs and inputs."""
        outputs, inputs = self.weight.shape
        return outputs, inputs

    @property
    def affine(self) -> Affine:
        """Return the map as values, in float64 on the CPU."""
        weight = self.weight.detach().to("cpu", torch.float64)
        bias = self.module.bias
        if isinstance(bias, Tensor):
            return Affine(weight, bias.detach().to("cpu", torch.float64))
        return Affine(weight, weight.new_zeros(len(weight)))

    @torch.no_grad()
    def set(self, affine: Affine) -> None:
        """Set the weights; the bias of a map without is not used."""
        self.weight.copy_(affine.weight)
        if isinstance(self.module.bias, Tensor):
            self.module.bias.copy_(affine.bias)

    @torch.no_grad()
    def set_bias(self, source: "LinearMap") -> None:
        """Take the bias of a map with as many outputs, if both have one."""
        target, values = self.module.bias, source.module.bias
        if (
            isinstance(target, Tensor)
            and isinstance(values, Tensor)
            and target.shape == values.shape
        ):
            target.copy_(values)


def linear_map(path: str, module: nn.Module) -> LinearMap | None:
    """Return a module as a linear map; None if it is none."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or any(module.children()):  # noqa: PLR2004
        return None
    # Quantized maps have integers there, which are no weights by themselves.
    if not weight.is_floating_point() or weight.is_meta:
        return None
    if isinstance(module, nn.Linear):
        return LinearMap(path, module, is_transposed=False)
    # The layer of GPT-2 in transformers: known by its attribute, not imported.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return LinearMap(path, module, is_transposed=True)
    return None


@final
@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A normalization with a gain, and perhaps a shift, for each channel."""

    path: str
    module: nn.Module

    @property
    def width(self) -> int:
        """Return the number of channels."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # noqa: S101 - checked by `norm_of`
        return len(weight)

    @property
    def has_shift(self) -> bool:
        """Return whether there is a shift."""
        return isinstance(getattr(self.module, "bias", None), Tensor)

    @torch.no_grad()
    def plain(self, inputs: Tensor) -> Tensor:
        """Return the output with gain 1 and shift 0."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        assert isinstance(weight, Tensor)  # noqa: S101 - as above
        kept = weight.clone(), bias.clone() if isinstance(bias, Tensor) else None
        self.set_gain(torch.ones_like(weight), torch.zeros_like(weight))
        try:
            output: Tensor = self.module(inputs)
        finally:
            weight.copy_(kept[0])
            if isinstance(bias, Tensor) and kept[1] is not None:
                bias.copy_(kept[1])
        return output

    @torch.no_grad()
    def set_gain(self, gain: Tensor, shift: Tensor) -> None:
        """Set gain and shift; the shift of a normalization without is not used."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        assert isinstance(weight, Tensor)  # noqa: S101 - as above
        offset = self.gain_offset
        weight.copy_(gain - offset)
        if isinstance(bias, Tensor):
            bias.copy_(shift)

    @torch.no_grad()
    def copy(self, source: "Norm") -> None:
        """Take gain and shift of a normalization of the same width."""
        for name in ("weight", "bias"):
            target, values = getattr(self.module, name, None), getattr(source.module, name, None)
            if isinstance(target, Tensor) and isinstance(values, Tensor):
                target.copy_(values)

    @property
    def gain_offset(self) -> float:
        """Return the gain at weight 0: 1 where the gain is 1 + weight, as in Gemma, otherwise 0."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # noqa: S101 - as above
        kept = weight.detach().clone()
        probe = torch.linspace(-1, 1, self.width).to(weight)[None, None]
        with torch.no_grad():
            outputs = []
            for value in (0.0, 1.0):
                weight.fill_(value)
                shift = getattr(self.module, "bias", None)
                output = self.module(probe)
                outputs.append(output - shift if isinstance(shift, Tensor) else output)
            weight.copy_(kept)
        zero, unit = (output.abs().sum().item() for output in outputs)
        return round(zero / (unit - zero)) if zero else 0.0

    @property
    def subtracts_mean(self) -> bool:
        """Return whether a constant added to all channels changes nothing."""
        generator = torch.Generator().manual_seed(0)
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # noqa: S101 - as above
        probe = torch.randn(1, 1, self.width, generator=generator).to(weight)
        with torch.no_grad():
            return bool(torch.allclose(self.module(probe), self.module(probe + 1), atol=1e-3))


def norm_of(path: str, module: nn.Module, received: Tensor, returned: Tensor) -> Norm | None:
    """Return a module as a normalization of the last axis; None if it is none."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or any(module.children()):
        return None
    if received.shape != returned.shape or received.shape[-1] != len(weight):
        return None
    return Norm(path, module)
