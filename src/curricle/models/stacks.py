"""Lists of blocks in a model, and the choice of the numbered ones.

A stack is a module list of blocks of one class with linear maps: the layers of an encoder, a
decoder or a vision tower. Lists inside a block, such as experts, and lists of plain convolutions
are not stacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import nn

from curricle.models.tapped import Place

FEWEST_MAPS = 2
"""Minimum number of linear maps in a block; attention and feed-forward layers have more."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Blocks whose states follow each other, as a pass has shown."""

    name: str = ""
    """Name in taps such as `encoder:2`; empty for the only one."""
    places: tuple[Place, ...]
    """Place of tap 0 and of each block's output."""
    keeps_shape: bool = True
    """Whether all states have one shape, as on a residual stream."""
    has_maps: bool = False
    """Whether states have rows and columns, so that an axis before them may count features."""

    @property
    def depth(self) -> int:
        """Return the number of blocks."""
        return len(self.places) - 1

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the blocks as users write them."""
        return tuple(map(str, self.places[1:]))

    @property
    def list_path(self) -> str:
        """Return the path of the module list of the blocks."""
        return self.places[0].path.rpartition(".")[0]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Numbering:
    """The numbered blocks of a model."""

    paths: tuple[str, ...] = ()
    """Their module paths in forward order; empty if they are unknown."""
    reason: str = ""
    """Cause of an unknown numbering, for the error of a numbered tap."""
    notes: tuple[str, ...] = ()
    """Decisions about the model, one sentence each."""
    main: Stack | None = None
    """The numbered stack, if a pass has shown it."""
    stacks: tuple[Stack, ...] = ()
    """All stacks that a pass has shown, the main one included."""
    order: tuple[int, ...] = ()
    """Declared axes of all states with positions, in the order example, position, feature; empty if
    they have that order."""


def below(path: str, numbering: Numbering) -> Numbering:
    """Return the numbering of a model as a module around it has it.

    Args:
        path: Path of the model in the module.
        numbering: The numbering of the model.
    """
    prefix = f"{path}."
    stacks = {stack.name: _below(prefix, stack) for stack in numbering.stacks}
    main = numbering.main
    return replace(
        numbering,
        paths=tuple(f"{prefix}{block}" for block in numbering.paths),
        main=None if main is None else _below(prefix, main),
        stacks=tuple(stacks.values()),
    )


def _below(prefix: str, stack: Stack) -> Stack:
    places = [replace(place, path=f"{prefix}{place.path}") for place in stack.places]
    return replace(stack, places=tuple(places))


def numbered_blocks(model: nn.Module, config: object) -> Numbering:
    """Return the blocks of a Hugging Face model: its only list as long as in its configuration.

    Args:
        model: The model.
        config: Its configuration.
    """
    stacks, depth = stack_lengths(model), getattr(config, "num_hidden_layers", None)
    name = type(model).__name__
    lists = _lists_of(model, depth) if isinstance(depth, int) else []
    listed = ", ".join(f"{path!r} with {length}" for path, length in stacks.items()) or "none"
    if getattr(config, "is_encoder_decoder", False) and len(stacks) > 1:
        rule = "numbers could mean its encoder or its decoder"
    elif depth is None:
        rule = "its configuration has no 'num_hidden_layers'"
    elif len(lists) != 1:
        rule = f"one list of {depth} modules is expected; got {lists}"
    else:
        unnumbered = [path for path in stacks if path != lists[0]]
        note = f"numbered taps are the {depth} blocks of {lists[0]!r}, not those of "
        return Numbering(
            paths=tuple(f"{lists[0]}.{number}" for number in range(depth or 0)),
            notes=(f"{note}{', '.join(map(repr, unnumbered))}",) if unnumbered else (),
        )
    return Numbering(
        reason=f"'blocks' must be given for {name}: {rule}; lists of blocks: {listed}; "
        f"curricle.tapped(model, blocks=[...]) names those that count, or taps are module paths"
    )


def traced_numbering(model: nn.Module, stacks: Sequence[Stack], numbering: Numbering) -> Numbering:
    """Return the numbering with the stacks that a pass has shown.

    Numbers refer to the stack of the whole model or, beside an encoder, to that of the decoder.
    A composite of several equal parts has no numbered taps, only named ones such as `vision:2`.

    Args:
        model: The model.
        stacks: Its stacks in a pass; the numbering stays as it is without any.
        numbering: The numbering according to the configuration.
    """
    named = {stack.name: stack for stack in stacks}
    main = named.get("") or named.get("decoder") or (stacks[0] if len(stacks) == 1 else None)
    if not stacks:
        return numbering
    if main is None:
        taps = " or ".join(repr(f"{stack.name}:1") for stack in stacks)
        return replace(
            numbering,
            paths=(),
            notes=(),
            stacks=tuple(stacks),
            reason=f"tap must name one of the stacks of blocks in {type(model).__name__}, as in "
            f"{taps}; curricle.tapped(model, blocks=[...]) gives numbers to other blocks",
        )
    unnumbered = [_range_words(stack) for stack in stacks if stack is not main]
    # Stacks that the pass has not run, such as the vision tower in one of text.
    traced_paths = [stack.list_path for stack in stacks]
    unnumbered += [
        repr(path) for path in stack_lengths(model) if not _is_traced(path, traced_paths)
    ]
    note = (
        f"numbered taps are the {main.depth} blocks of {main.list_path!r}, not those of "
        f"{', '.join(unnumbered)}"
    )
    main = replace(
        main,
        places=tuple(replace(place, tap=place.tap.rpartition(":")[2]) for place in main.places),
    )
    return Numbering(
        paths=main.paths, notes=(note,) if unnumbered else (), main=main, stacks=tuple(stacks)
    )


def _range_words(stack: Stack) -> str:
    return f"{stack.list_path!r}, whose taps are '{stack.name}:0' to '{stack.name}:{stack.depth}'"


def _is_traced(path: str, traced_paths: Sequence[str]) -> bool:
    """Return whether a list is one of a pass, or contains one or lies inside of one."""
    return any(
        f"{path}.".startswith(f"{traced}.") or f"{traced}.".startswith(f"{path}.")
        for traced in traced_paths
    )


def block_ends(student_depth: int, teacher_depth: int) -> tuple[int, ...]:
    """Return the number of the teacher's block that each block of a student ends with.

    Args:
        student_depth: Blocks of the student; at most those of the teacher.
        teacher_depth: Blocks of the teacher.
    """
    return tuple(
        -(-number * teacher_depth // student_depth) for number in range(1, student_depth + 1)
    )


def stack_lengths(model: nn.Module) -> dict[str, int]:
    """Return the number of blocks of each stack by module path, outermost lists only."""
    stacks: dict[str, int] = {}
    for path, module in model.named_modules():
        is_inside = any(path.startswith(f"{outer}.") for outer in stacks)
        if isinstance(module, nn.ModuleList) and not is_inside and _is_stack(module):
            stacks[path] = len(module)
    return stacks


def _is_stack(blocks: nn.ModuleList) -> bool:
    kinds = {type(block) for block in blocks}
    if len(kinds) != 1:
        return False
    return sum(map(_is_map, blocks[0].modules())) >= FEWEST_MAPS


def _is_map(module: nn.Module) -> bool:
    """Return whether a module is a linear map, also with transposed weights in transformers."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _lists_of(model: nn.Module, length: int) -> list[str]:
    """Return the paths of the outermost lists of a length; experts may be as many as blocks."""
    outer, lists = [*stack_lengths(model)], list[str]()
    for path, module in model.named_modules():
        is_inside = any(path.startswith(f"{list_path}.") for list_path in (*outer, *lists))
        if isinstance(module, nn.ModuleList) and len(module) == length and not is_inside:
            lists.append(path)
    return lists
