"""The module inside a wrapper of torch.

Hooks belong to the module itself: a compiled graph cannot be stopped at a tap, and the replicas of
`DataParallel` write their states over each other's. Weights are shared with the wrapper, which
therefore holds the trained weights.
"""

from torch import nn


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module inside wrappers, and a note about each that was taken off.

    Args:
        model: Any module.
    """
    notes: list[str] = []
    while (inner := _inner(model)) is not None:
        wrapper = type(model).__name__
        model = inner
        notes.append(
            f"the wrapper {wrapper} of {type(model).__name__} was taken off: taps are read from "
            f"the module itself, which runs uncompiled and without replicas"
        )
    return model, tuple(notes)


def _inner(model: nn.Module) -> nn.Module | None:
    """Return the module in the wrapper of `torch.compile` or `DataParallel`; None without one."""
    if isinstance(model, nn.DataParallel):
        inner: nn.Module = model.module
        return inner
    # The class of `torch.compile` is private; it forwards attributes, but not its children.
    return dict(model.named_children()).get("_orig_mod")
