"""The page about the Python API agrees with the source."""

import re
from pathlib import Path
from typing import Any, Protocol

import pytest

import curricle
from curricle.runs.api_reference import (
    HEADINGS,
    api_reference,
    attributes,
    first_sentence,
    public_names,
    signature,
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
