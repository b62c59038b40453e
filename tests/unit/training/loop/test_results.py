"""What evaluations return becomes plain numbers or one sentence."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from curricle.errors import BindError
from curricle.training.loop.results import plain_metrics


class Half:
    """A number of a library that is neither numpy nor torch."""

    def __float__(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    "number",
    [
        0.5,
        np.float32(0.5),
        np.array([0.5]),
        torch.tensor(0.5),
        torch.tensor([[0.5]]),
        Decimal("0.5"),
        Fraction(1, 2),
        Half(),
    ],
    ids=["float", "numpy", "array", "scalar", "tensor", "decimal", "fraction", "other"],
)
def test_what_float_takes_is_a_number(number: Any) -> None:
    metrics = plain_metrics({"f1": number, "count": 3}, "f1")
    assert metrics == {"f1": 0.5, "count": 3.0}
    assert {type(number) for number in metrics.values()} == {float}


@pytest.mark.parametrize("returned", [None, 0.5, [("f1", 0.5)]])
def test_what_is_no_dictionary_is_refused(returned: Any) -> None:
    with pytest.raises(BindError, match=r"must return a dictionary of numbers by name, as .'f1'"):
        plain_metrics(returned, "f1")


@pytest.mark.parametrize(
    "item",
    [
        "high",
        "0.5",
        None,
        True,
        np.bool_(True),
        torch.tensor(True),
        torch.ones(2),
        np.zeros(3),
        {"mean": 1.0},
        10**400,
        1j,
    ],
)
def test_what_is_no_number_is_refused(item: Any) -> None:
    with pytest.raises(BindError, match=r"must return numbers; got .* for 'f1'"):
        plain_metrics({"f1": item}, "f1")


def test_a_metric_that_is_missing_is_named_with_those_that_are_there() -> None:
    with pytest.raises(BindError, match=r"'metric' must be one .*\['em', 'f1'\]; got 'accuracy'"):
        plain_metrics({"f1": 0.5, "em": 0.4}, "accuracy")


def test_a_metric_that_ends_a_stage_is_needed_as_well() -> None:
    assert plain_metrics({"nll": 1, "f1": 2}, "nll", "f1") == {"nll": 1.0, "f1": 2.0}
    with pytest.raises(BindError, match=r"^'metric' must be one of the .*\['nll'\]; got 'f1'$"):
        plain_metrics({"nll": 1}, "nll", "f1")
