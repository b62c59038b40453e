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

from curricle.errors import BindError, near_names

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

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
_EPOCHS = "the length belongs to the strategy, as curricle.one_shot(total='3 epochs')"
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
) -> Callable[Arguments, Returned]:
    """Return a function that refuses missing and unknown arguments with a sentence.

    Args:
        function: The function.
        hint: Returns the end of the sentence about an unknown name, from it and the known ones.
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
            raise BindError(
                f"{function.__name__!r} must be called with all of its arguments: {error}; "
                f"help(curricle.{function.__name__}) lists them"
            ) from None
        return function(*args, **kwargs)

    return call
