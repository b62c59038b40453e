"""Sentences about names that have changed, in every place where names are typed."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

import curricle
from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import build
from curricle.errors import BindError, SpecError, near_names
from curricle.objectives.paired_logits import MatchPairedLogits
from curricle.renamed import REMEDIES, RENAMED, known_arguments, known_fields, name_hint
from curricle.values import checked, override, parse, value


@value
class Layers:
    """A value with a field that had another name."""

    layer_fraction: float = 0.5


@checked
def layers(*, layer_fraction: float = 0.5) -> float:
    """Return the argument."""
    return layer_fraction


def test_a_renamed_name_is_answered_where_its_new_name_is_available() -> None:
    assert name_hint("share", ["total", "layer_fraction"]) == "it is now named 'layer_fraction'"


@pytest.mark.parametrize("name", ["share", "totl"])
def test_elsewhere_near_names_are_the_answer(name: str) -> None:
    assert name_hint(name, ["total"]) == near_names(name, ["total"])


SOFTENED = (
    "=curricle.MatchLogits(teacher_temperature=4, student_temperature=4, "
    "scale='temperature_squared')"
)


@pytest.mark.parametrize(
    ("call", "fields", "sentence"),
    [
        (
            curricle.MatchLogits,
            {"temperature": 4},
            (
                "'MatchLogits': 'temperature' is not a field; both models have one: "
                "teacher_temperature=4, student_temperature=4, and for the loss of Hinton et al. "
                "(2015) scale='temperature_squared'"
            ),
        ),
        (
            MatchPairedLogits,
            {"temperature": 4},
            (
                "'MatchPairedLogits': 'temperature' is not a field; both models have one: "
                "teacher_temperature=4, student_temperature=4"
            ),
        ),
        (
            curricle.one_shot,
            {"total": "9 steps", "temperature": 4},
            f"'temperature' is not an argument; it belongs to the objective: objective{SOFTENED}",
        ),
        (
            curricle.extraction,
            {"total": "9 steps", "temperature": 4},
            (
                f"'temperature' is not an argument; it belongs to the objective: "
                f"final_objective{SOFTENED}"
            ),
        ),
        (
            curricle.one_shot,
            {"epochs": 3},
            "'epochs' is not an argument; the length is total='3 epochs', with its unit",
        ),
        (
            curricle.one_shot,
            {"steps": 3},
            "'steps' is not an argument; the length is total='1500 steps', with its unit",
        ),
    ],
)
def test_names_of_other_libraries_are_answered_by_a_remedy(
    call: Callable[..., object], fields: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SpecError) as error:
        call(**fields)
    assert str(error.value) == sentence


def test_epochs_of_settings_are_answered_by_the_length_of_the_strategy() -> None:
    remedy = (
        r"; the length belongs to the strategy, as curricle\.one_shot\(total='3 epochs'\), and in "
        r"a spec to 'budget'$"
    )
    with pytest.raises(SpecError, match="'TrainingSettings': 'epochs' is not a field" + remedy):
        curricle.TrainingSettings(epochs=3)  # type: ignore[call-arg]
    with pytest.raises(BindError, match="'epochs' is not an argument of 'distill'" + remedy):
        curricle.distill(None, None, None, None, epochs=3)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize(("name", "needed", "remedy"), REMEDIES)
def test_remedies_of_names_hold_only_where_their_place_is(
    name: str, needed: frozenset[str], remedy: str
) -> None:
    assert name_hint(name, needed) == remedy
    assert name_hint(name, ["verse"]) == "available: 'verse'"


def test_no_new_name_is_a_former_one() -> None:
    assert not RENAMED.keys() & set(RENAMED.values())


def test_fields_name_their_new_name() -> None:
    message = r"'Layers': 'share' is not a field; it is now named 'layer_fraction'$"
    with pytest.raises(SpecError, match=message):
        Layers(share=0.2)  # type: ignore[call-arg]
    with pytest.raises(SpecError, match=r"^'share' is not a field; it is now named"):
        parse(Layers, override({}, ["share=0.2"]))


def test_arguments_name_their_new_name() -> None:
    with pytest.raises(SpecError, match=r"^'share' is not an argument; it is now named"):
        layers(share=0.2)  # type: ignore[call-arg]


@pytest.mark.parametrize(("old", "new"), [("share", "layer_fraction"), ("last", "final_objective")])
def test_arguments_of_strategies_name_their_new_name(old: str, new: str) -> None:
    message = rf"^'{old}' is not an argument of extraction; it is now named '{new}'$"
    with pytest.raises(SpecError, match=message):
        build({"kind": "extraction", old: 0.2}, total=Duration(number=9), trajectory=None)


@pytest.mark.parametrize(
    ("old", "new"), [("FitLabels", "LabelLoss"), ("uniform", "evenly_spaced_pairs")]
)
def test_public_names_name_their_new_name(old: str, new: str) -> None:
    message = rf"^module 'curricle' has no attribute '{old}'; it is now named '{new}'$"
    with pytest.raises(AttributeError, match=message):
        getattr(curricle, old)
    assert new in dir(curricle)


@known_arguments
def joined(first: int, second: int, *, third: int) -> int:
    """Return the sum."""
    return first + second + third


@pytest.mark.parametrize(
    ("args", "keywords", "sentence"),
    [
        ((1,), {"third": 3}, "must be called with 'second'"),
        (
            (1, 2, 3),
            {},
            "takes these arguments by position, and all others by name: 'first', 'second'; got 3",
        ),
        (
            (1, 2),
            {"first": 1, "third": 3},
            "takes its arguments once: multiple values for argument 'first'",
        ),
    ],
    ids=["missing", "positions", "twice"],
)
def test_calls_with_too_few_or_too_many_arguments_are_answered_by_the_rule(
    args: tuple[int, ...], keywords: dict[str, int], sentence: str
) -> None:
    call: Any = joined
    with pytest.raises(BindError) as error:
        call(*args, **keywords)
    assert str(error.value) == f"'joined' {sentence}; help(curricle.joined) lists its arguments"
    assert call(1, 2, third=3) == 6


def test_a_missing_argument_is_answered_by_what_it_holds() -> None:
    @partial(known_arguments, contents={"second": "a number"})
    def pair(first: int, second: int) -> int:
        return first + second

    with pytest.raises(BindError, match=r"^'pair' must be called with 'second', a number; help"):
        pair(1)  # type: ignore[call-arg]


@known_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """A data class with fields by name."""

    layer_fraction: float
    number: int = 1

    def __post_init__(self) -> None:
        if self.number < 0:
            raise TypeError("negative")


@pytest.mark.parametrize(
    ("args", "fields", "sentence"),
    [
        (
            (0.5, 2),
            {},
            (
                "'Sides' takes its fields by name, as Sides(layer_fraction=..., number=...); got "
                "'float' without a name"
            ),
        ),
        (
            (),
            {"numbers": 2},
            (
                "'Sides': 'numbers' is not a field; did you mean 'number'? available: "
                "'layer_fraction', 'number'"
            ),
        ),
        ((), {"share": 2}, "'Sides': 'share' is not a field; it is now named 'layer_fraction'"),
        ((), {"number": 2}, "'Sides.layer_fraction' must be given"),
    ],
    ids=["position", "unknown", "renamed", "missing"],
)
def test_fields_of_data_classes_are_answered_as_those_of_values(
    args: tuple[float, ...], fields: dict[str, int], sentence: str
) -> None:
    kind: Any = Sides
    with pytest.raises(SpecError) as error:
        kind(*args, **fields)
    assert str(error.value) == sentence


def test_data_classes_with_known_fields_stay_what_they_are() -> None:
    sides = Sides(layer_fraction=0.5)
    assert replace(sides, number=3) == Sides(layer_fraction=0.5, number=3)
    assert list(inspect.signature(Sides).parameters) == ["layer_fraction", "number"]
    with pytest.raises(TypeError, match=r"^negative$"):
        Sides(layer_fraction=0.5, number=-1)
