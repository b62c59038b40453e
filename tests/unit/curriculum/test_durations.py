"""Durations: parsing, conversion into steps and errors."""

from typing import final

import pytest

import curricle
from curricle.curriculum.durations import AnyDuration, Duration, Unit, duration
from curricle.curriculum.strategies import staged
from curricle.errors import SpecError
from curricle.values import parse, value


@final
@value
class Walk:
    """A value with a duration."""

    length: AnyDuration


def test_a_length_may_be_a_text_wherever_users_give_one() -> None:
    # Without casts, since the type checker has to accept texts as well.
    stage = curricle.Stage(name="labels", duration="2k steps", objectives=(curricle.LabelLoss(),))
    layer = curricle.LayerPair(student=1, teacher=1)
    curricula = [
        curricle.extraction(total="2k steps", pairs=(layer,), durations=("500 steps",)),
        curricle.progressive(total="2k steps", trajectory=[1, 2], durations=("500 steps",)),
        curricle.one_shot(total="2k steps"),
        curricle.from_labels(total="2k steps"),
        staged(total="2k steps", stages=(stage,)),
    ]
    exact = curricle.Duration(number=2000)
    assert stage.duration.number == 2000
    assert curricula[2] == curricle.one_shot(total=exact)
    assert [sum(one.duration.number for one in each.stages) for each in curricula] == [2000] * 5


@pytest.mark.parametrize(
    ("number", "unit", "expected"),
    [
        (7, "steps", 7),
        (320, "examples", 10),
        (321, "examples", 11),
        (1, "examples", 1),
        (5_120, "tokens", 10),
        (5_121, "tokens", 11),
        (1, "tokens", 1),
    ],
)
def test_a_duration_covers_whole_steps(number: int, unit: Unit, expected: int) -> None:
    length = Duration(number=number, unit=unit)
    assert length.steps(batch_size=32, tokens_per_batch=512) == expected


def test_the_unit_is_steps_unless_said() -> None:
    assert Duration(number=3) == Duration(number=3, unit="steps")


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("1500 steps", 1_500, "steps"),
        ("1 step", 1, "steps"),
        ("1k example", 1_000, "examples"),
        ("1_500 steps", 1_500, "steps"),
        ("2k steps", 2_000, "steps"),
        ("2.5M examples", 2_500_000, "examples"),
        ("1 G tokens", 1_000_000_000, "tokens"),
        ("  10   tokens ", 10, "tokens"),
        ("4.0 steps", 4, "steps"),
    ],
)
def test_a_text_is_read_as_a_duration(text: str, number: int, unit: Unit) -> None:
    assert duration(text) == Duration(number=number, unit=unit)


@pytest.mark.parametrize("text", ["1500", "steps", "1500 epochs", "1500steps", "5%", ""])
def test_a_text_without_number_or_unit_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=rf"must read like '1500 steps'.*; got '{text}'$"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("10 % step", ", not in '% step'"),
        ("5 %%", ", not in '%%'"),
        ("3k epochs", ", not in 'epochs'"),
        ("1500", ", with a number and a unit"),
        ("steps", ", with a number and a unit"),
    ],
)
def test_the_fault_of_a_text_is_named_beside_the_forms(text: str, fault: str) -> None:
    forms = "'1500 steps' or '2.5M examples', in steps, examples or tokens"
    with pytest.raises(SpecError) as message:
        parse(Walk, {"length": text})
    assert str(message.value) == f"'length': a duration must read like {forms}{fault}; got {text!r}"


@pytest.mark.parametrize("text", ["0 steps", "-3 steps", "1.5 steps", "0.0001k steps"])
def test_a_text_must_mean_a_positive_whole_number(text: str) -> None:
    rule = "must be a positive whole number of steps, such as '1500 steps'"
    with pytest.raises(SpecError, match=rf"{rule}; got '{text}'"):
        duration(text)


@pytest.mark.parametrize("text", [f"{10**19} steps", f"{'9' * 400} tokens", "2000000000G examples"])
def test_a_text_must_mean_a_number_that_a_run_could_reach(text: str) -> None:
    with pytest.raises(
        SpecError, match=r"a duration must be at most 1e\+18 (steps|tokens|examples)"
    ):
        duration(text)


@pytest.mark.parametrize("number", [0, -1])
def test_a_duration_is_positive(number: int) -> None:
    with pytest.raises(SpecError, match=rf"'Duration\.number': .*greater than 0; got {number}$"):
        Duration(number=number)


def test_a_duration_prints_as_the_text_it_is_read_from() -> None:
    assert str(Duration(number=1_500, unit="examples")) == "1500 examples"


def test_a_number_without_a_unit_is_told_how_a_duration_reads() -> None:
    with pytest.raises(SpecError, match=r"must read like '1500 steps'.*got 1500"):
        duration(1_500)


@pytest.mark.parametrize(
    "inputs", ["3 tokens", {"number": 3, "unit": "tokens"}, Duration(number=3, unit="tokens")]
)
def test_a_field_takes_a_text_or_fields_or_a_duration(inputs: object) -> None:
    assert parse(Walk, {"length": inputs}) == Walk(length=Duration(number=3, unit="tokens"))


def test_a_wrong_text_in_a_field_is_told_with_its_path() -> None:
    with pytest.raises(SpecError, match=r"^'length': a duration must read like .*; got '3 miles'$"):
        parse(Walk, {"length": "3 miles"})


def test_a_bare_number_in_a_field_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^'length': .*got 3$"):
        parse(Walk, {"length": 3})
