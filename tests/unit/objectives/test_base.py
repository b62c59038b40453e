"""Checks and interfaces shared by all objectives."""

from collections.abc import Callable

import pytest
import torch

from curricle.errors import BindError, DataError, SpecError
from curricle.models.tapped import Place
from curricle.objectives.base import (
    MOST_WEIGHT,
    Objective,
    Reads,
    check_classes,
    require,
)
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits


@pytest.mark.parametrize("actual", [0, "", False, [], 3])
def test_what_is_there_is_returned_even_if_it_is_nothing(actual: object) -> None:
    assert require(actual, "name") is actual


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        BindError, match=r"^'labels' must be given, since an objective reads it; got none$"
    ):
        require(None, "labels")


def test_nothing_is_read_unless_it_is_said() -> None:
    assert Reads() == Reads(student=(), teacher=(), student_logits=False, teacher_logits=False)


def test_reads_are_a_value() -> None:
    assert Reads(student=(Place("a"),)) == Reads(student=(Place("a", call=0),))
    assert len({Reads(), Reads(student_logits=True), Reads()}) == 2


@pytest.mark.parametrize(
    "objective",
    [MatchHidden(pair=LayerPair(student=1, teacher=1)), MatchLogits(), LabelLoss()],
    ids=lambda objective: objective.kind,
)
def test_shipped_objectives_are_objectives(objective: object) -> None:
    assert isinstance(objective, Objective)


@pytest.mark.parametrize("other", [None, "labels", {"kind": "labels"}], ids=str)
def test_other_things_are_no_objectives(other: object) -> None:
    assert not isinstance(other, Objective)


@pytest.mark.parametrize(
    "build",
    [
        lambda weight: MatchLogits(weight=weight),
        lambda weight: LabelLoss(weight=weight),
        lambda weight: MatchHidden(pair=LayerPair(student=1, teacher=1), weight=weight),
    ],
    ids=["logits", "labels", "hidden"],
)
def test_a_weight_that_overflows_gradients_is_refused(build: Callable[[float], object]) -> None:
    build(MOST_WEIGHT)
    with pytest.raises(SpecError, match=r"weight' .* 1000000; got 1e\+30"):
        build(1e30)


@pytest.mark.parametrize(("wrong", "classes"), [(-1, 3), (-100, 3), (3, 3), (7, 4)])
def test_a_label_that_is_no_class_is_refused(wrong: int, classes: int) -> None:
    sentence = rf"^'labels' must lie between 0 and {classes - 1}, .*; got {wrong} in batch 5; "
    with pytest.raises(DataError, match=sentence):
        check_classes(torch.tensor([0, wrong, 2]), classes, " in batch 5")
    check_classes(torch.tensor([0, classes - 1]), classes)
    check_classes(torch.tensor([]).long(), classes)
