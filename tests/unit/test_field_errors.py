"""Sentences for the errors of pydantic, over all types of errors and all fields of specs."""

import re
import warnings
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails
from pydantic_core._pydantic_core import list_all_errors

from curricle.curriculum.strategies import STRATEGIES
from curricle.errors import SpecError
from curricle.field_errors import NO_FLAG, RULES, sentence
from curricle.runs.reference import SECTIONS
from curricle.runs.spec import RunSpec
from curricle.values import override, parse

KNOWN: dict[str, Any] = {error["type"]: error for error in list_all_errors()}
CONTEXT: dict[str, dict[str, Any]] = {
    "bytes_invalid_encoding": {"encoding": "utf8", "encoding_error": "odd"},
    "value_error": {"error": ValueError("'a' must be b; got c")},
    "assertion_error": {"error": AssertionError("'a' must be b; got c")},
}
# Words of the machinery of pydantic, beside the beginnings of its messages.
MACHINERY = re.compile(
    r"Input should|Field required|Extra inputs|Unable to|unable to (parse|interpret)|not permitted"
    r"|Value error|Assertion failed|\b(discriminator|dataclass|dictionary|Tuple|tag|validation)\b"
    r"|fractional part|raw data|keyword.only|positional|instance of|valid (list|tuple|boolean)"
    r"|function-(before|after|plain|wrap)|\[key\]|pydantic|union_tag|https?://"
)
FORM = re.compile(r"""^(['"]).*?\1(: | must | is )""")


def words(sentence: str) -> str:
    """Return a sentence without quoted names and the actual value, which are the user's."""
    return re.sub(r"'[^']*'", "", sentence.partition("; got")[0])


@pytest.mark.parametrize("kind", KNOWN)
def test_no_type_of_error_passes_the_words_of_pydantic_on(kind: str) -> None:
    context: dict[str, Any] = CONTEXT.get(kind, KNOWN[kind].get("example_context")) or {}
    details = InitErrorDetails(type=kind, loc=("a", "b"), input="given", ctx=context)
    error = ValidationError.from_exception_data("Title", [details])
    text = sentence(error, {"a": {"b": "given"}})
    assert text.startswith("'a.b")
    assert error.errors()[0]["msg"] not in text
    assert not MACHINERY.search(words(text))


def test_every_rule_is_that_of_a_type_of_error() -> None:
    assert set(RULES) <= {*KNOWN, NO_FLAG}


def fields_of(kind: object, seen: set[object]) -> Iterator[tuple[str, object]]:
    """Yield the fields of all values within a type, with their types."""
    fields: Mapping[str, FieldInfo] = getattr(kind, "__pydantic_fields__", {})
    if fields and kind not in seen:
        seen.add(kind)
        for name, info in fields.items():
            yield f"{getattr(kind, '__name__', '')}.{name}", Annotated[info.annotation, info]
            yield from fields_of(info.annotation, seen)
    for part in get_args(kind):
        yield from fields_of(part, seen)


@cache
def all_fields() -> Mapping[str, object]:
    """Return the types of all fields of specs and of all arguments of strategies, by name."""
    fields: dict[str, object] = {}
    seen: set[object] = set()
    for about in (RunSpec, *SECTIONS.values()):
        for kind in about.values() if isinstance(about, Mapping) else [about]:
            fields |= dict(fields_of(kind, seen))
    for name, strategy in STRATEGIES.items():
        hints = get_type_hints(strategy, include_extras=True)
        fields |= {f"{name}.{argument}": hint for argument, hint in hints.items()}
    return fields


WRONG: list[object] = [
    *("text", "", "a\nb", "1 parsecs", "x" * 500, "5" * 5000),
    *(3, -1, 0, 2.5, 1e300, 10**400, float("nan"), float("inf"), None, True),
    *([], [1], [None], ["a", [[]]], [[[]]], [{}], [{"kind": "x"}]),
    *({}, {"kind": "nope"}, {"knd": 1}, {"kind": 3}, {"kind": None}, {"kind": [1]}, {1: 2}),
    *({"a": {"b": []}}, b"\xff", 3j, object),
]


def test_no_field_of_a_spec_passes_the_words_of_pydantic_on() -> None:
    fields = all_fields()
    assert len(fields) > 300
    types = set()
    for name, kind in fields.items():
        with warnings.catch_warnings():
            # A field's own settings, such as `exclude_if`, have no effect outside of its class.
            warnings.simplefilter("ignore")
            reader: TypeAdapter[object] = TypeAdapter(dict[str, kind])  # type: ignore[valid-type]
        for wrong in WRONG:
            try:
                reader.validate_python({"field": wrong})
            except ValidationError as error:
                types.add(error.errors()[0]["type"])
                text = sentence(error, {"field": wrong})
                assert text.startswith("'field"), (name, wrong, text)
                assert not MACHINERY.search(words(text)), (name, wrong, text)
    # Those that are left out here have rows in the table, and are tested above.
    assert len(types) > 20


SPEC: dict[str, Any] = {
    "output_dir": "run",
    "task": {"kind": "parity", "num_inputs": 8, "degree": 2, "batch_size": 16},
    "teacher": {"model": {"kind": "mlp", "widths": [16]}, "total": "20 steps", "optimizer": None},
    "student": {"kind": "mlp", "widths": [8]},
    "curriculum": {"kind": "extraction", "pairs": [{"student": 1, "teacher": 1}]},
    "strategies": {"a": {"curriculum": {"kind": "one_shot"}}},
    "seeds": [0, 1],
    "data_seed": 0,
    "budget": "20 steps",
    "goal": {"metric": "accuracy", "number": 0.9},
    "optimizer": {"kind": "sgd", "learning_rate": 0.1, "schedule": {"warmup": 0.1}},
    "engine": {"device": "cpu", "on_divergence": {"kind": "skip"}},
}


def places(data: object, path: str = "") -> Iterator[str]:
    """Yield the paths of everything in plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data)  # type: ignore[arg-type]
    for name, item in items:
        here = f"{path}{name}"
        yield here
        if isinstance(item, (dict, list)):
            yield from places(item, f"{here}.")


def test_the_spec_of_these_tests_is_right() -> None:
    assert parse(RunSpec, SPEC).seeds == (0, 1)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(["kind", "knid", "a", "total", "seed"]) | st.text(max_size=4)
PLAIN = st.recursive(
    SCALARS, lambda items: st.lists(items, max_size=3) | st.dictionaries(NAMES, items, max_size=3)
)


def replaced(path: str, new: object) -> dict[str, Any]:
    """Return the spec with something else at a path."""
    data = override(SPEC, [])
    *parents, name = path.split(".")
    here: Any = data
    for parent in parents:
        here = here[int(parent)] if isinstance(here, list) else here[parent]
    here[int(name) if isinstance(here, list) else name] = new
    return data


@settings(max_examples=200)
@given(st.sampled_from([*places(SPEC)]), PLAIN)
def test_whatever_stands_in_a_spec_the_sentence_begins_with_its_field(
    path: str, new: object
) -> None:
    try:
        parse(RunSpec, replaced(path, new))
    except SpecError as error:
        text = str(error)
    else:
        return
    assert FORM.match(text)
    assert not MACHINERY.search(words(text))


@pytest.mark.parametrize(
    ("path", "new", "expected"),
    [
        ("task.num_inputs", "many", r"^'task\.num_inputs' must be an integer; got '"),
        (
            "task.num_inputs",
            2.5,
            r"^'task\.num_inputs' must be an integer; got 2\.5$",
        ),
        ("task.num_inputs", "5" * 5000, r"must be an integer of fewer digits; got '5{76}\.\.\.$"),
        (
            "task.num_inputs",
            True,
            r"^'task\.num_inputs' .* a number, not true or false; got True$",
        ),
        ("optimizer.learning_rate", 1e39, r"be less than or equal to 34028\d+; got 1e\+39$"),
        ("seeds", [], r"^'seeds' must have at least 1 item and has 0; got \[\]$"),
        (
            "engine.device",
            "cdua",
            r"be 'auto', 'cpu' or 'cuda'; got 'cdua'; did you mean 'cuda' or 'cp",
        ),
        ("engine.keep_best", "", "be true or false or a string of at least 1 character; got ''$"),
        ("engine.keep_best", "a\nb", r"false or one line of printable characters; got 'a\\nb'$"),
        (
            "strategies.a/b",
            {"curriculum": {"kind": "one_shot"}},
            r"be made of letters, digits, '_', '\+', '-' and, after the .*, '\.'; got 'a/b'$",
        ),
        (
            "student",
            {"kind": "mlp", 3: 1},
            "^'student': '3' is not a field; available: 'kind', 'widths', 'axes'$",
        ),
        ("strategies", {":": None}, r"^'strategies\.:' .* the first character, '\.'; got ':'$"),
        ("report_to", [["wandb"]], r"must name trackers; got \['wandb'\]; did you mean 'wandb'\?"),
    ],
)
def test_a_wrong_field_has_one_sentence_in_the_words_of_a_file(
    path: str, new: object, expected: str
) -> None:
    with pytest.raises(SpecError, match=expected):
        parse(RunSpec, replaced(path, new))


class Foreign(BaseModel):
    """A class of fields that is not ours."""

    name: Annotated[str, Field(pattern="^[a-c]+$")]
    size: Annotated[int, Field(multiple_of=4)] = 4
    mode: Literal["row", "column"] = "row"
    day: date = date(2026, 1, 1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "x"}, "'name' must be of the form ^[a-c]+$; got 'x'"),
        ({"name": "a", "size": 6}, "'size' must be a multiple of 4; got 6"),
        (
            {"name": "a", "mode": "col"},
            "'mode' must be 'row' or 'column'; got 'col'; did you mean 'column'?",
        ),
        ({}, "'name' must be given"),
        (
            {"name": "a", "day": "x"},
            "'day' does not have the form of this field; got 'x'",
        ),
    ],
)
def test_types_that_are_not_ours_have_sentences_as_well(data: object, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(Foreign, data)
    assert str(caught.value) == expected
