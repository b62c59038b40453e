"""Objectives of a stage: built-in ones by kind, and any object with the right methods."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from curricle.curriculum.stages import Stage
from curricle.errors import SpecError
from curricle.models.tapped import TappedModel
from curricle.objectives.base import BoundObjective, Reads, Sample
from curricle.objectives.catalog import AnyObjective
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.values import fingerprint, parse, plain


class Own:
    """A user-defined objective: only the methods, no base class."""

    weight = 2.0
    needs_teacher = False

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def reads(self, student: TappedModel, teacher: TappedModel | None) -> Reads:
        return Reads(student_logits=True)

    def bind(self, reads: Reads, sample: Sample, *, is_residual: bool) -> BoundObjective:
        return LabelLoss().bind(reads, sample, is_residual=is_residual)


class Other(Own):
    """Another class with the same attributes."""


@dataclass(frozen=True)
class OwnData(Own):
    """A user-defined objective as a dataclass with a field that is not plain data."""

    strength: float = 1.0
    held: Own = field(default_factory=Own)


def stage(objective: Any) -> Stage:
    return Stage(name="stage", duration="3 steps", objectives=(objective,))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"kind": "labels"}, LabelLoss()),
        ({"kind": "logits", "teacher_temperature": 0}, MatchLogits(teacher_temperature=0)),
        (
            {"kind": "hidden", "pair": {"student": 1, "teacher": 0.5}, "weight": 2},
            MatchHidden(pair=LayerPair(student=1, teacher=0.5), weight=2),
        ),
    ],
    ids=["labels", "logits", "hidden"],
)
def test_shipped_objectives_are_named_by_kind(data: dict[str, Any], expected: object) -> None:
    assert parse(AnyObjective, data) == expected


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"kind": "hiden"},
            r"'hiden' is not a kind; did .*: 'hidden', 'logits', 'paired_logits', 'embeddings'",
        ),
        ({"weight": 1}, r"kind' must be given"),
        ("labels", r"must be a mapping"),
        (Own, r"must be a mapping; got <class "),
        (LabelLoss, r"must be a mapping; got <class "),
        ({"kind": "labels", "weigh": 1}, r"'weigh' is not a field; did you mean 'weight'\?"),
    ],
    ids=["kind", "no kind", "text", "own class", "shipped class", "field"],
)
def test_what_is_no_objective_is_told(data: object, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        stage(data)


@pytest.mark.parametrize("own", [Own(), OwnData()], ids=["class", "dataclass"])
def test_a_stage_takes_an_object_of_the_user_as_it_is(own: Own) -> None:
    (actual,) = stage(own).objectives
    assert id(actual) == id(own)


def test_an_object_of_the_user_is_written_down_by_class_and_contents() -> None:
    (actual,) = plain(stage(Own(strength=3.0)))["objectives"]
    assert actual["own"].endswith("Own")
    assert actual["holds"] == {"strength": 3.0}


def test_what_such_an_object_holds_is_written_down_too() -> None:
    (actual,) = plain(stage(OwnData()))["objectives"]
    assert actual["holds"] == {"strength": 1.0, "held": {"strength": 1.0}}


def test_stages_with_objects_of_the_user_are_told_apart() -> None:
    objects = [Own(), Own(strength=2.0), Other(), OwnData(), LabelLoss()]
    assert len({fingerprint(stage(one)) for one in objects}) == len(objects)
    assert fingerprint(stage(Own())) == fingerprint(stage(Own()))


def test_an_object_of_the_user_is_not_read_back() -> None:
    data = plain(stage(Own()))
    with pytest.raises(SpecError, match=r"kind' must be given"):
        parse(Stage, data)
