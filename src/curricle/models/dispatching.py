"""Weights of models that accelerate has spread over devices, read where they lie.

`from_pretrained(..., device_map=...)` puts the modules of a model on several GPUs, on the CPU and
on the disk. Hooks of accelerate move the inputs of each module beside its weights; weights on
the disk, or on the CPU beside a GPU, are meta tensors, which a hook fills for the length of a pass.
Such a model is run as it is and is never moved.

Design: accelerate is not imported here; its hooks are attributes of modules.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, nn

HOOK = "_hf_hook"
"""Attribute of a module that has a hook of accelerate."""


def is_dispatched(module: nn.Module) -> bool:
    """Return whether hooks of accelerate run a model."""
    return any(HOOK in vars(submodule) for submodule in module.modules())


def offloaded_weights(module: nn.Module) -> Mapping[str, Callable[[], Tensor]]:
    """Return a reader for each weight that lies outside of the model between passes.

    Args:
        module: A model.

    Returns:
        Readers by the names of the weights; each reads one weight in the precision of the model.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    for path, submodule in module.named_modules():
        for hook in _hooks(submodule):
            stored = getattr(hook, "weights_map", None)
            if stored is None:
                continue
            recurse = bool(getattr(hook, "place_submodules", False))
            tensors = chain(
                submodule.named_parameters(recurse=recurse, remove_duplicate=False),
                submodule.named_buffers(recurse=recurse, remove_duplicate=False),
            )
            for name, tensor in tensors:
                if tensor.is_meta:
                    full_name = f"{path}.{name}" if path else name
                    readers.setdefault(full_name, _Reader(stored, name, tensor.dtype))
    return readers


def resident_weight(module: nn.Module) -> Tensor:
    """Return a weight that lies where inputs of a model are expected.

    Args:
        module: A model; of one without any weight in memory, a tensor on the CPU is returned.
    """
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if not tensor.is_meta), torch.empty(0))


@final
class _Reader:
    """A weight that is read when it is called."""

    # Maps of accelerate look up more than the names that they list, so that their type is open.
    def __init__(self, stored: Any, name: str, dtype: torch.dtype) -> None:  # noqa: ANN401
        self._stored, self._name, self._dtype = stored, name, dtype

    def __call__(self) -> Tensor:
        # As a hook does at each pass: files may be in another precision than the model.
        weight: Tensor = self._stored[self._name]
        return weight.to(self._dtype)


def _hooks(module: nn.Module) -> Iterator[object]:
    """Yield the hooks of a module, those of a sequence one by one."""
    hook = vars(module).get(HOOK)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
