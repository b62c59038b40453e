"""Temporary changes of modules: modes, gradient flags, buffers and hooks.

Binding runs a student once, a stage freezes parameters, a teacher is in evaluation mode. Each of
these is a context; at its end, also by an exception, every submodule is restored.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from curricle.models.peft_adapters import base_of

CAPTURING = "_output_capturing_hooks_installed"
"""Attribute by which transformers notes that a model has hooks for its hidden states."""
Modes = Sequence[tuple[nn.Module, bool]]
"""Submodules, outer ones first, and whether each is in training mode."""


def modes_of(module: nn.Module) -> Modes:
    """Return the training mode of every submodule."""
    return [(submodule, submodule.training) for submodule in module.modules()]


def set_modes(modes: Modes) -> None:
    """Restore the modes of submodules from `modes_of`."""
    for submodule, mode in modes:
        # Some modules do more than set a flag, as those that merge an adapter for evaluation.
        if submodule.training is not mode:
            submodule.train(mode)
    # A submodule of two modules follows the later one, and some ignore `train`.
    for submodule, mode in modes:
        submodule.training = mode


def train(module: nn.Module) -> Modes:
    """Put a module into training mode and return the modes of its submodules.

    In a module in evaluation mode, as after loading, all submodules change. In a module in training
    mode, submodules in evaluation mode are intended by the user and stay.

    Returns:
        The modes.
    """
    # The wrapper of PEFT is new, and in training mode by itself.
    if not module.training or not base_of(module).training:
        module.train()
    return modes_of(module)


def mode_notes(module: nn.Module) -> Iterator[str]:
    """Yield a note about submodules that stay in evaluation mode while the module is trained."""
    with modes_kept(module):
        train(module)
        frozen = [path for path, submodule in module.named_modules() if not submodule.training]
    if frozen:
        yield (
            f"{len(frozen)} submodules of the student stay in evaluation mode, as they were "
            f"({frozen[0]!r} is the first); student.train() before the call trains all"
        )


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Restore the training mode of every submodule at the end of the block.

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
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode without gradients; restores the modes at its end.

    Yields:
        Nothing.
    """
    with modes_kept(module), torch.no_grad():
        module.eval()
        yield


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Restore all buffers, such as running statistics, at the end of the block.

    Yields:
        Nothing.
    """
    with _values_kept(module.buffers()):
        yield


@contextmanager
def weights_kept(module: nn.Module) -> Iterator[None]:
    """Restore all parameters and buffers at the end of the block.

    Yields:
        Nothing.
    """
    with _values_kept([*module.parameters(), *module.buffers()]):
        yield


@contextmanager
def _values_kept(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                # A pass before the block may have saved the tensor for its gradients.
                if not _is_equal(tensor, value):
                    tensor.copy_(value)


def _is_equal(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether two tensors are known to be equal; torch cannot compare all kinds."""
    try:
        return torch.equal(tensor, value)
    except RuntimeError:
        return False


@contextmanager
def hooks_kept(module: nn.Module) -> Iterator[None]:
    """Remove at the end of the block the forward hooks that passes inside have registered.

    Models of transformers hook their blocks in the first pass that returns hidden states, and leave
    the hooks there, with which no block would be compiled.

    Yields:
        Nothing.
    """
    before = [
        (submodule, set(submodule._forward_hooks), CAPTURING in vars(submodule))  # noqa: SLF001
        for submodule in module.modules()
    ]
    try:
        yield
    finally:
        for submodule, numbers, is_capturing in before:
            for number in set(submodule._forward_hooks) - numbers:  # noqa: SLF001
                del submodule._forward_hooks[number]  # noqa: SLF001 - no handle of it is there
            # Otherwise a later pass with hidden states would return none.
            if not is_capturing:
                vars(submodule).pop(CAPTURING, None)


@contextmanager
def frozen_but(module: nn.Module, trained: Collection[str]) -> Iterator[None]:
    """Disable gradients of all parameters but the named ones; restores the flags at the end.

    Parameters without gradient before the block have none inside.

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
