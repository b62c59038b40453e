"""Reference pages of run specs and of records, made from the source.

`python -m curricle.runs.reference spec` prints docs/spec.md: every field of every value that
a spec can hold, with its type, default and meaning, and every strategy with its arguments;
`records` prints docs/records.md, the fields of `records.jsonl`. `make docs` writes both pages, and
a test compares them with the code.

Design: everything is read from where it is declared: fields and the strings under them from the
values, arguments from the strategies' signatures and docstrings. Here stands only the order.
"""

import inspect
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from curricle.curriculum.durations import Duration, Rule, UnlessExplained, duration
from curricle.curriculum.initialization import WarmStart
from curricle.curriculum.stages import PricedLabels, Stage
from curricle.curriculum.strategies import STRATEGIES
from curricle.data.text.windows import Masking
from curricle.objectives.catalog import Shipped
from curricle.objectives.divergences import Divergence
from curricle.objectives.hidden import LayerPair
from curricle.objectives.projections import Projection
from curricle.objectives.vocabulary_groups import Comparison
from curricle.records import Record, StagePlan, Usage
from curricle.runs.budget import Budget, budget
from curricle.runs.spec import (
    Goal,
    Model,
    RunSpec,
    StrategySpec,
    TargetsSpec,
    TeacherSpec,
    from_folder,
)
from curricle.tasks import Task
from curricle.teachers.store.codecs import Codec
from curricle.training.setup.divergence import OnDivergence
from curricle.training.setup.optimizers import Optimizer, Schedule
from curricle.training.setup.settings import TrainingSettings
from curricle.training.targets.capture import TargetCompression
from curricle.values import Plain, plain

INTRODUCTION = """\
# Run specs

Every field that a spec can hold. This page is made of the source by `make docs`; specs to start
from are in [recipes](../recipes/).

A field without a default must be given; `null` is None. What has a `kind` is chosen by it, as in
`optimizer: {kind: sgd, learning_rate: 0.3}`. `curriculum` is one of the [curricula](#curricula)
with its arguments; how long it lasts is the `budget`. A length is written as `1500 steps`, `2.5M
examples`, `64k tokens` or, for data of a known length, `3 epochs`; a budget also as `40T flops` or
`60 seconds`. The `duration` of a stage may also be a [rule](#rules-that-end-a-stage), as in
`{kind: plateau, at_most: 5k steps}`. On the command line a field is set by its path:
`--set optimizer.learning_rate=0.1`.
"""
KIND = "kind"
SECTIONS: Mapping[str, object] = types.MappingProxyType(
    {
        "Run": RunSpec,
        "Length": Duration,
        "Rules that end a stage": Annotated[Rule | UnlessExplained, KIND],
        "Budget": Budget,
        "Goal": Goal,
        "Tasks": Task,
        "Masking": Masking,
        "Teacher": TeacherSpec,
        "Models": Model,
        "Strategy": StrategySpec,
        "Curricula": STRATEGIES,
        "Layer pair": LayerPair,
        "Stage": Stage,
        "Labels by price": PricedLabels,
        "Stored targets": TargetsSpec,
        "Target compression": TargetCompression,
        "Codecs": Codec,
        "Starts": WarmStart,
        "Objectives": Shipped,
        "Divergences": Divergence,
        "Comparisons of vocabularies": Comparison,
        "Projections": Projection,
        "Optimizers": Optimizer,
        "Schedule": Schedule,
        "Engine": TrainingSettings,
        "Reactions to divergence": OnDivergence,
    }
)
"""Headings of the page, with the value or the union of values that each is about."""
RECORDS_INTRODUCTION = """\
# Records

A run with an `output_dir` appends to `records.jsonl` in its folder, one JSON object a line; the
same values go to `observers`. This page is made of the source by `make docs`.

The first record of a run is `run`. Each stage begins with `stage`, followed by `step` every
`log_every` steps and `evaluation` every `eval_every` steps. A stage whose duration is a rule
closes with `stage_end`; one of a fixed length ends as planned, or earlier with the whole run if
that has reached its goal. `end` closes a complete run and holds the last evaluation.

In the file each line ends with a `check`, a hash of the line and all lines before it, which finds
damage and mixed-up files (it is no protection against forgery). Reports, tables and figures are
made from these records and nothing else:

```python
import json

with open("runs/mine/records.jsonl") as lines:
    records = [json.loads(line) for line in lines]
curve = [
    (record["usage"]["examples"], record["metrics"]["accuracy"])
    for record in records
    if record["kind"] in ("evaluation", "end")
]
```
"""
RECORDS_SECTIONS: Mapping[str, object] = types.MappingProxyType(
    {"Kinds of records": Record, "Usage": Usage, "Stage plan": StagePlan}
)
"""Headings of the page about records."""
WRITTEN: Mapping[object, str] = types.MappingProxyType(
    {
        duration: "[length](#length)",
        budget: "[budget](#budget)",
        from_folder: "[stored targets](#stored-targets), or their folder",
    }
)
"""Values that are written as one text, by the function that reads it."""
WORDS: Mapping[object, str] = types.MappingProxyType(
    {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "`true`, `false`",
        object: "list: whole number",
        Plain: "fields",
    }
)
SIGNS = types.MappingProxyType(
    {
        "Gt": " > {0.gt}",
        "Ge": " ≥ {0.ge}",
        "Lt": ", < {0.lt}",
        "Le": ", ≤ {0.le:.3g}",
        "MinLen": ", not empty",
    }
)
"""How the ranges of pydantic's fields are written, by the names of their classes."""
END = "\n..."
"""How YAML ends a single text or number."""
TOTAL, TRAJECTORY = "total", "trajectory"
"""Parameters without a field: the heading is the kind; a curriculum's total is the budget, and its
trajectory the teacher's checkpoints by default."""


def spec_reference() -> str:
    """Return the page about run specs in Markdown."""
    return "\n".join([INTRODUCTION, *_sections(SECTIONS)])


def records_reference() -> str:
    """Return the page about records in Markdown."""
    return "\n".join([RECORDS_INTRODUCTION, *_sections(RECORDS_SECTIONS)])


PAGES: Mapping[str, Callable[[], str]] = types.MappingProxyType(
    {"spec": spec_reference, "records": records_reference}
)
"""Function for each page, by the name of its file in docs without the suffix."""


def _sections(sections: Mapping[str, object]) -> Iterator[str]:
    for title, about in sections.items():
        yield f"## {title}\n"
        if isinstance(about, Mapping):
            for name, strategy in about.items():
                yield _section(f"### `{name}`\n", strategy, _arguments(strategy))
        elif isinstance(about, type):
            yield _section("", about, _fields(about))
        else:
            for member in _members(about):
                yield _section(f"### {_heading(member)}\n", member, _fields(member))


def _section(heading: str, about: object, rows: list[tuple[str, ...]]) -> str:
    """Return heading, first sentence and table of a value or a strategy."""
    text = (inspect.getdoc(about) or "").partition("\n\n")[0].removeprefix("Return ")
    text = text[:1].upper() + text[1:]
    table = [("field", "type", "default", "meaning"), ("---",) * 4, *rows] if rows else []
    lines = [f"| {' | '.join(map(_cell, row))} |\n" for row in table]
    return "\n".join(filter(None, [heading, f"{_line(text)}\n", "".join(lines)]))


def _fields(kind: object) -> list[tuple[str, ...]]:
    """Return a row for each field of a value class."""
    fields: Mapping[str, FieldInfo] = getattr(kind, "__pydantic_fields__", {})
    return [
        (
            f"`{name}`",
            _words(info.annotation, info.metadata),
            _default(... if info.is_required() else info.get_default(call_default_factory=True)),
            info.description or "",
        )
        for name, info in fields.items()
        # A kind of several is a choice, and not the heading alone.
        if name != KIND or len(get_args(info.annotation)) > 1
    ]


def _arguments(strategy: Callable[..., object]) -> list[tuple[str, ...]]:
    """Return a row for each argument of a strategy that a spec may give."""
    hints = get_type_hints(strategy, include_extras=True)
    descriptions = _argument_docs(strategy)
    return [
        (
            f"`{name}`",
            _words(hints[name], []),
            "the teacher's" if name == TRAJECTORY else _default(_given(parameter.default)),
            descriptions[name],
        )
        for name, parameter in inspect.signature(strategy).parameters.items()
        if name != TOTAL
    ]


def _given(default: object) -> object:
    return ... if default is inspect.Parameter.empty else default


def _argument_docs(function: Callable[..., object]) -> dict[str, str]:
    """Return the description of each argument in a docstring."""
    descriptions: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(function) or "").partition("Args:\n")[2].splitlines():
        if not line.startswith("    "):
            break
        begins = line[4] != " "
        name = line.partition(":")[0].strip() if begins else name
        descriptions[name] = (
            line.partition(": ")[2] if begins else f"{descriptions[name]} {line.strip()}"
        )
    return descriptions


def _words(kind: object, metadata: list[object]) -> str:
    """Return a type in words, with the range that its metadata allow."""
    if get_origin(kind) is Annotated:
        kind, *annotations = get_args(kind)
        return _words(kind, [*annotations, *metadata])
    flat = [constraint for item in metadata for constraint in getattr(item, "metadata", [item])]
    readers = [constraint.func for constraint in flat if isinstance(constraint, BeforeValidator)]
    written = next((WRITTEN[reader] for reader in readers if reader in WRITTEN), None)
    names = [type(constraint).__name__ for constraint in flat]
    limits = [
        SIGNS[name].format(constraint)
        for name, constraint in zip(names, flat, strict=True)
        if name in SIGNS
    ]
    return "".join([written or _plain_words(kind), *dict.fromkeys(limits)])


def _plain_words(kind: object) -> str:
    if kind in WORDS:
        return WORDS[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(choice, []) for choice in inner if choice is not types.NoneType)
    if origin is tuple:
        number = "" if inner[-1] is ... else f" of {len(inner)}"
        return f"list{number}: {_words(inner[0], [])}"
    if origin is dict:
        return f"{_words(inner[1], [])} by name"
    return f"[{_title(kind)}](#{re.sub('[^a-z0-9_-]', '', _anchor(kind))})"


def _anchor(kind: object) -> str:
    title = _heading(kind) if _kind(kind) else _title(kind)
    return title.lower().replace(" ", "-")


def _heading(kind: object) -> str:
    """Return the heading of a value: its kind, with its class if others are of the same kind."""
    name = _kind(kind)
    return f"`{name}`" if _kinds()[name] == 1 else f"`{name}` ({getattr(kind, '__name__', '')})"


@cache
def _kinds() -> Counter[str]:
    """Return how many values and strategies have each kind."""
    kinds = Counter[str]()
    for about in (*SECTIONS.values(), *RECORDS_SECTIONS.values()):
        if isinstance(about, Mapping):
            kinds.update(list(about))
        elif not isinstance(about, type):
            kinds.update(map(_kind, _members(about)))
    return kinds


def _title(kind: object) -> str:
    """Return the name of a value in links: its kind, or its own heading."""
    headings = {**SECTIONS, **RECORDS_SECTIONS}
    return _kind(kind) or next(title.lower() for title, about in headings.items() if about is kind)


def _kind(kind: object) -> str:
    info = getattr(kind, "__pydantic_fields__", {}).get(KIND)
    return "" if info is None else str(info.default)


def _members(union: object) -> tuple[object, ...]:
    """Return the values of a union discriminated by `kind`."""
    return get_args(get_args(union)[0])


def _default(default: object) -> str:
    """Return a default as a spec would write it; nothing for one that is required."""
    if default is ...:
        return ""
    text = yaml.safe_dump(_short(default), default_flow_style=True, sort_keys=False, width=999)
    return f"`{text.partition(END)[0].strip()}`"


def _short(default: object) -> object:
    """Return plain data with the kind of a value and its differences from the defaults."""
    fields: Mapping[str, FieldInfo] = getattr(type(default), "__pydantic_fields__", {})
    if not fields:
        return list(default) if isinstance(default, tuple) else default
    data: Plain = plain(default)
    return {
        name: data[name]
        for name, info in fields.items()
        if name == KIND or getattr(default, name) != info.default
    }


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.stdout.write(PAGES[sys.argv[1]]())
