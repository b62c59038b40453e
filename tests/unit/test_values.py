"""Values, plain data, YAML and overrides."""

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Literal, final

import numpy as np
import pytest
import torch
from pydantic import Field, TypeAdapter

from curricle.errors import SpecError
from curricle.values import (
    Line,
    Plain,
    changes,
    checked,
    fingerprint,
    override,
    parse,
    plain,
    read_yaml,
    to_yaml,
    value,
)


@final
@value
class Wheel:
    """A round thing."""

    kind: Literal["wheel"] = "wheel"
    size: int = Field(gt=0)
    """Diameter in inches; positive."""


@final
@value
class Runner:
    """A flat thing."""

    kind: Literal["runner"] = "runner"
    length: float = 1.0


@final
@value
class Cart:
    """Something on things."""

    name: str
    parts: tuple[Annotated[Wheel | Runner, Field(discriminator="kind")], ...] = ()
    spare: Wheel | None = None


CART: Plain = {
    "name": "red",
    "parts": [{"kind": "wheel", "size": 20}, {"kind": "runner", "length": 0.5}],
    "spare": {"kind": "wheel", "size": 18},
}


def test_a_value_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Wheel(size=20).size = 21  # type: ignore[misc]


def test_a_value_has_no_room_for_other_attributes() -> None:
    assert not hasattr(Wheel(size=20), "__dict__")


def test_a_value_takes_keywords_only() -> None:
    with pytest.raises(SpecError, match=r"^'Wheel' takes its fields by name; got 20$"):
        Wheel(20)  # type: ignore[call-arg, arg-type]


def test_equal_values_have_equal_hashes() -> None:
    assert hash(Wheel(size=20)) == hash(Wheel(size=20))


def test_a_value_can_be_replaced_in_part() -> None:
    assert dataclasses.replace(Wheel(size=20), size=21) == Wheel(size=21)


def test_a_replacement_is_checked_as_well() -> None:
    with pytest.raises(SpecError, match=r"'Wheel\.size'"):
        dataclasses.replace(Wheel(size=20), size=-1)


def test_a_wrong_field_is_told_with_class_rule_and_value() -> None:
    with pytest.raises(SpecError, match=r"^'Wheel\.size' must be greater than 0; got -3$"):
        Wheel(size=-3)


def test_a_missing_field_is_told_without_a_value() -> None:
    with pytest.raises(SpecError, match=r"^'Wheel\.size' (?!.*got).+$"):
        Wheel()  # type: ignore[call-arg]


def test_a_misspelt_field_is_answered_with_the_right_one() -> None:
    with pytest.raises(
        SpecError, match=r"'siz' is not a field; did you mean 'size'\? available: 'kind', 'size'"
    ):
        Wheel(siz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_must_be_finite(number: float) -> None:
    with pytest.raises(SpecError, match="finite number"):
        Runner(length=number)


def test_plain_data_become_the_value_they_describe() -> None:
    assert parse(Cart, CART) == Cart(
        name="red", parts=(Wheel(size=20), Runner(length=0.5)), spare=Wheel(size=18)
    )


def test_a_value_becomes_the_plain_data_that_describe_it() -> None:
    assert plain(parse(Cart, CART)) == CART


def test_a_value_is_not_parsed_again() -> None:
    wheel = Wheel(size=20)
    assert parse(Wheel, wheel) is wheel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name=[]", r"^'name' must be a string; got \[\]$"),
        ("parts.0.size=0", r"^'parts\.0\.size' must be greater than 0; got 0$"),
        ("parts.1.length=x", r"^'parts\.1\.length' must be a number.*; got 'x'$"),
        ("parts.1.kind=sail", r"^'parts\.1': 'sail' is not a kind; available: 'wheel', 'runner'$"),
        ("parts.1.kind=weel", r"^'parts\.1': 'weel' is not a kind; did you mean 'wheel'\?"),
        ("parts=[{}]", r"^'parts\.0\.kind' must be given$"),
        ("parts=3", r"^'parts' must be a list; got 3$"),
        ("parts=[a]", r"^'parts\.0' must be a mapping; got 'a'$"),
        ("spare=3", r"^'spare' must be a mapping; got 3$"),
        ("parts.0.color=red", r"^'parts\.0': 'color' is not a field; available: 'kind', 'size'$"),
        ("spare.size=big", r"^'spare\.size' .*; got 'big'$"),
        ("names=1", r"^'names' is not a field; did you mean 'name'\?"),
    ],
)
def test_a_mistake_is_told_with_the_path_of_its_field(change: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(Cart, override(CART, [change]))


@pytest.mark.parametrize(
    ("kind", "given", "rule"),
    [
        (bool, "yess", "must be true or false"),
        (bool | Literal["stacked"], "stackd", "must be true or false or 'stacked'"),
        (str | tuple[str, ...], 3.5j, "must be a string or a list"),
        (dict[str, int], 3, "must be a mapping"),
        (Annotated[tuple[int, ...], Field(min_length=1)], [], "must have at least 1 item"),
    ],
)
def test_rules_are_told_in_the_words_of_a_file_with_all_choices(
    kind: object, given: object, rule: str
) -> None:
    with pytest.raises(SpecError, match=f"^'field' {rule}"):
        parse(dict[str, kind], {"field": given})  # type: ignore[valid-type]


def test_a_missing_nested_field_is_told_with_its_path() -> None:
    with pytest.raises(SpecError, match=r"^'spare\.size' "):
        parse(Cart, {"name": "red", "spare": {}})


def test_the_source_stands_before_the_message() -> None:
    with pytest.raises(SpecError, match=r"^cart\.yaml: 'name' "):
        parse(Cart, {}, source="cart.yaml")


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(SpecError, match=r"got 'x{76}\.\.\.$"):
        parse(Wheel, {"size": "x" * 200})


def test_what_is_no_mapping_is_told() -> None:
    with pytest.raises(SpecError, match="got 3"):
        parse(Cart, 3)


def test_yaml_lists_the_fields_in_their_order() -> None:
    assert to_yaml(Cart(name="rot", parts=(Wheel(size=20),))) == (
        "name: rot\nparts:\n- kind: wheel\n  size: 20\nspare: null\n"
    )


def test_yaml_is_read_back_to_the_same_value(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    cart = parse(Cart, CART)
    path.write_text(to_yaml(cart), encoding="utf-8")
    assert parse(Cart, read_yaml(path)) == cart


def test_a_missing_yaml_file_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml' cannot be read: "):
        read_yaml(tmp_path / "none.yaml")


def test_a_binary_file_is_no_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SpecError, match=r"cart\.yaml' cannot be read: "):
        read_yaml(path)


def test_broken_yaml_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text("name: [red\nparts: ]", encoding="utf-8")
    with pytest.raises(SpecError, match=r"cart\.yaml' is not YAML: [^\n]+line 2[^\n]+$"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["", "# all is commented out\n", "\n \n", "---\n...\n"])
@pytest.mark.parametrize(
    ("listed", "rule"),
    [("", "named fields"), ("docs/spec.md", r"named fields, which docs/spec\.md lists")],
)
def test_an_empty_yaml_file_is_told_as_empty(
    tmp_path: Path, text: str, listed: str, rule: str
) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=rf"cart\.yaml' is empty; it must hold {rule}$"):
        read_yaml(path, listed=listed)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- 1", "a list"),
        ("3", "a number"),
        ("0.5", "a number"),
        ("seed 3", "a text"),
        ("yes", "true or false"),
        ("2024-01-02", "a date"),
    ],
)
def test_yaml_must_hold_named_fields(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=rf"must hold named fields; got {found}$"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("name=blue", {"name": "blue"}),
        ("name=", {"name": ""}),
        ("name=a=b", {"name": "a=b"}),
        ("new=1", {"new": 1}),
        ("new=0.5", {"new": 0.5}),
        ("new=true", {"new": True}),
        ("new=null", {"new": None}),
        ("new=[1, x]", {"new": [1, "x"]}),
        ("new.deep.er=1", {"new": {"deep": {"er": 1}}}),
        ("empty.deep=1", {"empty": {"deep": 1}}),
        ("items.1=7", {"items": [1, 7]}),
    ],
)
def test_an_override_sets_one_field(assignment: str, expected: Plain) -> None:
    data: Plain = {"name": "red", "empty": None, "items": [1, 2]}
    assert override(data, [assignment]) == data | expected


def test_overrides_leave_the_original_alone() -> None:
    data: Plain = {"parts": [{"size": 20}]}
    override(data, ["parts.0.size=21"])
    assert data == {"parts": [{"size": 20}]}


def test_the_last_of_several_overrides_wins() -> None:
    assert override({}, ["name=blue", "name=green"]) == {"name": "green"}


@pytest.mark.parametrize("assignment", ["name", "=blue", ""])
def test_an_override_without_path_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(SpecError, match=f"^'{assignment}' must have the form path=value$"):
        override({}, [assignment])


@pytest.mark.parametrize("index", ["2", "first", "-1"])
def test_an_override_of_a_list_needs_the_number_of_an_item(index: str) -> None:
    with pytest.raises(SpecError, match=rf"^'items\.{index}' must number one of 2 .*'{index}'$"):
        override({"items": [1, 2]}, [f"items.{index}=3"])


def test_an_override_cannot_run_through_a_number() -> None:
    with pytest.raises(SpecError, match=r"^'size\.deep' cannot be set: .*; got 3$"):
        override({"size": 3}, ["size.deep=1"])


def test_a_fingerprint_is_the_head_of_a_sha256_of_sorted_json() -> None:
    # printf '{"a":2,"b":1}' | sha256sum
    assert fingerprint({"b": 1, "a": 2}) == "d3626ac30a87e6f7"


def test_a_value_and_its_plain_data_have_one_fingerprint() -> None:
    assert fingerprint(parse(Cart, CART)) == fingerprint(CART)


def test_another_number_makes_another_fingerprint() -> None:
    assert fingerprint(Wheel(size=20)) != fingerprint(Wheel(size=21))


def test_the_doc_of_a_field_is_the_string_under_it() -> None:
    schema = TypeAdapter(Wheel).json_schema()
    assert schema["properties"]["size"]["description"] == "Diameter in inches; positive."


@final
@value
class Numbers:
    """Numbers in every place that a field has."""

    whole: int = 1
    real: float | None = None
    several: tuple[int, ...] = ()
    named: dict[str, float] = Field(default_factory=dict)
    either: bool | int = False
    flag: bool = False


@pytest.mark.parametrize("flag", [True, False, np.bool_(1), torch.tensor(True), b"1"])
@pytest.mark.parametrize("field", ["whole", "real"])
def test_true_and_false_are_no_numbers(field: str, flag: object) -> None:
    with pytest.raises(SpecError, match=rf"'Numbers.{field}' must be a number, not true"):
        Numbers(**{field: flag})  # type: ignore[arg-type] # the mistake


@pytest.mark.parametrize("data", [{"several": [1, True]}, {"named": {"a": False}}])
def test_true_and_false_are_no_numbers_within_lists_and_mappings(data: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="must be a number, not true or false; got"):
        parse(Numbers, data)


def test_true_and_false_stay_where_a_field_takes_them() -> None:
    assert Numbers(either=True, flag=True, several=(1, 0)).either is True


def test_an_argument_that_is_a_number_takes_no_truth_value() -> None:
    @checked
    def scale(*, factor: float = 1.0, is_log: bool = False) -> float:
        return 0.0 if is_log else factor

    assert scale(factor=2, is_log=True) == 0
    with pytest.raises(SpecError, match="'factor' must be a number, not true"):
        scale(factor=True)


def test_help_shows_types_without_their_validators() -> None:
    @checked
    def scale(*, factor: Annotated[float, Field(gt=0)] | None = None) -> float:
        """Return the factor."""
        return factor or 1.0

    assert str(inspect.signature(scale)) == "(*, factor: float | None = None) -> float"
    assert inspect.getdoc(scale) == "Return the factor."


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "\0", "a\u202eb", "\ud800", "a\tb"])
def test_a_line_has_no_control_characters(text: str) -> None:
    with pytest.raises(SpecError, match="must be one line of printable characters; got"):
        parse(Line, text)


@pytest.mark.parametrize("text", ["a b", "ä一", "x[/bold]", "100 %"])
def test_a_line_has_any_other_characters(text: str) -> None:
    assert parse(Line, text) == text


def test_a_file_with_a_key_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(SpecError, match=r"cart.yaml' must be plain YAML: key 'a' stands twice.*1,"):
        read_yaml(tmp_path / "cart.yaml")


def test_an_override_with_too_many_levels_is_refused() -> None:
    with pytest.raises(SpecError, match="'a' must be set to a value in YAML; got '\\[\\[\\["):
        override({}, ["a=" + "[" * 10_000])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("spare.size=12", "'spare.size' was 18 and is 12"),
        ("parts.1.length=2.5", "'parts.1.length' was 0.5 and is 2.5"),
        ("color=red", "'color' was not there and is 'red'"),
        ("tires=[1, 3]", "'tires' was [1, 2] and is [1, 3]"),
    ],
)
def test_a_change_is_named_with_its_path_and_both_values(assignment: str, words: str) -> None:
    then = CART | {"tires": [1, 2]}
    assert changes(then, override(then, [assignment])) == [words]


def test_a_change_of_a_long_value_is_shown_in_part() -> None:
    words = changes({"text": "a" * 500}, {"text": "b"})
    assert words == [f"'text' was '{'a' * 76}... and is 'b'"]


def test_what_a_file_holds_in_other_types_is_no_change() -> None:
    assert not changes({"widths": [8], "lines": {}}, {"widths": (8,), "lines": {}, "spare": None})
