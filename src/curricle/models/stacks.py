"""Lists of blocks in a model, and the choice of the numbered ones.

A stack is a module list of blocks of one class with linear maps: the layers of an encoder, a
decoder or a vision tower. Lists inside a block, such as experts, and lists of plain convolutions
are not stacks.
"""

from dataclasses import dataclass
from typing import final

from torch import nn

FEWEST_MAPS = 2
"""Minimum number of linear maps in a block; attention and feed-forward layers have more."""


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
