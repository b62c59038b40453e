"""Temporary changes of a module, undone on exit.

Binding runs a student once to inspect it, a stage freezes all weights that it does not train, a
teacher runs in evaluation mode. Each of these is a context manager; on exit, also by an exception,
the previous state is restored, submodule by submodule.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from curricle.models.tuners import base_of

Modes = Sequence[tuple[nn.Module, bool]]
"""Submodules, outer ones first, and whether each is in training mode."""


def modes_of(module: nn.Module) -> Modes:
    """Return the training mode of every submodule."""
    return [(submodule, submodule.training) for submodule in module.modules()]


def set_modes(modes: Modes) -> None:
    """Put submodules into the modes that `modes_of` has returned."""
    for submodule, mode in modes:
        # Some modules do more than set a flag, as those that merge an adapter for evaluation.
        if submodule.training is not mode:
            submodule.train(mode)
    # A part of two modules follows the later one, and some refuse a mode.
    for submodule, mode in modes:
        submodule.training = mode


def train(module: nn.Module) -> Modes:
    """Return the modes of a module's submodules after putting it into that in which it trains.

    A module in evaluation mode, as loaded models are, is switched on as a whole. Of one in training
    mode the submodules that are in evaluation mode stay there: their owner has frozen them.
    """
    # The wrapper of PEFT is new, and in training mode by itself.
    if not module.training or not base_of(module).training:
        module.train()
    return modes_of(module)


def mode_notes(module: nn.Module) -> Iterator[str]:
    """Yield a note about submodules that stay in evaluation mode while the module is trained."""
    with modes_kept(module):
        train(module)
        names = {id(submodule): path for path, submodule in module.named_modules()}
        frozen = [names[id(submodule)] for submodule in module.modules() if not submodule.training]
    if frozen:
        yield (
            f"{len(frozen)} submodules of the student stay in evaluation mode, as they were "
            f"({frozen[0]!r} is the first); student.train() before the call trains all"
        )


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put the training mode of every submodule back at the end of the block.

    Yields:
        Nothing.
    """
    # `module.train(before)` would set all submodules alike, also those frozen in evaluation mode.
    before = modes_of(module)
    try:
        yield
    finally:
        set_modes(before)


@contextmanager
def looked_at(module: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation mode without gradients; its modes come back after.

    Yields:
        Nothing.
    """
    with modes_kept(module), torch.no_grad():
        module.eval()
        yield


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put all buffers, such as running statistics, back at the end of the block.

    Yields:
        Nothing.
    """
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                # A pass before the block may have saved the buffer for its gradients.
                if not _is_equal(buffer, value):
                    buffer.copy_(value)


def _is_equal(buffer: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether two tensors are known to be equal; torch cannot compare all kinds."""
    try:
        return torch.equal(buffer, value)
    except RuntimeError:
        return False


@contextmanager
def frozen_but(module: nn.Module, trained: Collection[str]) -> Iterator[None]:
    """Take gradients from all parameters but the named ones; the flags come back after.

    A parameter that needed no gradient before needs none inside the block either.

    Yields:
        Nothing.
    """
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in trained)
    try:
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
