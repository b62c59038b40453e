"""States and logits in the output of a module.

Modules return tensors, tuples, mappings and dataclasses. Logits are a tensor that is returned
alone, one under the name `logits`, or the only tensor that can be scores. Of several candidates
none is chosen: which one an objective means cannot be known.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from curricle.errors import BindError

STATE_NAMES = ("hidden", "state", "embed", "pool", "feature")
"""Parts of the names of tensors that are no scores of classes."""
STATES_OF_BLOCKS = ("last_hidden_state", "hidden_states")
"""Names of the state among several named outputs of a module of transformers."""
LEAST_AXES = 2
"""Axes of scores: examples and classes at least, which excludes losses and other statistics."""


def logits_in(output: object, model: str = "the model") -> Tensor:
    """Return the logits in the output of a model.

    Args:
        output: Return value of `forward`.
        model: Name of the model, for the error sentence.

    Raises:
        BindError: If no tensor is named `logits` and none, or several, could be; if boxes are
            predicted besides.
    """
    if isinstance(output, Tensor):
        return output
    items = _items(output)
    if items is None:
        raise BindError(f"tap 'logits' must give a tensor; got {type(output).__name__}")
    logits = items.get("logits")
    boxes = [name for name in items if "box" in name]
    scores = _candidates(items)
    if isinstance(logits, Tensor) and not boxes:
        return logits
    if logits is None and len(scores) == 1:
        name, tensor = next(iter(scores.items()))
        if not any(word in name for word in STATE_NAMES):
            return tensor
    raise BindError(
        f"'logits' must be what {model} returns alone or under that name; got {_listed(items)}; "
        f"let a module around it return the logits, or name the module that makes them by "
        f"curricle.tapped(model, head=...)"
    )


def logits_note(output: object) -> str:
    """Return which part of an output was taken for the logits; empty if it was the only one.

    Args:
        output: Return value of `forward`, accepted by `logits_in`.
    """
    if isinstance(output, Tensor):
        return ""
    items = _items(output) or {}
    if "logits" in items:
        unused = [
            name
            for name, item in items.items()
            if isinstance(item, Tensor) and item.is_floating_point() and item.ndim
            if not any(word in name for word in (*STATE_NAMES, "loss"))
            if name != "logits"
        ]
        return f"only 'logits' are taught, {_names(unused)} left out" if unused else ""
    candidates = [
        name for name in _candidates(items) if not any(word in name for word in STATE_NAMES)
    ]
    if not candidates:
        return ""
    return f"{candidates[0]!r} of the output is taken for the logits, since nothing has that name"


def first_tensor(output: object, name: str) -> Tensor:
    """Return the hidden state in an output: a tensor, the first of a tuple, the only named one.

    Args:
        output: Output or input of a module.
        name: Name of the tap, for the error sentence.

    Raises:
        BindError: If there is none, the first is none of floating-point numbers, or several have
            names.
    """
    if isinstance(output, Tensor):
        return output
    items = _items(output)
    tensors = {key: item for key, item in (items or {}).items() if isinstance(item, Tensor)}
    if not tensors:
        raise BindError(f"tap {name!r} must give a tensor; got {type(output).__name__}")
    if isinstance(output, (tuple, list)):
        key = next(iter(tensors))
        return _state(tensors, key if tensors[key].is_floating_point() else None, name)
    named = [key for key in STATES_OF_BLOCKS if key in tensors]
    candidates = [*named[:1]] or list(_scores(tensors))
    if not candidates:
        # Only statistics of one axis are left: the first is returned.
        candidates = [key for key, item in tensors.items() if item.is_floating_point()][:1]
    return _state(tensors, candidates[0] if len(candidates) == 1 else None, name)


def _state(tensors: Mapping[str, Tensor], key: str | None, name: str) -> Tensor:
    if key is None:
        raise BindError(
            f"tap {name!r} must give one state; got {_listed(tensors)}; name a module inside or "
            f"before it that returns the state alone"
        )
    return tensors[key]


def _items(output: object) -> dict[str, object] | None:
    """Return the items of an output by name; None for an output without items."""
    if isinstance(output, Mapping):
        return {str(name): item for name, item in output.items()}
    if isinstance(output, (tuple, list)):
        names: Any = getattr(output, "_fields", None)
        return dict(
            zip(names or (f"item {place}" for place in range(len(output))), output, strict=True)
        )
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    logits = getattr(output, "logits", None)
    return None if logits is None else {"logits": logits}


def _candidates(items: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the scores that may be those of classes; a single column, as of values, is none."""
    scores = _scores(items)
    several = {name: item for name, item in scores.items() if item.shape[-1] > 1}
    return several or scores


def _scores(items: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the parts that may be scores or states by their type and axes."""
    return {
        name: item
        for name, item in items.items()
        if isinstance(item, Tensor) and item.is_floating_point() and item.ndim >= LEAST_AXES
    }


def _listed(items: Mapping[str, object]) -> str:
    words = [
        f"{name} {tuple(item.shape)}"
        if isinstance(item, Tensor)
        else f"{name} ({type(item).__name__})"
        for name, item in items.items()
        if item is not None
    ]
    return ", ".join(words) or "nothing"


def _names(names: list[str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(map(repr, names))} {verb}"
