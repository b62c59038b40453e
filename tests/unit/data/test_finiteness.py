"""Inputs that are not finite are named."""

import math

import pytest
import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.finiteness import non_finite_words

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.tensor([[1.0, 2.0], [NAN, 4.0]]), "'inputs' holds 1 nan of 4 numbers, .* example 1"),
        (torch.tensor([[INF], [-INF], [0.0]]), "'inputs' holds 2 infinite of 3 numbers, .* 0"),
        (torch.tensor([0.0, NAN, INF]), "'inputs' holds 1 nan and 1 infinite of 3 .* example 1"),
        ({"ids": torch.ones(2, 2).long(), "x": torch.full((2, 3), NAN)}, "'x' holds 6 nan of 6 "),
        ({"x": torch.full((1, 2), NAN), "y": torch.full((1, 1), INF)}, "'x' holds .*; 'y' holds "),
        ({"attention_mask": torch.full((1, 2), NAN)}, "'attention_mask' holds 2 nan of 2 "),
        (torch.full((2, 2), NAN, dtype=torch.complex64), "'inputs' holds 4 nan"),
    ],
)
def test_inputs_that_are_not_finite_are_named(
    inputs: Tensor | dict[str, Tensor], words: str
) -> None:
    found = non_finite_words(Batch(inputs=inputs), "step 3")
    assert_matches(found, rf"^; inputs of step 3 are not finite: {words}")


def assert_matches(text: str, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.ones(2, 3),
        torch.ones(2, 3).long(),
        torch.ones(2, 3, dtype=torch.bool),
        {"x": torch.ones(2, 3), "mask": torch.tensor([[0.0, -INF], [0.0, 0.0]])},
        torch.full((2, 3), torch.finfo().max),
    ],
)
def test_of_finite_inputs_nothing_is_said(inputs: Tensor | dict[str, Tensor]) -> None:
    assert not non_finite_words(Batch(inputs=inputs))


def test_labels_and_the_inputs_of_the_teacher_are_named_too() -> None:
    batch = Batch(
        inputs=torch.zeros(2, 3),
        teacher_inputs={"y": torch.tensor([[NAN], [0.0]])},
        labels=torch.tensor([0.0, INF]),
    )
    words = r"'y' holds 1 nan of 2 .* example 0; 'labels' holds 1 infinite of 2 .* example 1$"
    assert_matches(non_finite_words(batch), words)
