"""Weighted maps of a feed-forward network, in the order in which a pass calls them.

A map is a *link* of the chain if the output of the network depends on its examples through the
output of this map alone. That is determined by intervention: a pass over other examples, in which
the map returns its outputs for the first ones, ends in the logits of the first ones. Maps
beside a skip connection or in parallel branches are no links.

Axes: example, unit (see `chain_maps`), place.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from curricle.least_squares.chain_maps import UnitNorm, WeightedMap, unit_norm, weighted_map
from curricle.least_squares.flops import passes_of
from curricle.least_squares.sublayers import Stop
from curricle.models.tapped import Inputs, TappedModel

TOLERANCE = 1e-4
"""Difference of logits relative to the largest, below which they are equal."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Inputs and outputs of modules in one pass."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    logits: Tensor | None
    """The logits; None if the pass has ended before, or the output has none."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A map on which alone the output depends, and the normalizations behind it."""

    map: WeightedMap
    num_units: int
    leading: tuple[int, ...]
    """Shape of its output in the first batch without the axis of units: examples and places."""
    norms: tuple[UnitNorm, ...] = ()

    @property
    def direct_path(self) -> str:
        """Return the last module before an activation: the map, or a normalization behind it."""
        return [self.map.path, *(norm.path for norm in self.norms if norm.is_direct)][-1]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """The links of a network, and the modules outside of them."""

    links: tuple[Link, ...]
    unfitted: Mapping[str, str]
    """Reasons by the paths of modules with weights that belong to no link."""


def read(
    model: TappedModel,
    inputs: Inputs,
    paths: Sequence[str],
    *,
    stop_at: str = "",
    replaced: Mapping[str, Tensor] | None = None,
) -> Reading:
    """Return the inputs and outputs of modules in a pass.

    Args:
        model: The model, in evaluation mode.
        inputs: Its inputs.
        paths: Paths of the modules.
        stop_at: Path of a module before which the pass ends; its input is read. Empty for a whole
            pass.
        replaced: Outputs by the paths of the modules that are to return them.
    """
    received, returned, fixed = dict[str, Tensor](), dict[str, Tensor](), replaced or {}

    def before(path: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            received[path] = args[0]
            if path == stop_at:
                raise Stop

        return record

    def behind(path: str) -> Callable[..., Tensor]:
        def record(_: nn.Module, __: object, output: Tensor) -> Tensor:
            returned[path] = fixed.get(path, output)
            return returned[path]

        return record

    logits: Tensor | None = None
    with ExitStack() as stack, torch.no_grad(), suppress(Stop):
        for path in {*paths, *fixed, *filter(None, [stop_at])}:
            module = model.module.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(before(path)).remove)
            stack.callback(module.register_forward_hook(behind(path)).remove)
        stack.enter_context(passes_of(model.module))
        forward = stack.enter_context(model.open_taps((), logits=True))
        logits = forward(inputs).logits
    return Reading(received, returned, logits)


def chain(model: TappedModel, inputs: Inputs) -> Chain:
    """Return the links of a network, as a batch shows them.

    Args:
        model: The network, in evaluation mode.
        inputs: A batch of at least two different examples.
    """
    calls, logits = _calls(model, inputs)
    if logits is None:
        return Chain((), {"": "its output has no logits"})
    others = _rolled(inputs)
    if _are_equal(read(model, others, ()).logits, logits):
        return Chain((), {"": "its logits are equal for all examples of the first batch"})
    uses = Counter(id(getattr(call.module, "weight", call.module)) for call in calls)
    builder = _Builder(model, others, logits, uses)
    for call in calls:
        builder.add(call)
    return builder.chain()


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A call of a module without submodules."""

    path: str
    module: nn.Module
    received: Tensor
    returned: Tensor


def _calls(model: TappedModel, inputs: Inputs) -> tuple[list[_Call], Tensor | None]:
    calls = list[_Call]()

    def record_at(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls.append(_Call(path, module, args[0], output))

        return record

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.module.named_modules():
            if not any(module.children()):
                stack.callback(module.register_forward_hook(record_at(path)).remove)
        stack.enter_context(passes_of(model.module))
        forward = stack.enter_context(model.open_taps((), logits=True))
        logits = forward(inputs).logits
    return calls, logits


@final
@dataclass(slots=True, eq=False)
class _Builder:
    """Assembles links from calls in their order."""

    model: TappedModel
    others: Inputs
    """Inputs of other examples."""
    logits: Tensor
    uses: Mapping[int, int]
    """Number of calls with each weight, by its identity."""
    links: list[Link] = field(default_factory=list)
    unfitted: dict[str, str] = field(default_factory=dict)
    norms: dict[str, list[UnitNorm]] = field(default_factory=dict)
    """Normalizations by the path of the map before them."""
    last: str = ""
    """Path of the link that the calls follow; empty before the first and behind other maps."""
    previous: Tensor | None = None
    """Output of the link, or of a normalization directly behind it."""

    def add(self, call: _Call) -> None:
        """Add a call."""
        if not call.module.state_dict():
            return
        linear = weighted_map(call.path, call.module)
        if linear is not None:
            self._add_map(call, linear)
            return
        norm = unit_norm(
            call.path,
            call.module,
            call.received,
            call.returned,
            is_direct=call.received is self.previous,
        )
        if norm is None:
            self.unfitted[call.path] = "it is no linear map, convolution or normalization"
            self.last, self.previous = "", None
        elif self.last and not self._is_reused(call):
            self.norms[self.last].append(norm)
            self.previous = call.returned if norm.is_direct else None
        else:
            self.unfitted[call.path] = "it does not follow a map that is fitted"

    def _add_map(self, call: _Call, linear: WeightedMap) -> None:
        reason = self._reason(call)
        if reason:
            self.unfitted[call.path] = reason
            self.last, self.previous = "", None
            return
        leading = list(call.returned.shape)
        num_units = leading.pop(linear.unit_axis)
        self.links.append(Link(linear, num_units, tuple(leading)))
        self.norms[call.path] = []
        self.last, self.previous = call.path, call.returned

    def _reason(self, call: _Call) -> str:
        """Return the reason why a map is no link; empty if it is one."""
        if self._is_reused(call):
            return "its weights are used several times in a pass"
        others = read(self.model, self.others, (), replaced={call.path: call.returned})
        if not _are_equal(others.logits, self.logits):
            return "the output does not depend on it alone, as beside a skip connection"
        return ""

    def _is_reused(self, call: _Call) -> bool:
        return self.uses[id(getattr(call.module, "weight", call.module))] > 1

    def chain(self) -> Chain:
        """Return the chain."""
        links = tuple(
            Link(link.map, link.num_units, link.leading, tuple(self.norms[link.map.path]))
            for link in self.links
        )
        named = {link.map.path for link in links}
        named |= {norm.path for link in links for norm in link.norms}
        for name, _ in self.model.module.named_parameters():
            path = name.rpartition(".")[0]
            if path not in named:
                self.unfitted.setdefault(path, "a pass does not call it as a module")
        return Chain(links, self.unfitted)


def _rolled(inputs: Inputs) -> Inputs:
    """Return inputs in which each example has the place of another."""
    if isinstance(inputs, Tensor):
        return inputs.roll(1, 0)
    return {name: tensor.roll(1, 0) for name, tensor in inputs.items()}


def _are_equal(first: Tensor | None, second: Tensor) -> bool:
    if first is None or first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= TOLERANCE * second.abs().max())
