"""Explained share: two classes by hand, levels and scales, values, and rows."""

import math

import pytest
import torch
from torch import Tensor

from curricle.models.heads import LinearHead
from curricle.objectives.divergences import ForwardKL, SquaredError
from curricle.objectives.explained_share import explained_share, sampled_rows
from tests.parts import drawn

PROBABILITY = 0.9


def outputs(*log_odds: float) -> Tensor:
    """Return logits of two classes."""
    return torch.tensor([[0.0, odds] for odds in log_odds])


ODDS = math.log(PROBABILITY / (1 - PROBABILITY))
TEACHER = outputs(ODDS, -ODDS, ODDS, -ODDS)
"""Its mean distribution is even."""


def test_a_student_equal_to_its_teacher_explains_everything() -> None:
    assert explained_share([(TEACHER, TEACHER)], ForwardKL()) == pytest.approx(1, abs=1e-6)


def test_a_constant_student_explains_nothing() -> None:
    constant = outputs(3.0, 3.0, 3.0, 3.0)
    assert explained_share([(constant, TEACHER)], ForwardKL()) == 0


def test_a_student_that_is_unrelated_to_its_teacher_explains_nothing() -> None:
    # Each output of the student comes with both outputs of the teacher.
    assert explained_share([(outputs(2.0, 2.0, -2.0, -2.0), TEACHER)], ForwardKL()) == 0


@pytest.mark.parametrize("scale", [2.0**-4, 1.0, 16.0])
@pytest.mark.parametrize("level", [0.0, 50.0])
def test_scale_and_level_of_the_student_do_not_matter(scale: float, level: float) -> None:
    student = scale * TEACHER + torch.tensor([0.0, level])
    assert explained_share([(student, TEACHER)], ForwardKL()) == pytest.approx(1, abs=1e-4)


def test_a_student_that_is_right_at_three_rows_of_four_explains_what_the_formula_gives() -> None:
    student = outputs(1.0, -1.0, 1.0, 1.0)
    # Its mean is 1/2, so log odds are 1/2 and -3/2 at the level of the teacher, which is even.
    losses = []
    for scale, mean in ((1.0, 0.0), *((2.0**power, 0.5) for power in range(-8, 5))):
        divergence = 0.0
        for odds, right in ((1, 1), (-1, -1), (1, 1), (1, -1)):
            student_one = 1 / (1 + math.exp(-scale * (odds - mean)))
            one = PROBABILITY if right == 1 else 1 - PROBABILITY
            divergence += one * math.log(one / student_one)
            divergence += (1 - one) * math.log((1 - one) / (1 - student_one))
        losses.append(divergence)
    entropy = -PROBABILITY * math.log(PROBABILITY) - (1 - PROBABILITY) * math.log(1 - PROBABILITY)
    constant = 4 * (math.log(2) - entropy)
    expected = 1 - min(losses) / constant
    assert 0.1 < expected < 0.9
    assert explained_share([(student, TEACHER)], ForwardKL()) == pytest.approx(expected, rel=1e-5)


def test_the_share_is_that_of_all_batches_together() -> None:
    student = drawn(8, 3)
    teacher = drawn(8, 3, seed=1) + student
    together = explained_share([(student, teacher)], ForwardKL())
    parts = [(student[:3], teacher[:3]), (student[3:], teacher[3:])]
    assert explained_share(parts, ForwardKL()) == together


def test_the_share_of_values_is_that_of_their_variance() -> None:
    # Deviations 1, -1 of the student against 2, -2 of the teacher plus 1, 1, -1, -1 besides.
    student = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    teacher = 2 * student + torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]) + 7
    # Variance 5, of which the fit with factor 2 leaves 1.
    share = explained_share([(student, teacher)], SquaredError())
    assert share == pytest.approx(0.8, rel=1e-6)


def test_the_share_is_the_same_at_any_temperature_of_a_scaled_student() -> None:
    share = explained_share(
        [(TEACHER, TEACHER)], ForwardKL(), student_temperature=4, teacher_temperature=4
    )
    assert share == pytest.approx(1, abs=1e-6)


def test_a_teacher_with_constant_outputs_has_no_share() -> None:
    assert explained_share([(TEACHER, outputs(0.0, 0.0, 0.0, 0.0))], ForwardKL()) is None


def test_no_rows_have_no_share() -> None:
    assert explained_share([(TEACHER[:0], TEACHER[:0])], ForwardKL()) is None


def test_a_label_of_the_teacher_stands_for_its_distribution_at_temperature_zero() -> None:
    loud = 20 * TEACHER
    share = explained_share([(loud, TEACHER)], ForwardKL(), teacher_temperature=0)
    assert share == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("number", "rows"), [(3, [0, 1, 2]), (300, list(range(0, 300, 3)))])
def test_rows_are_spaced_evenly(number: int, rows: list[int]) -> None:
    numbers = torch.arange(float(number))[:, None].expand(number, 2)
    assert sampled_rows(numbers)[:, 0].tolist() == rows


def test_a_head_computes_the_same_rows() -> None:
    head = LinearHead(states=drawn(300, 4), weight=drawn(5, 4, seed=1))
    expected = sampled_rows(head.states @ head.weight.mT)
    torch.testing.assert_close(sampled_rows(head), expected)
