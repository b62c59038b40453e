"""Linear maps of a block, in the order in which a pass calls them.

A block of a transformer adds the outputs of its sublayers, attention and feed-forward, to a stream
of states. A sublayer has maps that read the stream, perhaps through a normalization, and a map that
writes to it. Which is which follows from the tensors that a pass hands from module to module, not
from names, and is checked by values: the next state is the sum of the state and of the outputs of
the maps.

Axes: example, position, width.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from curricle.least_squares.maps import LinearMap, Norm, linear_map, norm_of
from curricle.models.outputs import first_tensor

TOLERANCE = 1e-2
"""Error of a sum of states relative to its largest value; bfloat16 rounds by less than that."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class BlockCall:
    """Arguments of a block in one pass, apart from the state."""

    args: tuple[object, ...]
    """Further positional arguments."""
    keywords: Mapping[str, object]
    """Keyword arguments."""
    state_keyword: str = ""
    """Name of the state if it is passed by keyword; otherwise it is the first argument."""

    def run(self, block: nn.Module, state: Tensor) -> Tensor:
        """Return the block's output for a state."""
        if self.state_keyword:
            output = block(**{self.state_keyword: state, **self.keywords})
        else:
            output = block(state, *self.args, **self.keywords)
        return first_tensor(output, "the block")

    def in_float32(self) -> "BlockCall":
        """Return the call with all floating-point arguments in float32."""

        def cast(value: object) -> object:
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.float()
            return value

        args, keywords = _pytree.tree_map(cast, (self.args, dict(self.keywords)))
        return BlockCall(args, keywords, self.state_keyword)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Sublayer:
    """Maps that read a state, and the map that writes the change of it."""

    inputs: tuple[LinearMap, ...]
    """Maps that read the state, in the order of their calls."""
    output: LinearMap
    """The map that writes."""
    norm: Norm | None = None
    """Normalization between the state and the maps that read it."""
    end_norm: Norm | None = None
    """Normalization of the sum of state and output; its result is the next state."""
    inner_norms: tuple[Norm, ...] = ()
    """Normalizations between the maps, such as those of queries and keys."""
    stage: int = 0
    """Number of the state that it reads; sublayers of one stage run side by side."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the number of outputs of each map that reads."""
        return tuple(linear.sizes[0] for linear in self.inputs)

    @property
    def state_path(self) -> str:
        """Return the module whose input is the state that the sublayer reads."""
        return self.inputs[0].path if self.norm is None else self.norm.path

    @property
    def form(self) -> tuple[bool, int]:
        """Return whether the sum is normalized, and the number of the state that is read."""
        return self.end_norm is not None, self.stage


@final
@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """Sublayers of a block; none, with a reason, if they are not understood."""

    sublayers: tuple[Sublayer, ...] = ()
    reason: str = ""


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A call of a module without submodules."""

    path: str
    module: nn.Module
    received: Tensor
    returned: Tensor


@final
@dataclass(slots=True)
class _Draft:
    """A sublayer while the calls are read."""

    readers: list[tuple[LinearMap, int]]
    """Maps that read, with the number of their call."""
    source: Tensor
    """The tensor that they read."""
    writer: tuple[LinearMap, int, Tensor] | None = None
    """The map that writes, the number of its call, and its output."""


def anatomy(block: nn.Module, call: BlockCall, state: Tensor) -> Anatomy:
    """Return the sublayers of a block, as one pass shows them.

    Args:
        block: The block, in evaluation mode.
        call: Its other arguments.
        state: Its input.
    """
    calls, output = _calls(block, call, state)
    reader = _Reader(calls, state)
    drafts = reader.drafts()
    if isinstance(drafts, str):
        return Anatomy(reason=drafts)
    return reader.sublayers(drafts, output)


@final
class _Reader:
    """Assembles the sublayers of a block from its calls."""

    def __init__(self, calls: Sequence[_Call], state: Tensor) -> None:
        self._calls, self._state = calls, state
        self.norms = {
            id(call.returned): (norm, number)
            for number, call in enumerate(calls)
            if (norm := norm_of(call.path, call.module, call.received, call.returned)) is not None
        }
        """Normalizations and the numbers of their calls, by their outputs."""
        self._drafts = list[_Draft]()

    def drafts(self) -> list[_Draft] | str:
        """Return the maps of each sublayer, or the reason why they are not understood."""
        paths = set[str]()
        for number, call in enumerate(self._calls):
            linear = linear_map(call.path, call.module)
            if linear is None:
                continue
            reason = self._place(linear, number, call)
            if linear.path in paths:
                reason = f"it calls {linear.path!r} twice"
            if reason:
                return reason
            paths.add(linear.path)
        if not self._drafts:
            return "it calls no linear map"
        if self._drafts[-1].writer is None:
            return f"no map writes what {self._drafts[-1].readers[0][0].path!r} reads"
        return self._drafts

    def _place(self, linear: LinearMap, number: int, call: _Call) -> str:
        """Add a map to its sublayer.

        Returns:
            The reason why it has none.
        """
        width, source = self._state.shape[-1], call.received
        is_open = bool(self._drafts) and self._drafts[-1].writer is None
        is_normalized = id(source) in self.norms and source.numel() == self._state.numel()
        if linear.sizes[1] == width and (source is self._state or is_normalized):
            if not is_open:
                self._drafts.append(_Draft([], source))
            if source is not self._drafts[-1].source:
                return f"{linear.path!r} reads another state than the maps before it"
            self._drafts[-1].readers.append((linear, number))
            return ""
        if is_open and linear.sizes[0] == width:
            self._drafts[-1].writer = (linear, number, call.returned)
            return ""
        return f"{linear.path!r} neither reads nor writes its states"

    def sublayers(self, drafts: Sequence[_Draft], output: Tensor) -> Anatomy:
        """Return sublayers with their normalizations, if states are sums of the maps' outputs.

        Args:
            drafts: The maps of each sublayer.
            output: Output of the block.
        """
        # A normalization as the last module belongs to the sum; then so do the others.
        is_post = id(output) in self.norms
        sublayers, sums = list[Sublayer](), list[_Sum]()
        ends = [*(draft.source for draft in drafts[1:]), output]
        for draft, end in zip(drafts, ends, strict=True):
            assert draft.writer is not None  # noqa: S101 - checked by `drafts`
            linear, last, change = draft.writer
            norm, received = self._normalization(end if is_post else draft.source)
            state, total = (draft.source, received) if is_post else (received, end)
            if not sums or sums[-1].state is not state:
                sums.append(_Sum(state, []))
            sums[-1].changes.append(change)
            sums[-1].total = total
            sublayers.append(
                Sublayer(
                    inputs=tuple(reader for reader, _ in draft.readers),
                    output=linear,
                    norm=None if is_post else norm,
                    end_norm=norm if is_post else None,
                    inner_norms=self._between(draft.readers[0][1], last),
                    stage=len(sums) - 1,
                )
            )
        if not is_post:
            # The next state itself: what the next sublayer reads is normalized.
            for entry, following in pairwise(sums):
                entry.total = following.state
        reason = self._fault(sublayers, sums)
        return Anatomy(reason=reason) if reason else Anatomy(tuple(sublayers))

    def _normalization(self, tensor: Tensor) -> tuple[Norm | None, Tensor]:
        """Return the normalization that has made a tensor, and its input."""
        if id(tensor) not in self.norms:
            return None, tensor
        norm, number = self.norms[id(tensor)]
        return norm, self._calls[number].received

    def _fault(self, sublayers: Sequence[Sublayer], sums: Sequence["_Sum"]) -> str:
        """Return the fault in normalizations and states; empty if there is none."""
        paths = {norm.path for norm, _ in self.norms.values()}
        for sublayer in sublayers:
            norms = (sublayer.norm, sublayer.end_norm, *sublayer.inner_norms)
            paths -= {norm.path for norm in norms if norm is not None}
        if paths:
            return "it has normalizations beside those of its states"
        if len({sublayer.end_norm is None for sublayer in sublayers}) > 1:
            return "not all of its sums are normalized"
        if not all(entry.holds for entry in sums):
            return "its states are not sums of what its maps write"
        return ""

    def _between(self, first: int, last: int) -> tuple[Norm, ...]:
        """Return the normalizations between two calls, in order."""
        inner = {number: norm for norm, number in self.norms.values() if first < number < last}
        return tuple(inner[number] for number in sorted(inner))


@final
@dataclass(slots=True, eq=False)
class _Sum:
    """A state, the outputs of maps that are added to it, and their presumed sum."""

    state: Tensor
    changes: list[Tensor]
    total: Tensor | None = None

    @property
    def holds(self) -> bool:
        """Return whether it is the sum, up to rounding."""
        assert self.total is not None  # noqa: S101 - set with the first change
        tensors = [self.state, *self.changes, self.total]
        if len({tensor.numel() for tensor in tensors}) > 1:
            return False
        # Some models flatten examples and positions on the way.
        rows = [tensor.detach().double().flatten() for tensor in tensors]
        error = (torch.stack(rows[:-1]).sum(0) - rows[-1]).abs().max()
        return bool(error <= TOLERANCE * rows[-1].abs().max())


def _calls(block: nn.Module, call: BlockCall, state: Tensor) -> tuple[list[_Call], Tensor]:
    """Return the calls of modules without submodules in one pass, and the block's output."""
    calls = list[_Call]()

    def hook(path: str) -> Callable[..., None]:
        def record(
            module: nn.Module,
            args: tuple[object, ...],
            keywords: Mapping[str, object],
            output: object,
        ) -> None:
            tensors = [value for value in (*args, *keywords.values()) if isinstance(value, Tensor)]
            if tensors and isinstance(output, Tensor):
                calls.append(_Call(path, module, tensors[0], output))

        return record

    with ExitStack() as stack, torch.no_grad():
        for path, module in block.named_modules():
            if not any(module.children()):
                handle = module.register_forward_hook(hook(path), with_kwargs=True)
                stack.callback(handle.remove)
        return calls, call.run(block, state)


@final
class Stop(BaseException):
    """End of a pass."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Tensors of one pass of a block."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Input of each module that was read, by path."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Output of each; that of the block has an empty path, unless the pass ended before it."""


def read(
    block: nn.Module,
    call: BlockCall,
    state: Tensor,
    paths: Sequence[str],
    *,
    stop_at: str = "",
    replacements: Mapping[str, Tensor] | None = None,
) -> Reading:
    """Return tensors of a pass of a block.

    Args:
        block: The block.
        call: Its other arguments.
        state: Its input.
        paths: Modules to read.
        stop_at: Module before which the pass ends; empty for none.
        replacements: Outputs that take the place of those of some modules.
    """
    reading, replaced = Reading(), replacements or {}

    def hooks(path: str) -> tuple[Callable[..., None], Callable[..., Tensor]]:
        def before(_: nn.Module, args: tuple[object, ...], keywords: Mapping[str, object]) -> None:
            tensors = (value for value in (*args, *keywords.values()) if isinstance(value, Tensor))
            reading.inputs[path] = next(tensors)
            if path == stop_at:
                raise Stop

        def after(_: nn.Module, __: object, output: Tensor) -> Tensor:
            reading.outputs[path] = replaced.get(path, output)
            return reading.outputs[path]

        return before, after

    with ExitStack() as stack, torch.no_grad(), suppress(Stop):
        for path in dict.fromkeys((*paths, *replaced, *([stop_at] if stop_at else []))):
            module, (before, after) = block.get_submodule(path), hooks(path)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        reading.outputs[""] = call.run(block, state)
    return reading
