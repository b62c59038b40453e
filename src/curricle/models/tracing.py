"""Stacks of blocks in Hugging Face models, traced in one small forward pass.

A model of transformers returns its hidden states on request. The blocks are the modules in a list
whose outputs, in the order of their calls, are these states: block l gives state l, and the first
one receives state 0. The last state is not compared, since many families normalize it once more.
Thus one shared block that runs several times is a stack, too, and an encoder-decoder has two.

Axes: example, position, row, column, width.

Design: no table of families. Every stack is verified by its values before numbers refer to it, and
a model that takes no small input, or shows no such list, is read by module paths.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

# The counter of FLOPs is such a mode, and torch has no public way out of one.
from torch.utils._python_dispatch import _disable_current_modes

from curricle import seeding
from curricle.errors import BindError
from curricle.models.outputs import first_tensor
from curricle.models.restoring import buffers_kept, hooks_kept, modes_kept
from curricle.models.sample_inputs import SampleInputs, sample_inputs
from curricle.models.stacks import Stack
from curricle.models.tapped import REFUSALS, SEQUENCE_FIRST, Place
from curricle.models.width_axis import width_axes

STATES = "hidden_states"
"""End of the names of hidden states in outputs."""
WORDS = ("_model_outputs", "_model_output", "_outputs", "_output")
"""Ends of the names of parts in the output of a composite model."""
SEQUENCE_AXES = 3
"""Axes of a state with examples, positions and features."""


@final
@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a module in a list."""

    place: Place
    received: Tensor | None
    """Its first input tensor."""
    returned: Tensor
    """Its first output tensor."""


@final
@dataclass(frozen=True, slots=True)
class _Traced:
    """A stack with the shapes of its states in the pass."""

    stack: Stack
    shapes: Mapping[Place, tuple[int, ...]]


def traced_stacks(model: nn.Module, keywords: Mapping[str, object]) -> tuple[Stack, ...]:
    """Return the stacks of blocks of a Hugging Face model; none if a pass does not show them.

    Args:
        model: The model; it stays as it is, and so do the global random generators.
        keywords: Fixed keyword arguments of its forward pass.
    """
    if not callable(getattr(model, "get_output_embeddings", None)) or not isinstance(
        getattr(model, "main_input_name", None), str
    ):
        return ()
    for sample in sample_inputs(model):
        try:
            output, calls = _traced(model, sample, keywords)
        except (AttributeError, AssertionError, *REFUSALS):
            # Too small, or not all that the model needs.
            continue
        stacks = [_stack(name, states, calls) for name, states in _hidden_states(output)]
        traced = [stack for stack in stacks if stack is not None]
        return tuple(_with_features_last(model, stack, sample, keywords) for stack in traced)
    return ()


def _traced(
    model: nn.Module, sample: SampleInputs, keywords: Mapping[str, object]
) -> tuple[object, list[_Call]]:
    """Return the output of a pass with hidden states, and the calls of modules in lists."""
    calls: list[_Call] = []
    numbers: dict[str, int] = defaultdict(int)

    def record(path: str, received: object, output: object) -> None:
        place = Place(path, numbers[path])
        numbers[path] += 1
        try:
            returned = first_tensor(output, path)
        except BindError:
            return
        calls.append(_Call(place, _first_or_none(received), returned))

    with ExitStack() as stack:
        stack.enter_context(hooks_kept(model))
        for path, module in model.named_modules():
            if path.rpartition(".")[2].isdecimal():
                handle = module.register_forward_hook(
                    lambda _, args, named, output, path=path: record(
                        path, args or (*named.values(),), output
                    ),
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(modes_kept(model))
        stack.enter_context(buffers_kept(model))
        stack.enter_context(seeding.scoped(0, "trace", beyond_torch=True))
        model.eval()
        options = {"output_hidden_states": True, "return_dict": True}
        output = model(**sample, **{**keywords, **options})
    return output, calls


def _first_or_none(received: object) -> Tensor | None:
    try:
        return first_tensor(received, "input")
    except BindError:
        return None


def _hidden_states(output: object, name: str = "") -> Iterator[tuple[str, Sequence[object]]]:
    """Yield name and hidden states of each stack in an output, also in outputs inside it."""
    for key, entry in output.items() if isinstance(output, Mapping) else ():
        if str(key).endswith(STATES) and isinstance(entry, (tuple, list)):
            prefix = str(key).removesuffix(STATES).strip("_")
            yield prefix or name, entry
        elif isinstance(entry, Mapping):
            yield from _hidden_states(entry, _short(str(key)))


def _short(name: str) -> str:
    return next((name.removesuffix(word) for word in WORDS if name.endswith(word)), name)


def _stack(name: str, states: Sequence[object], calls: Sequence[_Call]) -> _Traced | None:
    """Return the list of modules that makes hidden states, the outermost of several."""
    tensors = [state for state in states if isinstance(state, Tensor)]
    if len(tensors) != len(states) or len(tensors) < 2:  # noqa: PLR2004 - an input and a block
        return None
    lists: dict[str, list[_Call]] = defaultdict(list)
    for call in calls:
        lists[call.place.path.rpartition(".")[0]].append(call)
    for path in sorted(lists, key=len):
        blocks = lists[path]
        first = blocks[0].received
        if len(blocks) != len(tensors) - 1 or first is None:
            continue
        made = [first, *(block.returned for block in blocks)]
        for order in ((), SEQUENCE_FIRST):
            # The last state may have been normalized after the last block.
            pairs = zip(made[:-1], tensors[:-1], strict=True)
            if all(_agree(tensor, state, order) for tensor, state in pairs):
                return _numbered(name, blocks, order, [tuple(tensor.shape) for tensor in made])
    return None


def _agree(made: Tensor, state: Tensor, order: tuple[int, ...]) -> bool:
    if order and made.ndim != len(order):
        return False
    made = made.permute(order) if order else made
    return made is state or (made.shape == state.shape and torch.equal(made, state))


def _numbered(
    name: str, blocks: Sequence[_Call], order: tuple[int, ...], shapes: Sequence[tuple[int, ...]]
) -> _Traced:
    prefix = f"{name}:" if name else ""
    first = blocks[0].place
    # Embeddings have no name that all families share; the input of block 1 is their output.
    embedded = Place(first.path, first.call, "input")
    places = tuple(
        replace(place, tap=f"{prefix}{number}", order=order, stack=name)
        for number, place in enumerate([embedded, *(block.place for block in blocks)])
    )
    stack = Stack(name=name, places=places, keeps_shape=len(set(shapes)) == 1)
    return _Traced(stack, dict(zip(places, shapes, strict=True)))


def _with_features_last(
    model: nn.Module, traced: _Traced, sample: SampleInputs, keywords: Mapping[str, object]
) -> Stack:
    """Return a stack whose maps have their features last; those of unclear axes stay as they are.

    A smaller input shows which axis of a map keeps its size.
    """
    maps: dict[Place | None, tuple[int, ...]] = {
        place: shape for place, shape in traced.shapes.items() if len(shape) > SEQUENCE_AXES
    }
    axes = width_axes(model, sample, keywords, maps) if maps else {}
    places = tuple(
        replace(place, order=_order(maps[place], axes[place])) if place in axes else place
        for place in traced.stack.places
    )
    return replace(traced.stack, places=places, has_maps=bool(maps))


def _order(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the order of axes with one at the end; empty if it is unknown or there already."""
    if axis in (0, len(shape) - 1):
        return ()
    return (*(number for number in range(len(shape)) if number != axis), axis)
