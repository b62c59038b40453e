"""Where is the tensor in what a module has returned?

Modules return tensors, tuples, mappings and dataclasses. A state is the first tensor in them;
logits are what is called so, and otherwise the first tensor, too.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from curricle.errors import BindError


@runtime_checkable
class _HasLogits(Protocol):
    """An output object that names its logits."""

    logits: Tensor


@runtime_checkable
class _HasFields(Protocol):
    """A dataclass instance."""

    __dataclass_fields__: dict[str, object]


def logits_in(output: object) -> Tensor:
    """Return the logits in what a model has returned: named, or the first tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    elif isinstance(output, _HasLogits):
        output = output.logits
    return first_tensor(output, "logits")


def first_tensor(output: object, name: str) -> Tensor:
    """Return the hidden state in an output: a tensor, or the first one in a tuple or mapping.

    Raises:
        BindError: If there is none.
    """
    if isinstance(output, Tensor):
        return output
    items: Iterable[object] = ()
    if isinstance(output, Mapping):
        items = output.values()
    elif isinstance(output, (tuple, list)):
        items = output
    elif isinstance(output, _HasFields):
        items = [getattr(output, name) for name in output.__dataclass_fields__]
    for item in items:
        if isinstance(item, Tensor):
            return item
    raise BindError(f"tap {name!r} must give a tensor; got {type(output).__name__}")
