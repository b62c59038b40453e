"""Weighted maps and normalizations of feed-forward networks, whose units lie on one axis.

A *unit* is an output of a linear map, or a channel of a convolution. A convolution is a linear map
of the patches that it reads, so that both are fitted by the same least squares.

Axes: row (example, and place if units have several), column (input of a map, or entry of a patch),
unit.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from curricle.least_squares.maps import LinearMap, linear_map
from curricle.least_squares.solving import Affine

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@final
@dataclass(frozen=True, slots=True, eq=False)
class WeightedMap:
    """A linear map or a convolution."""

    path: str
    module: nn.Module
    linear: LinearMap | None
    """The module as a linear map; None for a convolution."""

    @property
    def unit_axis(self) -> int:
        """Return the axis of its input and output that counts units."""
        return -1 if self.linear is not None else 1

    @property
    def has_bias(self) -> bool:
        """Return whether the map has a bias."""
        return isinstance(self.module.bias, Tensor)

    @property
    def affine(self) -> Affine:
        """Return the map of columns, in float64 on the CPU."""
        if self.linear is not None:
            return self.linear.affine
        weight = self._weight.detach().flatten(1).to("cpu", torch.float64)
        bias = self.module.bias
        if isinstance(bias, Tensor):
            return Affine(weight, bias.detach().to("cpu", torch.float64))
        return Affine(weight, weight.new_zeros(len(weight)))

    @torch.no_grad()
    def set(self, affine: Affine) -> None:
        """Set the weights; the bias of a map without is not used."""
        if self.linear is not None:
            self.linear.set(affine)
            return
        self._weight.copy_(affine.weight.view(self._weight.shape))
        if isinstance(self.module.bias, Tensor):
            self.module.bias.copy_(affine.bias)

    def columns(self, inputs: Tensor) -> Tensor:
        """Return the inputs of which each output of the map is a linear function, on the last axis.

        Args:
            inputs: Input of the module.
        """
        module = self.module
        if not isinstance(module, Convolution):
            return inputs
        num_axes = len(module.kernel_size)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        # The function counts axes from the last one.
        padding = [size for pair in reversed(_padding(module)) for size in pair]
        patches = functional.pad(inputs, padding, mode=mode)
        geometry = zip(module.kernel_size, module.stride, module.dilation, strict=True)
        for axis, (size, step, gap) in enumerate(geometry, start=2):
            patches = patches.unfold(axis, (size - 1) * gap + 1, step)[..., ::gap]
        # From (example, channel, places, kernel) to (example, places, channel and kernel).
        return patches.movedim(1, num_axes + 1).flatten(num_axes + 1)

    @property
    def _weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)  # noqa: S101 - checked by `weighted_map`
        return weight


def weighted_map(path: str, module: nn.Module) -> WeightedMap | None:
    """Return a module as a map whose weights can be fitted; None if it is none.

    Convolutions with groups are none: each of their units reads some channels alone.
    """
    linear = linear_map(path, module)
    if linear is not None:
        return WeightedMap(path, module, linear)
    is_convolution = isinstance(module, Convolution) and module.groups == 1
    if not is_convolution or "weight" not in dict(module.named_parameters(recurse=False)):
        return None
    return WeightedMap(path, module, None)


def _padding(module: Convolution) -> list[tuple[int, int]]:
    """Return the padding before and behind each axis of places."""
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return [(0, 0)] * len(module.kernel_size)
        totals = [
            gap * (size - 1) for size, gap in zip(module.kernel_size, module.dilation, strict=True)
        ]
        return [(total // 2, total - total // 2) for total in totals]
    return [(size, size) for size in module.padding]


@final
@dataclass(frozen=True, slots=True, eq=False)
class UnitNorm:
    """A normalization with a gain and perhaps a shift for each unit, or with fixed statistics."""

    path: str
    module: nn.Module
    unit_axis: int
    is_direct: bool
    """Whether it reads the output of the map before it, or of another normalization."""

    @property
    def has_gain(self) -> bool:
        """Return whether units have a gain."""
        return isinstance(getattr(self.module, "weight", None), Tensor)

    @property
    def has_shift(self) -> bool:
        """Return whether units have a shift."""
        return isinstance(getattr(self.module, "bias", None), Tensor)

    @property
    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Return the mean and variance that it uses in evaluation; None if it has none."""
        mean, variance = (
            getattr(self.module, name, None) for name in ("running_mean", "running_var")
        )
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            return mean, variance
        return None

    @torch.no_grad()
    def plain(self, inputs: Tensor) -> Tensor:
        """Return the output with gain 1 and shift 0."""
        return _with_gain(self.module, inputs, 1.0)

    @torch.no_grad()
    def set_gain(self, gain: Tensor, shift: Tensor) -> None:
        """Set gain and shift, as far as there are any."""
        for name, values in (("weight", gain), ("bias", shift)):
            parameter = getattr(self.module, name, None)
            if isinstance(parameter, Tensor):
                parameter.copy_(values)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Set the mean and variance that it uses in evaluation, if it has them."""
        for parameter, values in zip(self.statistics or (), (mean, variance), strict=False):
            parameter.copy_(values)

    @torch.no_grad()
    def set_gain_by_statistics(self, gain: Tensor, shift: Tensor) -> None:
        """Set mean and variance so that the output in evaluation is gain times input plus shift.

        Gains below zero, which no variance has, become small ones.
        """
        gain = gain.clamp_min(1e-6)
        epsilon = float(getattr(self.module, "eps", 0.0))
        self.set_statistics(-shift / gain, (gain**-2 - epsilon).clamp_min(0))


def unit_norm(
    path: str, module: nn.Module, received: Tensor, returned: Tensor, *, is_direct: bool
) -> UnitNorm | None:
    """Return a module as a normalization of units; None if it is none.

    Args:
        path: Path of the module.
        module: A module without submodules, in evaluation mode.
        received: Its input.
        returned: Its output.
        is_direct: See `UnitNorm`.
    """
    if received.shape != returned.shape or received.ndim < 2:  # noqa: PLR2004 - example, unit
        return None
    weight, mean = (getattr(module, name, None) for name in ("weight", "running_mean"))
    if weight is None and isinstance(mean, Tensor) and received.shape[1] == len(mean):
        return UnitNorm(path, module, 1, is_direct)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not weight.is_floating_point():
        return None
    # The output is proportional to the gains: of an activation with a weight it is not.
    if _with_gain(module, received, 0.0).any():
        return None
    first = torch.zeros_like(weight)
    first[0] = 1
    output = _with_gain(module, received, first)
    for axis in (1, -1):
        size = received.shape[axis]
        if size == len(weight) and not output.narrow(axis, 1, size - 1).any():
            return UnitNorm(path, module, axis, is_direct)
    return None


@torch.no_grad()
def _with_gain(module: nn.Module, inputs: Tensor, gain: Tensor | float) -> Tensor:
    """Return the output of a normalization with other gains, and without a shift."""
    parameters = dict(module.named_parameters(recurse=False))
    values = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    if "weight" in values:
        values["weight"] += gain
    output: Tensor = functional_call(module, values, (inputs,))
    return output
