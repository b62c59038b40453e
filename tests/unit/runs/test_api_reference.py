"""The page about the Python API agrees with the source."""

import re
from pathlib import Path
from typing import Any, Protocol

import pytest

import curricle
from curricle.runs.api_reference import (
    HEADINGS,
    INTERNAL,
    api_reference,
    attributes,
    first_sentence,
    public_names,
    signature,
    unnamed_result,
    written,
)

PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def test_the_page_is_that_of_the_source() -> None:
    assert PAGE.read_text(encoding="utf-8") == api_reference(), "to be made again by: make docs"


def test_every_public_name_stands_once_with_a_sentence() -> None:
    page = api_reference()
    names = re.findall(r"^### `(\w+)`$", page, flags=re.MULTILINE)
    assert sorted(names) == sorted(public_names("curricle"))
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        sentence = section.split("```\n")[1].strip().splitlines()[0]
        assert re.fullmatch(r"[A-Z].{9,}\.", sentence), section


def test_every_heading_has_names() -> None:
    for heading in HEADINGS.values():
        (section,) = re.findall(
            rf"^## {heading}\n(.*?)(?=^## )", api_reference(), flags=re.M | re.S
        )
        assert "### `" in section


def test_no_address_of_an_object_stands_on_the_page() -> None:
    assert "0x" not in api_reference()


def test_a_long_call_has_an_argument_a_line() -> None:
    def call(first: int, *rest: int, name: str = "x", **more: int) -> None:
        """Do it."""

    assert signature("call", call) == "call(first, *rest, name='x', **more)"

    def named(*, argument_with_a_long_name: float = 1e-3, other: Any = curricle.SGD) -> None:
        """Do it."""

    assert signature("n", named) == "n(*, argument_with_a_long_name=0.001, other=SGD)"
    assert signature("n" * 80, named).splitlines() == [
        f"{'n' * 80}(", "    *,", "    argument_with_a_long_name=0.001,", "    other=SGD,", ")",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("default", "text"),
    [
        (curricle.AdamW(learning_rate=0.1), "AdamW(learning_rate=0.1)"),
        (
            curricle.SGD(learning_rate=0.1, schedule=curricle.Schedule(warmup=0.5)),
            "SGD(learning_rate=0.1, schedule=Schedule(warmup=0.5))",
        ),
        (object(), "..."),
        ("text", "'text'"),
    ],
)
def test_a_default_shows_what_differs(default: object, text: str) -> None:
    assert written(default) == text


def test_members_that_only_the_package_calls_are_left_out() -> None:
    assert attributes(curricle.SGD) == ["learning_rate", "momentum", "weight_decay", "schedule"]
    assert "host" not in attributes(curricle.Batch)
    assert "kind" not in signature("AdamW", curricle.AdamW)
    listed = re.findall(r"^### `(\w+)`|^Result: `(\w+)`", api_reference(), flags=re.MULTILINE)
    assert set(INTERNAL) <= {name for names in listed for name in names}


@pytest.mark.parametrize("kind", list(INTERNAL))
def test_members_that_are_left_out_exist(kind: str) -> None:
    results = (unnamed_result(getattr(curricle, name)) for name in public_names("curricle"))
    unnamed = {result.__name__: result for result in results if result is not None}
    of = unnamed.get(kind) or getattr(curricle, kind)
    fields = set(getattr(of, "__annotations__", {}))
    assert {name for name in INTERNAL[kind] if not hasattr(of, name)} <= fields


def test_classes_of_results_are_listed_with_their_members() -> None:
    page = api_reference()
    for name, members in (("CausalWindows", "`held_out`"), ("LoaderStream", "`held_out`")):
        (line,) = re.findall(rf"^Result: `{name}`, with (.*)\.$", page, flags=re.MULTILINE)
        assert members in line.split(", ")
    (section,) = re.findall(r"^### `Stream`\n(.*?)(?=^### )", page, flags=re.M | re.S)
    assert "Optional: `examples_per_epoch`, `held_out`." in section


def test_protocols_and_errors_have_no_call() -> None:
    class Shape(Protocol):
        """A shape."""

    assert signature("Shape", Shape) == "Shape"
    assert signature("CurricleError", curricle.CurricleError) == "CurricleError"


def test_the_first_sentence_ends_with_a_stop() -> None:
    def call() -> None:
        """Do it. Then more

        of it.
        """

    assert first_sentence(call) == "Do it."
    assert attributes(call) == []
    assert attributes(curricle.Schedule)[:3] == ["warmup", "decay", "floor"]
