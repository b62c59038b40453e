"""States and logits in the outputs of modules.

Modules return tensors, tuples, mappings and dataclasses. Logits are a single tensor, a tensor named
`logits`, or the only tensor that can be scores. Models of sentence embeddings have these in their
place, by the name `sentence_embedding`. Start and end logits of question answering are two
rows of one tensor. Several other candidates are ambiguous, so none of them is used.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from curricle.errors import BindError

STATE_NAMES = ("hidden", "state", "embed", "pool", "feature")
"""Words in the names of tensors that are not scores of classes."""
STATES_OF_BLOCKS = ("last_hidden_state", "hidden_states")
"""Names of the state among several named outputs of a module of transformers."""
EMBEDDING = "sentence_embedding"
"""Name of the embeddings of whole texts, which are the output of their models."""
SPAN = ("start_logits", "end_logits")
"""Names of the scores of positions that begin and end an answer, in the order of their rows."""
LEAST_AXES = 2
"""Axes of scores: examples and classes at least, which excludes losses and other statistics."""


def logits_in(output: object, model: str = "the model") -> Tensor:
    """Return the logits in the output of a model.

    Args:
        output: Result of `forward`.
        model: Name of the model, for the error sentence.

    Raises:
        BindError: If no tensor is named `logits` and there are no, or several, candidates; if the
            model also predicts boxes.
    """
    if isinstance(output, Tensor):
        return output
    entries = _entries(output)
    if entries is None:
        raise BindError(f"tap 'logits' must give a tensor; got {type(output).__name__}")
    scores = _candidates(entries)
    if is_span(output):
        return torch.stack([scores[name] for name in SPAN], 1)
    name = _name_of_logits(output, entries)
    if name is not None:
        return scores[name] if name in scores else cast("Tensor", entries[name])
    raise BindError(
        f"'logits' must be the only output of {model} or have that name; got {_listed(entries)}; "
        f"wrap the model in a module that returns the logits, or name one of them by "
        f"curricle.tapped(model, output=...), or the module that computes them by head=..."
    )


def named_outputs(output: object, entry: str = "", default: str = "logits") -> dict[str, Tensor]:
    """Return the outputs of a model that a file of it has, by name.

    They are the declared entry, or the logits by the name of their entry, or start and end logits;
    of an output in which several tensors can be the logits, all of these.

    Args:
        output: Result of `forward`.
        entry: Declared name of the entry; empty for none.
        default: Name of an output that is a single tensor.

    Raises:
        BindError: If the output holds no such tensor.
    """
    if entry:
        return {_file_name(entry): entry_of(output, entry, f"output:{entry}")}
    if isinstance(output, Tensor):
        return {default: output}
    entries = _entries(output) or {}
    scores = _scores(entries)
    names = list(SPAN) if is_span(output) else [_name_of_logits(output, entries)]
    if names == [None]:
        names = list(scores)
    if not names:
        # The error sentence lists the entries.
        return {default: logits_in(output)}
    return {_file_name(name): cast("Tensor", entries[name]) for name in names if name is not None}


def _name_of_logits(output: object, entries: Mapping[str, object]) -> str | None:
    """Return the name of the entry with the logits; None if there are none, or candidates."""
    logits = entries.get("logits")
    if isinstance(logits, Tensor) and not any("box" in name for name in entries):
        return "logits"
    if is_embedding(output):
        return EMBEDDING
    scores = _candidates(entries)
    if logits is None and len(scores) == 1:
        name = next(iter(scores))
        if not any(word in name for word in STATE_NAMES):
            return name
    return None


def _file_name(entry: str) -> str:
    """Return the name of an entry in a file, where items of a tuple have no bare numbers."""
    name = entry.removeprefix("item ")
    return f"output_{name}" if name[:1].isdecimal() else name


def entry_of(output: object, name: str, tap: str) -> Tensor:
    """Return a named tensor of an output; one number an example as a column.

    Args:
        output: Output of a module.
        name: Name of the entry, number of an item, or several of them joined by dots.
        tap: Name of the tap, for the error sentence.

    Raises:
        BindError: If there is no such tensor with examples on its first axis.
    """
    entries = {} if isinstance(output, Tensor) else _entries(output) or {}
    # Items of tuples have numbers.
    numbered = {key.removeprefix("item "): entry for key, entry in entries.items()}
    entry = numbered.get(name)
    first, dot, rest = name.partition(".")
    if entry is None and dot and numbered.get(first) is not None:
        return entry_of(numbered[first], rest, tap)
    if not isinstance(entry, Tensor) or not entry.ndim:
        shown = _listed(numbered) if entries else type(output).__name__
        raise BindError(
            f"tap {tap!r} must name a tensor with examples in the output; got {name!r}; there are "
            f"{shown}"
        )
    return entry.unsqueeze(-1) if entry.ndim == 1 else entry


def logits_of_output(output: object, entry: str, model: str = "the model") -> Tensor:
    """Return the logits in the output of a model; one number an example as a column.

    Args:
        output: Result of `forward`.
        entry: Name of the output that is taken; empty for the only one, or that named `logits`.
        model: Name of the model, for the error sentence.
    """
    logits = entry_of(output, entry, f"output:{entry}") if entry else logits_in(output, model)
    return logits.unsqueeze(-1) if logits.ndim == 1 else logits


def is_span(output: object) -> bool:
    """Return whether an output scores positions as start and end of an answer.

    Args:
        output: Result of `forward`.
    """
    entries = None if isinstance(output, Tensor) else _entries(output)
    if entries is None or "logits" in entries:
        return False
    return all(isinstance(entries.get(name), Tensor) for name in SPAN)


def is_embedding(output: object) -> bool:
    """Return whether an output holds embeddings of sentences and no logits.

    Args:
        output: Result of `forward`.
    """
    entries = None if isinstance(output, Tensor) else _entries(output)
    if entries is None or "logits" in entries:
        return False
    return EMBEDDING in _scores(entries)


def logits_note(output: object) -> str:
    """Return a note about the choice of the logits in an output; empty if there was no choice.

    Args:
        output: Result of `forward` that `logits_in` accepts.
    """
    if isinstance(output, Tensor) or is_embedding(output):
        return ""
    entries = _entries(output) or {}
    if is_span(output):
        return "start and end logits are taught as two distributions over the positions"
    if "logits" in entries:
        return ""
    names = [name for name in _candidates(entries) if not any(word in name for word in STATE_NAMES)]
    if not names:
        return ""
    return f"{names[0]!r} of the output is taken for the logits, since nothing has that name"


def heads_beside_logits(output: object) -> tuple[str, ...]:
    """Return the names of further scores in an output with logits, as of a second head.

    Args:
        output: Result of `forward` that `logits_in` accepts.
    """
    entries = (None if isinstance(output, Tensor) else _entries(output)) or {}
    if "logits" not in entries:
        return ()
    return tuple(
        name
        for name, entry in entries.items()
        if isinstance(entry, Tensor) and entry.is_floating_point() and entry.ndim
        if not any(word in name for word in (*STATE_NAMES, "loss"))
        if name != "logits"
    )


def heads_note(heads: Sequence[str], outputs: Collection[str]) -> str:
    """Return a note about heads that nothing reads; empty if all are read.

    Args:
        heads: Names of the heads beside the logits.
        outputs: Names of the outputs that objectives read beside the logits.
    """
    unread = [name for name in heads if name not in outputs]
    if not unread:
        return ""
    taught = ["logits", *(name for name in heads if name in outputs)]
    return f"only {_joined(taught)} are taught, {_names(unread)} left out"


def first_tensor(output: object, name: str) -> Tensor:
    """Return the hidden state in an output: a tensor, the first of a tuple, the only named one.

    Args:
        output: Output or input of a module.
        name: Name of the tap, for the error sentence.

    Raises:
        BindError: If there is none, the first is not of floating-point numbers, or several have
            names.
    """
    if isinstance(output, Tensor):
        return output
    entries = _entries(output) or {}
    tensors = {key: entry for key, entry in entries.items() if isinstance(entry, Tensor)}
    if not tensors:
        raise BindError(f"tap {name!r} must give a tensor; got {type(output).__name__}")
    if isinstance(output, (tuple, list)):
        key = next(iter(tensors))
        return _state(tensors, key if tensors[key].is_floating_point() else None, name)
    named = [key for key in STATES_OF_BLOCKS if key in tensors]
    candidates = [*named[:1]] or list(_scores(tensors))
    if not candidates:
        # Outputs of statistics with one axis: the first is the state.
        candidates = [key for key, entry in tensors.items() if entry.is_floating_point()][:1]
    return _state(tensors, candidates[0] if len(candidates) == 1 else None, name)


def _state(tensors: Mapping[str, Tensor], key: str | None, name: str) -> Tensor:
    if key is None:
        raise BindError(
            f"tap {name!r} must give one state; got {_listed(tensors)}; name a module inside or "
            f"before it that returns the state alone"
        )
    return tensors[key]


def _entries(output: object) -> dict[str, object] | None:
    """Return the entries of an output by name; None for a single value."""
    if isinstance(output, Mapping):
        return {str(name): entry for name, entry in output.items()}
    if isinstance(output, (tuple, list)):
        numbered = tuple(f"item {place}" for place in range(len(output)))
        names: tuple[str, ...] = getattr(output, "_fields", numbered) or numbered
        return dict(zip(names, output, strict=True))
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    logits = getattr(output, "logits", None)
    return None if logits is None else {"logits": logits}


def _candidates(entries: Mapping[str, object]) -> dict[str, Tensor]:
    """Return possible scores of classes; single columns, as of values, only without others."""
    scores = _scores(entries)
    several = {name: entry for name, entry in scores.items() if entry.shape[-1] > 1}
    return several or scores


def _scores(entries: Mapping[str, object]) -> dict[str, Tensor]:
    """Return possible scores or states by their type and axes."""
    return {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, Tensor) and entry.is_floating_point() and entry.ndim >= LEAST_AXES
    }


def _listed(entries: Mapping[str, object]) -> str:
    words = [
        f"{name} {tuple(entry.shape)}"
        if isinstance(entry, Tensor)
        else f"{name} ({type(entry).__name__})"
        for name, entry in entries.items()
        if entry is not None
    ]
    return ", ".join(words) or "nothing"


def _names(names: Sequence[str]) -> str:
    return f"{_joined(names)} {'is' if len(names) == 1 else 'are'}"


def _joined(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
