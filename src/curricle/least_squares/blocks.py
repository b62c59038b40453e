"""Linear maps of a block, in the order in which a pass calls them.

A block of a transformer adds the outputs of its parts, attention and feed-forward, to a stream of
states. A part has maps that read the stream, perhaps through a normalization, and a map that writes
to it. Which is which follows from the tensors that a pass hands from module to module, not from
names.

Axes: example, position, width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from curricle.least_squares.maps import LinearMap, Norm, linear_map, norm_of
from curricle.models.outputs import first_tensor


@final
@dataclass(frozen=True, slots=True, eq=False)
class BlockCall:
    """Arguments of a block in one pass, of which the first is the state."""

    args: tuple[Any, ...]
    """Further positional arguments."""
    keywords: Mapping[str, Any]
    """Keyword arguments, without the state."""
    state_keyword: str = ""
    """Name of the state if it is passed by keyword."""

    def run(self, block: nn.Module, state: Tensor) -> Tensor:
        """Return the block's output for a state."""
        if self.state_keyword:
            return first_tensor(block(**{self.state_keyword: state, **self.keywords}), "block")
        return first_tensor(block(state, *self.args, **self.keywords), "block")


@final
@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Maps that read a state, and the map that writes the change of it."""

    inputs: tuple[LinearMap, ...]
    """Maps that read the state, in the order of their calls."""
    output: LinearMap
    """The map that writes."""
    norm: Norm | None
    """Normalization between the state and the maps."""
    end_norm: Norm | None = None
    """Normalization of the sum of state and output; its result is the next state."""
    stage: int = 0
    """Number of the state that it reads; parts of one stage run side by side."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the number of outputs of each map that reads."""
        return tuple(linear.sizes[0] for linear in self.inputs)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """Parts of a block; empty with a reason if they are not understood."""

    parts: tuple[Part, ...] = ()
    reason: str = ""


@final
@dataclass(slots=True)
class _Call:
    path: str
    module: nn.Module
    received: Tensor
    returned: Tensor


def anatomy(block: nn.Module, call: BlockCall, state: Tensor) -> Anatomy:
    """Return the parts of a block, as one pass shows them.

    Args:
        block: The block, in evaluation mode.
        call: Its other arguments.
        state: Its input.
    """
    calls, output = _calls(block, call, state)
    norms: dict[int, tuple[Norm, _Call]] = {}
    for entry in calls:
        norm = norm_of(entry.path, entry.module, entry.received, entry.returned)
        if norm is not None:
            norms[id(entry.returned)] = (norm, entry)
    maps = [
        (linear, entry)
        for entry in calls
        if (linear := linear_map(entry.path, entry.module)) is not None
    ]
    if not maps:
        return Anatomy(reason="it calls no linear map")
    if len({linear.path for linear, _ in maps}) < len(maps):
        return Anatomy(reason="it calls a linear map twice")
    is_post = id(output) in norms and norms[id(output)][1].received.shape == state.shape
    width = state.shape[-1]
    parts: list[tuple[list[LinearMap], LinearMap, Tensor]] = []
    readers: list[LinearMap] = []
    read: Tensor | None = None
    for linear, entry in maps:
        source = entry.received
        reads_stream = source is state or id(source) in norms
        if reads_stream and linear.sizes[1] == width:
            if readers and source is not read:
                return Anatomy(reason="maps of one part read different states")
            readers.append(linear)
            read = source
        else:
            if not readers or read is None or linear.sizes[0] != width:
                return Anatomy(reason=f"{linear.path!r} neither reads nor writes the states")
            parts.append((readers, linear, read))
            readers = []
    if readers:
        return Anatomy(reason=f"no map writes what {readers[0].path!r} reads")
    return _normalized(parts, norms, output, is_post=is_post)


def _normalized(
    parts: Sequence[tuple[list[LinearMap], LinearMap, Tensor]],
    norms: Mapping[int, tuple[Norm, _Call]],
    output: Tensor,
    *,
    is_post: bool,
) -> Anatomy:
    made: list[Part] = []
    used: set[int] = set()
    stages: list[Tensor] = []
    # Where a part ends, the state is the input of the next part, or the block's output.
    ends = [source for _, _, source in parts[1:]] + [output]
    for (readers, writer, source), end in zip(parts, ends, strict=True):
        norm, end_norm, state = None, None, source
        if is_post:
            if id(end) not in norms:
                return Anatomy(reason=f"the sum after {writer.path!r} is not normalized")
            end_norm = norms[id(end)][0]
            used.add(id(end))
        elif id(source) in norms:
            norm, entry = norms[id(source)]
            used.add(id(source))
            state = entry.received
        if not stages or stages[-1] is not state:
            stages.append(state)
        made.append(Part(tuple(readers), writer, norm, end_norm, len(stages) - 1))
    if len(used) != len(norms):
        return Anatomy(reason="it has normalizations beside those of the stream")
    return Anatomy(tuple(made))


def _calls(block: nn.Module, call: BlockCall, state: Tensor) -> tuple[list[_Call], Tensor]:
    calls: list[_Call] = []

    def hook(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, keywords: Any, output: Any) -> None:  # noqa: ANN401
            tensors = [value for value in (*args, *keywords.values()) if isinstance(value, Tensor)]
            if tensors and isinstance(output, Tensor):
                calls.append(_Call(path, module, tensors[0], output))

        return record

    with ExitStack() as stack, torch.no_grad():
        for path, module in block.named_modules():
            if not any(module.children()):
                stack.callback(
                    module.register_forward_hook(hook(path), with_kwargs=True).remove
                )
        return calls, call.run(block, state)


class _Stop(BaseException):  # noqa: N818 - no error: the pass ends where nothing more is read
    pass


@final
@dataclass(slots=True)
class Reading:
    """Tensors of one pass of a block."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Input of each map and normalization that was read, by path."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Output of each."""
    result: Tensor | None = None
    """Output of the block; None if the pass stopped before it."""


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
    reading = Reading()
    replaced = replacements or {}
    with ExitStack() as stack, torch.no_grad():
        for path in dict.fromkeys((*paths, *replaced, *([stop_at] if stop_at else []))):
            module = block.get_submodule(path)

            def before(_: nn.Module, args: Any, keywords: Any, path: str = path) -> None:  # noqa: ANN401
                tensors = (*args, *keywords.values())
                reading.inputs[path] = next(t for t in tensors if isinstance(t, Tensor))
                if path == stop_at:
                    raise _Stop

            def after(
                _: nn.Module, __: Any, output: Tensor, path: str = path  # noqa: ANN401
            ) -> Tensor:
                reading.outputs[path] = replaced.get(path, output)
                return reading.outputs[path]

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        try:
            reading.result = call.run(block, state)
        except _Stop:
            pass
    return reading
