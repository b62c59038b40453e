"""Former names of arguments, spec fields and public names, for error sentences.

An unknown name whose new name fits the same place gets one sentence that names it. Old names are
not accepted: two names of one thing would have to be explained everywhere. Names that other
libraries give to what has several names, or another place, here are answered by a remedy.

Design: one table serves all places. A row applies only where its new name is available, so that
`share` is answered in `extraction` and nowhere else.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from curricle.errors import BindError, SpecError, near_names

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")
Fields = TypeVar("Fields")

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "EngineSettings": "TrainingSettings",
        "FitLabels": "LabelLoss",
        "accumulation": "gradient_accumulation_steps",
        "checkpoint_every": "save_every",
        "classroom": "share_teacher",
        "clip_norm": "max_grad_norm",
        "codecs": "compression",
        "compiled_teacher": "compile",
        "draws": "num_samples",
        "evaluate_every": "eval_every",
        "last": "final_objective",
        "record_every": "log_every",
        "share": "layer_fraction",
        "spent": "usage",
        "start": "init",
        "TargetCodecs": "TargetCompression",
        "target": "goal",
        "trains": "trainable",
        "uniform": "evenly_spaced_pairs",
    }
)
"""New name by former name."""

_BOTH = "both models have one: teacher_temperature=4, student_temperature=4"
_SOFTENED = (
    "it belongs to the objective: {}=curricle.MatchLogits(teacher_temperature=4, "
    "student_temperature=4, scale='temperature_squared')"
)
_EPOCHS = (
    "the length belongs to the strategy, as curricle.one_shot(total='3 epochs'), and in a spec to "
    "'budget'"
)
_LENGTH = "the length is total='{}', with its unit"
REMEDIES: tuple[tuple[str, frozenset[str], str], ...] = (
    (
        "temperature",
        frozenset({"teacher_temperature", "scale"}),
        f"{_BOTH}, and for the loss of Hinton et al. (2015) scale='temperature_squared'",
    ),
    ("temperature", frozenset({"teacher_temperature"}), _BOTH),
    ("temperature", frozenset({"objective"}), _SOFTENED.format("objective")),
    ("temperature", frozenset({"final_objective"}), _SOFTENED.format("final_objective")),
    ("epochs", frozenset({"total"}), _LENGTH.format("3 epochs")),
    ("steps", frozenset({"total"}), _LENGTH.format("1500 steps")),
    ("epochs", frozenset({"eval_every"}), _EPOCHS),
    ("epochs", frozenset({"curriculum"}), _EPOCHS),
)
"""Names of other libraries, the names that are available where a row applies, and the remedy; the
first row that applies is taken."""


def name_hint(name: str, available: Iterable[str]) -> str:
    """Return the end of an error sentence about an unknown name: its new name, else near ones.

    Args:
        name: The unknown name.
        available: Names that exist in its place.
    """
    names = list(available)
    new = RENAMED.get(name)
    if new in names:
        return f"it is now named {new!r}"
    for known, needed, remedy in REMEDIES:
        if known == name and needed <= set(names):
            return remedy
    return near_names(name, names)


def known_arguments(
    function: Callable[Arguments, Returned],
    hint: Callable[[str, Iterable[str]], str] = name_hint,
    contents: Mapping[str, str] = MappingProxyType({}),
) -> Callable[Arguments, Returned]:
    """Return a function that refuses missing and unknown arguments with a sentence.

    Args:
        function: The function.
        hint: Returns the end of the sentence about an unknown name, from it and the known ones.
        contents: Content of an argument, by its name, for those that are missing.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        for name in kwargs:
            if name not in signature.parameters:
                end = hint(name, signature.parameters)
                raise BindError(f"{name!r} is not an argument of {function.__name__!r}; {end}")
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            rule = (
                _arity(signature, len(args), kwargs, contents)
                or f"takes its arguments once: {error}"
            )
            name = function.__name__
            raise BindError(f"{name!r} {rule}; help(curricle.{name}) lists its arguments") from None
        return function(*args, **kwargs)

    return call


def _arity(
    signature: inspect.Signature,
    positions: int,
    names: Iterable[str],
    contents: Mapping[str, str],
) -> str:
    """Return the rule that a call breaks by too many or too few arguments; empty for neither."""
    parameters = signature.parameters.values()
    by_position = [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
    if positions > len(by_position):
        listing = ", ".join(map(repr, by_position)) or "none"
        return (
            f"takes these arguments by position, and all others by name: {listing}; got {positions}"
        )
    passed = {*by_position[:positions], *names}
    for item in parameters:
        if item.name not in passed and item.default is item.empty:
            content = f", {contents[item.name]}" if item.name in contents else ""
            return f"must be called with {item.name!r}{content}"
    return ""


def known_fields(cls: type[Fields]) -> type[Fields]:
    """Return a data class that refuses missing, unknown and unnamed fields with a sentence.

    Args:
        cls: The class, whose fields are taken by name.
    """
    plain_init = cls.__init__
    parameters = {
        name: item for name, item in inspect.signature(cls).parameters.items() if name != "self"
    }
    required = tuple(name for name, item in parameters.items() if item.default is item.empty)

    @functools.wraps(plain_init)
    def checked_init(self: object, *args: object, **fields: object) -> None:
        try:
            plain_init(self, *args, **fields)
        except TypeError:
            # Only now, since batches are made in every step.
            if args:
                example = ", ".join(f"{name}=..." for name in list(parameters)[: len(args)])
                raise SpecError(
                    f"{cls.__name__!r} takes its fields by name, as {cls.__name__}({example}); got "
                    f"{type(args[0]).__name__!r} without a name"
                ) from None
            for name in fields:
                if name not in parameters:
                    hint = name_hint(name, parameters)
                    raise SpecError(f"{cls.__name__!r}: {name!r} is not a field; {hint}") from None
            for name in required:
                if name not in fields:
                    raise SpecError(f"{f'{cls.__name__}.{name}'!r} must be given") from None
            raise

    cls.__init__ = checked_init  # type: ignore[method-assign]
    return cls
