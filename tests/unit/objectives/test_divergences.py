"""Divergences as values: function calls, plain data and early validation."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from curricle.errors import SpecError
from curricle.objectives import losses
from curricle.objectives.divergences import (
    JSD,
    Divergence,
    ForwardKL,
    ReverseKL,
    SquaredError,
    TotalVariation,
)
from curricle.values import parse, plain

PROBABILITIES = [ForwardKL(), ReverseKL(), JSD(), TotalVariation()]
VALUES = [*PROBABILITIES, SquaredError()]


def logits(seed: int) -> Tensor:
    """Return random logits."""
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("divergence", "function"),
    [
        (ForwardKL(), losses.forward_kl),
        (ReverseKL(), losses.reverse_kl),
        (JSD(beta=0.1), partial(losses.generalized_jsd, beta=0.1)),
        (TotalVariation(), losses.total_variation),
    ],
)
def test_a_divergence_calls_its_function_with_its_own_settings(
    divergence: Divergence, function: Callable[..., Tensor]
) -> None:
    actual = divergence(logits(0), logits(1), student_temperature=2.0, teacher_temperature=0.5)
    expected = function(logits(0), logits(1), student_temperature=2.0, teacher_temperature=0.5)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"kind": "forward_kl"}, ForwardKL()),
        ({"kind": "reverse_kl"}, ReverseKL()),
        ({"kind": "jsd", "beta": 0.25}, JSD(beta=0.25)),
        ({"kind": "total_variation"}, TotalVariation()),
        ({"kind": "squared_error"}, SquaredError()),
    ],
)
def test_a_divergence_is_read_from_plain_data_and_back(
    data: dict[str, object], expected: Divergence
) -> None:
    assert parse(Divergence, data) == expected
    assert plain(expected) == data


def test_jsd_is_balanced_unless_told_otherwise() -> None:
    assert JSD().beta == 0.5


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_jsd_refuses_a_beta_at_or_below_zero(beta: float) -> None:
    sentence = f"'JSD.beta' must be greater than 0; got {beta}"
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        JSD(beta=beta)


def test_jsd_refuses_a_beta_of_one() -> None:
    sentence = "'JSD.beta' must be less than 1; got 1.0"
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        JSD(beta=1.0)


def test_reverse_kl_refuses_a_hard_teacher_when_it_is_declared() -> None:
    sentence = "'teacher_temperature' must be positive for 'reverse_kl'"
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}"):
        ReverseKL().check(student_temperature=1.0, teacher_temperature=0.0)


@pytest.mark.parametrize("divergence", [ForwardKL(), JSD(), TotalVariation()])
def test_the_others_take_a_hard_teacher(divergence: ForwardKL | JSD | TotalVariation) -> None:
    divergence.check(student_temperature=1.0, teacher_temperature=0.0)
    actual = divergence(logits(0), logits(1), student_temperature=1.0, teacher_temperature=0.0)
    assert actual.isfinite()


@pytest.mark.parametrize("temperatures", [(2.0, 1.0), (1.0, 0.5), (0.0, 1.0)])
def test_values_have_no_temperature(temperatures: tuple[float, float]) -> None:
    student, teacher = temperatures
    sentence = "'student_temperature' and 'teacher_temperature' must be 1 with divergence 'squared"
    with pytest.raises(SpecError, match=f"^{sentence}"):
        SquaredError().check(student_temperature=student, teacher_temperature=teacher)


@pytest.mark.parametrize("divergence", PROBABILITIES)
def test_every_divergence_refuses_a_student_temperature_of_zero(divergence: Divergence) -> None:
    with pytest.raises(SpecError, match=r"^'student_temperature' must be finite and at least"):
        divergence.check(student_temperature=0.0, teacher_temperature=1.0)


@pytest.mark.parametrize("divergence", VALUES)
def test_a_divergence_is_frozen(divergence: Divergence) -> None:
    with pytest.raises(AttributeError):
        divergence.kind = "other"  # type: ignore[misc, assignment]
