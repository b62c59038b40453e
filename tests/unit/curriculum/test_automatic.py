"""A curriculum without settings: stages, taps and arguments."""

import pytest

from curricle.curriculum.automatic import auto
from curricle.curriculum.durations import Duration, UnlessExplained
from curricle.curriculum.initialization import AutoStart
from curricle.curriculum.stages import PricedLabels
from curricle.curriculum.strategies import build
from curricle.errors import SpecError
from curricle.models.tapped import tap_number
from curricle.objectives.hidden import MatchHidden
from curricle.objectives.logits import MatchLogits


def test_auto_is_two_layers_that_may_be_left_out_and_then_logits() -> None:
    curriculum = auto(total="1000 steps")
    assert [stage.name for stage in curriculum.stages] == ["layer 1", "layer 2", "logits"]
    assert [stage.duration.at_most.number for stage in curriculum.stages] == [150, 150, 700]
    assert [stage.required for stage in curriculum.stages] == [False, False, True]
    assert [isinstance(stage.duration, UnlessExplained) for stage in curriculum.stages] == [
        True,
        True,
        False,
    ]
    assert curriculum.init == AutoStart()
    assert curriculum.saved == "steps"


@pytest.mark.parametrize(
    ("depth", "taps"), [(1, [1, 1]), (2, [1, 2]), (4, [2, 4]), (900, [450, 900])]
)
def test_the_layers_of_auto_are_the_middle_and_the_last_block(depth: int, taps: list[int]) -> None:
    objectives = [stage.objectives[0] for stage in auto(total="1000 steps").stages[:-1]]
    pairs = [term.pair for term in objectives if isinstance(term, MatchHidden)]
    assert all(pair.student == pair.teacher for pair in pairs)
    assert [
        tap_number(pair.student, depth) for pair in pairs if isinstance(pair.student, float)
    ] == taps


def test_auto_keeps_the_weights_of_a_student_without_a_start() -> None:
    assert auto(total="1000 steps", init=None).init is None


def test_auto_takes_the_objective_on_logits() -> None:
    objective = MatchLogits(teacher_temperature=2, student_temperature=2)
    assert auto(total="1000 steps", objective=objective).stages[-1].objectives == (objective,)


def test_auto_may_take_labels_from_twice_their_price_on() -> None:
    assert auto(total="1000 steps").labels == PricedLabels(loss="cross_entropy", price=2)
    assert auto(total="1000 steps", labels=None).labels is None


def test_a_spec_sets_the_loss_and_the_price_of_labels() -> None:
    call = {"kind": "auto", "labels": {"loss": "binary", "price": 3}}
    curriculum = build(call, total=Duration(number=10), trajectory=None)
    assert curriculum.labels == PricedLabels(loss="binary", price=3)


def test_labels_that_cost_as_much_as_a_teacher_have_no_price() -> None:
    with pytest.raises(SpecError, match=r"'PricedLabels.price' must be greater than 1"):
        PricedLabels(price=1)
