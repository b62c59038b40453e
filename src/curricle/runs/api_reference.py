"""Reference page of the Python API, made from docstrings and signatures.

`python -m curricle.runs.api_reference` prints docs/api.md: every name of `curricle.__all__` with
its signature, the first sentence of its docstring, its attributes and those of a result that has no
public name of its own, in the order of the packages, and the names of the packages beside it. `make
docs` writes the page, and a test compares it with the code.

Design: types are left out of signatures, since docstrings and editors have them; defaults that are
values are shown with the fields that differ from those of their class. Members that only the
package calls are listed in `INTERNAL` and left out, as is the `kind` that specs have.
"""

import dataclasses
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import curricle
from curricle.metrics import Metric

INTRODUCTION = """\
# Python API

Every name of `curricle`, with its signature and the first sentence of its docstring; `help(name)`
prints arguments, results and errors. This page is made of the source by `make docs`. Fields of
values, with types and ranges, are also in [run specs](spec.md), and those of records in
[records](records.md).
"""
HEADINGS: Mapping[str, str] = types.MappingProxyType(
    {
        "training": "Training",
        "runs": "Runs",
        "curriculum": "Curricula",
        "objectives": "Objectives",
        "models": "Models",
        "teachers": "Teachers",
        "data": "Data",
        "": "Metrics and errors",
    }
)
"""Heading of the names of each package, in the order of the page; modules come last."""
PACKAGES = (
    "curricle.curriculum",
    "curricle.data",
    "curricle.data.text",
    "curricle.models",
    "curricle.objectives",
    "curricle.probes",
    "curricle.reports",
    "curricle.teachers",
    "curricle.training",
    "curricle.integrations.transformers",
    "curricle.integrations.sentence_transformers",
)
"""Packages with further names."""
_OPTIMIZER = frozenset({"build", "factors", "moments", "moved"})
INTERNAL: Mapping[str, frozenset[str]] = types.MappingProxyType(
    {
        "AdamW": _OPTIMIZER,
        "SGD": _OPTIMIZER,
        "Batch": frozenset(
            {
                "for_encoder",
                "host",
                "is_decoded",
                "key",
                "leading",
                "matched_selected",
                "moved",
                "num_read_tokens",
                "offset",
                "predicts_tokens",
                "readable",
                "repeats_inputs",
                "step",
            }
        ),
        "GroupedProbabilities": frozenset({"check"}),
        "LayerPair": frozenset({"reads", "teacher_tap"}),
        "LoaderStream": frozenset({"as_batch", "reads_ahead"}),
        "Manifest": frozenset(
            {
                "finished",
                "format",
                "has_all",
                "is_readable",
                "of",
                "sections",
                "shards",
                "target_set",
                "with_finished",
                "with_shard",
            }
        ),
        "MatchMargins": frozenset({"check_groups"}),
        "PrincipalStart": frozenset({"law", "map"}),
        "RandomStart": frozenset({"law", "map"}),
        "SelectionStart": frozenset({"law", "map"}),
        "StoredTeacher": frozenset(
            {"check", "check_precision", "placeholders", "serving", "teaching"}
        ),
        "TappedModel": frozenset({"open_taps", "place"}),
        "TrainingSettings": frozenset(
            {
                "autocast",
                "best_metric",
                "compiles_student",
                "compiles_teacher",
                "features",
                "intervals",
                "placement",
                "precision_of_teacher",
                "precisions",
                "stated_threads",
                "teacher_autocast",
                "teacher_inference",
            }
        ),
        "Trajectory": frozenset({"check_digest"}),
        "UntilMetric": frozenset({"is_reached"}),
    }
)
"""Members by class that only the package itself calls, left out of the page."""
OPTIONAL: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {"Stream": ("examples_per_epoch", "held_out")}
)
"""Members of a protocol that implementations may have."""
BASES = (object, BaseException, Exception)
"""Classes whose attributes are left out."""
WIDTH = 100
"""Columns of the page."""


def api_reference() -> str:
    """Return the page in Markdown."""
    return "\n".join([INTRODUCTION, *_groups(), *_packages()])


def public_names(package: str) -> list[str]:
    """Return the public names of a package in alphabetical order.

    Args:
        package: Its path.
    """
    return sorted(importlib.import_module(package).__all__, key=str.lower)


def _groups() -> Iterator[str]:
    objects = {name: getattr(curricle, name) for name in public_names("curricle")}
    for package, heading in HEADINGS.items():
        yield f"## {heading}\n"
        yield from (entry(name, of) for name, of in objects.items() if _package(of) == package)


def _package(of: object) -> str:
    """Return the package of an object in curricle; empty for a module beside the packages."""
    package = str(getattr(of, "__module__", "")).split(".")[1]
    return package if package in HEADINGS else ""


def entry(name: str, of: object) -> str:
    """Return heading, signature, sentence, attributes and result of a public object.

    Args:
        name: Its public name.
        of: The class or function.
    """
    lines = [f"### `{name}`\n", f"```python\n{signature(name, of)}\n```\n", first_sentence(of)]
    names = attributes(of)
    if names:
        lines.append(f"\nAttributes: {_listed(names)}.")
    if name in OPTIONAL:
        lines.append(f"\nOptional: {_listed(OPTIONAL[name])}.")
    result = unnamed_result(of)
    if result is not None:
        lines.append(f"\nResult: `{result.__name__}`, with {_listed(attributes(result))}.")
    return "\n".join(lines) + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def unnamed_result(of: object) -> type | None:
    """Return the class of a function's result that has no entry of its own; None without one.

    Args:
        of: A class or function, of which the former has none.
    """
    if not inspect.isfunction(of):
        return None
    result = inspect.signature(of).return_annotation
    if isinstance(result, str):
        # The name of a class that stands below the function.
        result = getattr(sys.modules[of.__module__], result, None)
    is_ours = isinstance(result, type) and result.__module__.startswith("curricle")
    return result if is_ours and result.__name__ not in public_names("curricle") else None


def signature(name: str, of: object) -> str:
    """Return the call of a class or function, in one line or with one argument a line.

    Args:
        name: Its public name.
        of: The class or function.
    """
    if getattr(of, "_is_protocol", False) or (
        isinstance(of, type) and issubclass(of, BaseException)
    ):
        return name
    call = inspect.signature(cast("Callable[..., object]", of))
    if isinstance(of, type):
        arguments = [argument for argument in call.parameters.values() if argument.name != "kind"]
        call = call.replace(parameters=arguments)
    marks = list(_arguments(call))
    line = f"{name}({', '.join(marks)})"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {mark}," for mark in marks), ")"])


def _arguments(of: inspect.Signature) -> Iterator[str]:
    """Yield the arguments of a call as written, with the star before those given by name."""
    is_named = False
    for parameter in of.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            is_named = True
            yield f"*{parameter.name}"
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            yield f"**{parameter.name}"
        else:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not is_named:
                is_named = True
                yield "*"
            has_default = parameter.default is not inspect.Parameter.empty
            yield parameter.name + (f"={written(parameter.default)}" if has_default else "")


def written(default: object) -> str:
    """Return a default as a call would write it.

    Args:
        default: The default of an argument.
    """
    if isinstance(default, type):
        return default.__name__
    if isinstance(default, Metric):
        # Arguments take the name of a built-in metric in its place.
        return repr(default.name)
    if not dataclasses.is_dataclass(default):
        # The place-holder of a default that is made by a function has an address in its text.
        return "..." if "<" in repr(default) else repr(default)
    changed = [
        f"{field.name}={written(getattr(default, field.name))}"
        for field in dataclasses.fields(default)
        if field.name != "kind" and getattr(default, field.name) != _default(default, field.name)
    ]
    return f"{type(default).__name__}({', '.join(changed)})"


def _default(of: object, name: str) -> object:
    parameter = inspect.signature(type(of)).parameters.get(name)
    return None if parameter is None else parameter.default


def first_sentence(of: object) -> str:
    """Return the first sentence of a docstring.

    Args:
        of: A class or function.
    """
    text = " ".join((inspect.getdoc(of) or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".") + "."


def attributes(of: object) -> list[str]:
    """Return the fields, properties and methods of a class that are meant for users.

    Args:
        of: A class or function, of which the latter has none.
    """
    if not isinstance(of, type):
        return []
    classes = [kind for kind in reversed(of.__mro__) if kind.__module__.startswith("curricle")]
    names = [
        name
        for kind in classes
        for name in (*getattr(kind, "__annotations__", {}), *vars(kind))
        if not name.startswith("_") and name != "kind" and kind not in BASES
    ]
    internal = INTERNAL.get(of.__name__, frozenset())
    return [name for name in dict.fromkeys(names) if name not in internal]


def _packages() -> Iterator[str]:
    yield "## Packages\n"
    yield "Names of packages, imported as `from curricle.objectives import MatchLogits`.\n"
    for path in PACKAGES:
        yield f"- `{path}`: {_listed(public_names(path))}"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(api_reference())
