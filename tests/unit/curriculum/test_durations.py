"""Durations: parsing, conversion into steps and errors."""

from fractions import Fraction
from typing import final

import pytest

import curricle
from curricle.curriculum.durations import (
    AnyDuration,
    Duration,
    Unit,
    UnlessExplained,
    UntilMetric,
    UntilPlateau,
    duration,
)
from curricle.curriculum.strategies import staged
from curricle.errors import SpecError
from curricle.values import parse, plain, value


@final
@value
class Walk:
    """A value with a duration."""

    length: AnyDuration


def test_a_length_may_be_a_text_wherever_users_give_one() -> None:
    # Without casts, since the type checker has to accept texts as well.
    exact = curricle.Duration(number=2000)
    stage = curricle.Stage(name="labels", duration="2k steps", objectives=(curricle.LabelLoss(),))
    layer = curricle.LayerPair(student=1, teacher=1)
    curricula = [
        curricle.extraction(total="2k steps", pairs=(layer,), durations=("500 steps",)),
        curricle.progressive(total="2k steps", trajectory=[1, 2], durations=("500 steps",)),
        curricle.one_shot(total="2k steps"),
        curricle.from_labels(total="2k steps"),
        staged(total="2k steps", stages=(stage,)),
    ]
    assert stage.duration == exact
    assert curricula[2] == curricle.one_shot(total=exact)
    lengths = [sum(one.duration.at_most.number for one in each.stages) for each in curricula]
    assert lengths == [2000] * 5


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


@pytest.mark.parametrize("text", ["1500", "steps", "1500 passes", "1500steps", "5%", ""])
def test_a_text_without_number_or_unit_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=rf"must read like '1500 steps'.*; got '{text}'$"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("10 % step", ", not in '% step'"),
        ("5 %%", ", not in '%%'"),
        ("3k passes", ", not in 'passes'"),
        ("1500", ", with a number and a unit"),
        ("steps", ", with a number and a unit"),
    ],
)
def test_the_fault_of_a_text_is_named_beside_the_forms(text: str, fault: str) -> None:
    forms = "'1500 steps' or '2.5M examples', in steps, examples, tokens or epochs"
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
    with pytest.raises(SpecError, match=rf"'Duration\.number' .*greater than 0; got {number}$"):
        Duration(number=number)


def test_a_duration_prints_as_the_text_it_is_read_from() -> None:
    assert str(Duration(number=1_500, unit="examples")) == "1500 examples"


@pytest.mark.parametrize(
    ("text", "number", "unit", "divisor"),
    [
        (".5 epochs", 1, "epochs", 2),
        ("0.5 epoch", 1, "epochs", 2),
        ("1e4 steps", 10_000, "steps", 1),
        ("2.5e+5 examples", 250_000, "examples", 1),
        ("3. epochs", 3, "epochs", 1),
        ("1e-1 epochs", 1, "epochs", 10),
        ("5000e-3 steps", 5, "steps", 1),
    ],
)
def test_numbers_are_read_as_python_writes_them(
    text: str, number: int, unit: Unit, divisor: int
) -> None:
    assert duration(text) == Duration(number=number, unit=unit, divisor=divisor)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (Fraction(3, 4), "0.75 epochs"),
        (Fraction(3, 10), "0.3 epochs"),
        (Fraction(1, 3), "1/3 epochs"),
        (Fraction(247, 96), "247/96 epochs"),
        (Fraction(246_913_579, 2), "123456789.5 epochs"),
        (Fraction(10**17 * 3 + 1, 3), "300000000000000001/3 epochs"),
        (Fraction(1, 3_000_000), "1/3000000 epochs"),
        (Fraction(2), "2 epochs"),
    ],
)
def test_parts_of_epochs_print_as_the_text_of_the_same_length(length: Fraction, text: str) -> None:
    part = Duration.of(length, "epochs")
    assert str(part) == text
    assert duration(text) == part


@pytest.mark.parametrize("text", ["0.0000001 epochs", "0.00000099 epochs"])
def test_a_decimal_below_the_smallest_part_of_an_epoch_is_refused(text: str) -> None:
    rule = "a duration must be at least 0.000001 epochs, or a fraction such as '1/3 epochs'"
    with pytest.raises(SpecError, match=rf"^{rule}; got '{text}'$"):
        duration(text)
    assert duration("0.000001 epochs").length == Fraction(1, 10**6)


@pytest.mark.parametrize(
    "text", ["1/0 epochs", "1/3k epochs", "-1/3 epochs", "1/ epochs", "_ epochs"]
)
def test_a_number_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="a duration must read like '1500 steps'"):
        duration(text)


def test_a_fraction_of_steps_is_refused() -> None:
    with pytest.raises(SpecError, match="must be a positive whole number of steps"):
        duration("1/3 steps")


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


def test_a_rule_takes_the_place_of_a_length_in_a_stage_and_in_strategies() -> None:
    rule = curricle.UntilPlateau(at_most="500 steps")
    curricula = [
        curricle.extraction(total="2k steps", durations=(rule,)),
        curricle.progressive(total="2k steps", trajectory=[1, 2], durations=(rule,)),
    ]
    for curriculum in curricula:
        assert [stage.duration for stage in curriculum.stages] == [rule, Duration(number=1500)]


def test_stages_with_rules_add_up_by_their_maxima() -> None:
    rule = curricle.UntilMetric(
        metric="accuracy", reaches=0.9, direction="above", at_most="500 steps"
    )
    stage = curricle.Stage(name="labels", duration=rule, objectives=(curricle.LabelLoss(),))
    assert staged(total="500 steps", stages=(stage,)).stages == (stage,)
    with pytest.raises(SpecError, match=r"'labels' would have to last 501 steps; got 500 steps$"):
        staged(total="501 steps", stages=(stage,))


@pytest.mark.parametrize("at_least", ["50 steps", "60 steps", "1 examples"])
def test_a_minimum_is_shorter_than_the_maximum_and_in_its_unit(at_least: str) -> None:
    sentence = rf"'at_least' must be shorter than 'at_most' and in its unit; got {at_least} and 50"
    with pytest.raises(SpecError, match=sentence):
        UntilPlateau(at_most="50 steps", at_least=duration(at_least))
    with pytest.raises(SpecError, match=sentence):
        UntilMetric(
            metric="x",
            reaches=0,
            direction="above",
            at_most="50 steps",
            at_least=duration(at_least),
        )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "plateu"}, "'duration': 'plateu' is not a kind; did you mean 'plateau'?"),
        ({"kind": "plateau", "at_most": "5 steps", "window": 0}, "'duration.window' .*got 0"),
        ({"kind": "plateau"}, "'duration.at_most' must be given"),
        ({"kind": "metric", "at_most": "5 steps"}, "'duration.metric' must be given"),
        (
            {"kind": "plateau", "at_most": {"kind": "metric"}},
            "'duration.at_most': a length must be fixed here, such as '1500 steps'; .*'metric'",
        ),
    ],
)
def test_a_wrong_rule_is_told_with_its_path(fields: dict[str, object], sentence: str) -> None:
    data = {"name": "x", "duration": fields, "objectives": [{"kind": "labels"}]}
    with pytest.raises(SpecError, match=sentence.replace("?", r"\?")):
        parse(curricle.Stage, data)


def test_a_fixed_length_may_name_its_kind() -> None:
    fields = {"kind": "length", "number": 3, "unit": "tokens"}
    assert parse(Walk, {"length": fields}).length == Duration(number=3, unit="tokens")


def test_rules_are_printed_in_words() -> None:
    plateau = UntilPlateau(at_most="50 steps", window=7, patience=2, min_improvement=0.05)
    metric = UntilMetric(metric="nll", reaches=0.25, direction="below", at_most="50 steps")
    assert str(plateau) == "plateau of the loss (2 windows of 7 steps below 5 %)"
    assert str(metric) == "nll below 0.25"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3 epochs", 94), ("1 epoch", 32), ("0.5 epochs", 16), ("2.5 epochs", 79), ("0.1 epochs", 4)],
)
def test_epochs_are_the_whole_steps_that_cover_their_examples(text: str, expected: int) -> None:
    length = duration(text)
    steps = length.steps(batch_size=32, tokens_per_batch=1, examples_per_epoch=1_000)
    assert steps == expected
    assert duration(str(length)) == length


def test_epochs_of_data_without_a_length_are_refused() -> None:
    with pytest.raises(SpecError, match="3 epochs must have data of a known length"):
        duration("3 epochs").steps(batch_size=32, tokens_per_batch=1)


def test_parts_are_of_epochs_alone_and_in_lowest_terms() -> None:
    assert Duration(number=6, unit="epochs", divisor=8) == Duration(
        number=3, unit="epochs", divisor=4
    )
    assert parse(Duration, plain(duration("0.75 epochs"))) == duration("0.75 epochs")
    assert plain(duration("3 epochs")) == {"number": 3, "unit": "epochs"}
    with pytest.raises(SpecError, match="'divisor' must be 1 for steps; got 2"):
        Duration(number=3, divisor=2)


@pytest.mark.parametrize(
    ("curriculum", "lengths"),
    [
        (
            curricle.extraction(total="3 epochs", pairs=3, layer_fraction=0.1),
            ["0.1 epochs"] * 3 + ["2.7 epochs"],
        ),
        (curricle.extraction(total="1 epoch", pairs=2), ["0.125 epochs"] * 2 + ["0.75 epochs"]),
        (
            curricle.extraction(total="2 epochs", durations=("0.5 epochs",)),
            ["0.5 epochs", "1.5 epochs"],
        ),
        (curricle.progressive(total="2 epochs", trajectory=[1, 2, 3]), ["2/3 epochs"] * 3),
    ],
)
def test_strategies_divide_epochs_exactly(
    curriculum: curricle.Curriculum, lengths: list[str]
) -> None:
    parts = [stage.duration.at_most for stage in curriculum.stages]
    assert [str(part) for part in parts] == lengths
    assert sum(part.length for part in parts).denominator == 1


def test_stages_must_leave_time_in_epochs() -> None:
    with pytest.raises(SpecError, match=r"'total' 1 epochs must be longer .* they take 1$"):
        curricle.extraction(total="1 epoch", durations=("1 epoch",))
    with pytest.raises(SpecError, match="'durations' must be in epochs like 'total'"):
        curricle.extraction(total="1 epoch", durations=("10 steps",))


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (Duration(number=9), "its end; left out from 5 % explained on"),
        (
            UntilPlateau(at_most="9 steps", window=2),
            "plateau of the loss (3 windows of 2 steps below 1 %); left out from 5 % explained on",
        ),
    ],
)
def test_a_stage_that_may_be_left_out_has_the_rule_of_its_length_in_words(
    inner: Duration | UntilPlateau, words: str
) -> None:
    assert str(UnlessExplained(share=0.05, duration=inner)) == words


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_the_explained_share_is_neither_nothing_nor_all(share: float) -> None:
    with pytest.raises(SpecError, match=r"'UnlessExplained\.share'"):
        UnlessExplained(share=share, duration=Duration(number=9))


def test_the_length_of_a_stage_that_may_be_left_out_is_given_as_a_text() -> None:
    rule = UnlessExplained(share=0.05, duration="2.5k steps")
    assert rule.at_most == Duration(number=2500)
    assert rule.at_least is None
