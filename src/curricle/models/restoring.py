"""How is a module changed for a while and given back as it was?

Binding runs a student once to look at it, a stage freezes what it does not train, a teacher is
held in evaluation mode. Each of these is a block; when it ends, also by an exception, everything is
what it was before, submodule by submodule.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put the training mode of every submodule back at the end of the block.

    Yields:
        Nothing.
    """
    # `module.train(before)` would set all submodules alike, also those frozen in evaluation mode.
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


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
                buffer.copy_(value)


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
