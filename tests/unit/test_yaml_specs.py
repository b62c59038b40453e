"""YAML and JSON that is too much, doubled or unreadable ends in one sentence, at once."""

import json
from typing import Any

import pytest

from curricle import yaml_specs
from curricle.yaml_specs import from_json, from_yaml


def bomb(template: str) -> str:
    """Return nine levels of nine aliases each, which stand for 9**9 items."""
    levels = [f"a{level}: &a{level} {template}" for level in range(1, 10)]
    filled = [line.replace("*", f"*a{number}") for number, line in enumerate(levels)]
    return "\n".join(["a0: &a0 {x: 1}", *filled])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (bomb("[*, *, *, *, *, *, *, *, *]"), r"at most 10,000 items are read, aliases i.*line 5"),
        (bomb("{<<: [*, *, *, *, *, *, *, *, *]}"), r"at most 10,000 items are read.* line \d"),
        ("a: " + "[" * 10_000, r"at most 50 levels are read; there are more in line 1"),
        ("\n".join(" " * n + "a:" for n in range(60)), r"at most 50 levels .* in line 50"),
        ("b: 1\na: &a [*a]", r"alias 'a' contains itself in line 2, column 8"),
        ("a: &a {b: *a}", r"alias 'a' contains itself"),
        ("a: " + "1" * 5_000, r"'1{40}\.\.\.' cannot be read as a number or a date in line 1"),
        ("a: 0x" + "f" * 5_000, "cannot be read as a number"),
        ("a: 1:1" + ":59" * 3_000, "cannot be read as a number"),
        ("a: 2024-13-45", "'2024-13-45' cannot be read as a number or a date"),
        ("a: 1\nb: 2\na: 3", r"key 'a' stands twice, first in line 1, in line 3, column 1"),
        ("a:\n  x: 1\n  'x': 2", r"key 'x' stands twice, first in line 2, in line 3"),
        ("{a: 1, a: 1}", "key 'a' stands twice"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
    ],
)  # fmt: skip
def test_yaml_beyond_bounds_is_refused_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^must be plain YAML: .*{sentence}[^\n]*$"):
        from_yaml(text)


@pytest.mark.parametrize("text", ["a: [1", "a: \0", "a: 'b"])
def test_what_is_not_yaml_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not YAML: [^\n]+$"):
        from_yaml(text)


def test_a_huge_text_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_specs, "MOST_CHARACTERS", 10)
    with pytest.raises(ValueError, match="must have at most 10 characters; it has more"):
        from_yaml("a: 12345678")


def test_aliases_and_merges_of_ordinary_size_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: [*a, *a]"
    assert from_yaml(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": [{"x": 1, "y": 2}] * 2,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "Nested too deeply"),
        ('{"a": ' * 100_000, "Nested too deeply"),
        ("1" * 5_000, "Number with too many digits"),
        (b'{"a": "\xff"}', "Not UTF-8"),
        ("{oops", "Expecting property name"),
    ],
)
def test_json_that_cannot_be_read_is_one_kind_of_error(text: Any, reason: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=reason):
        from_json(text)
