"""Invariants of plain data, overrides and fingerprints."""

import json
from typing import Annotated, Any, Literal, final

import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from curricle.values import fingerprint, override, parse, plain, to_yaml, value


@final
@value
class Leaf:
    """Ends a branch."""

    kind: Literal["leaf"] = "leaf"
    number: float
    flag: bool = False


@final
@value
class Bud:
    """Ends a branch, too."""

    kind: Literal["bud"] = "bud"
    text: str


@final
@value
class Tree:
    """Holds the others."""

    name: str
    ends: tuple[Annotated[Leaf | Bud, Field(discriminator="kind")], ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)


# PyYAML reads the control character U+0085 and the line separators back as other white space.
TEXTS = st.text(
    st.characters(
        codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"), exclude_characters="\ufeff"
    ),
    max_size=20,
)
LEAVES = st.builds(
    Leaf, number=st.floats(allow_nan=False, allow_infinity=False), flag=st.booleans()
)
TREES = st.builds(
    Tree,
    name=TEXTS,
    ends=st.lists(LEAVES | st.builds(Bud, text=TEXTS), max_size=4).map(tuple),
    counts=st.dictionaries(TEXTS, st.integers(-(2**53), 2**53), max_size=4),
)
NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers() | TEXTS
# What can be typed into a shell; JSON writes it in a form that YAML reads as well.
SHELL_SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="ascii"))
PLAIN = st.recursive(
    SCALARS, lambda items: st.lists(items, max_size=3) | st.dictionaries(NAMES, items, max_size=3)
)
NESTED = st.dictionaries(NAMES, PLAIN, max_size=4)


@given(TREES)
def test_plain_data_are_parsed_back_to_an_equal_value(tree: Tree) -> None:
    assert parse(Tree, plain(tree)) == tree


@given(TREES)
def test_json_keeps_a_value(tree: Tree) -> None:
    assert parse(Tree, json.loads(json.dumps(plain(tree)))) == tree


@given(TREES)
def test_yaml_keeps_a_value(tree: Tree) -> None:
    assert parse(Tree, yaml.safe_load(to_yaml(tree))) == tree


@given(TREES, TREES)
def test_fingerprints_agree_exactly_when_plain_data_do(first: Tree, second: Tree) -> None:
    same = json.dumps(plain(first), sort_keys=True) == json.dumps(plain(second), sort_keys=True)
    assert (fingerprint(first) == fingerprint(second)) == same


@given(NESTED)
def test_the_order_of_fields_does_not_change_a_fingerprint(data: dict[str, Any]) -> None:
    assert fingerprint(dict(reversed(data.items()))) == fingerprint(data)


@given(NESTED, st.lists(NAMES, min_size=1, max_size=3, unique=True), SHELL_SCALARS)
def test_an_override_changes_the_named_field_alone(
    data: dict[str, Any], names: list[str], new: object
) -> None:
    fresh = {name: found for name, found in data.items() if name != names[0]}
    changed = override(fresh, [f"{'.'.join(names)}={json.dumps(new)}"])
    expected: object = new
    for name in reversed(names):
        expected = {name: expected}
    assert isinstance(expected, dict)
    assert changed == fresh | expected


@given(NESTED)
def test_no_override_is_a_copy(data: dict[str, Any]) -> None:
    assert override(data, []) == data
