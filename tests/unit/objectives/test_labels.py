"""Losses against labels of each kind, and the sentences about labels that do not fit."""

import re
from typing import Literal

import pytest
import torch
from torch import Tensor

from curricle.errors import DataError, SpecError
from curricle.objectives.base import label_check
from curricle.objectives.labels import (
    LabelLoss,
    LabelLossName,
    _BoundLabels,
    _check_labels,
    _loss,
)
from curricle.objectives.losses import binary_cross_entropy, cosine_distance, value_rows

ROWS, WIDTH = 5, 3


def outputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype)


RowLoss = Literal["cross_entropy", "binary", "squared_error", "cosine"]
"""Losses of single rows; those of pairs have tests of their own."""


def labels(loss: RowLoss) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if loss == "cross_entropy":
        return torch.randint(WIDTH, (ROWS,), generator=generator)
    drawn = torch.rand(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return drawn.round() if loss == "binary" else drawn


def formula(loss: RowLoss, student: Tensor, target: Tensor) -> Tensor:
    match loss:
        case "cross_entropy":
            return -student.log_softmax(-1).gather(-1, target[:, None]).sum()
        case "binary":
            right = torch.where(target == 1, student, -student)
            return -right.sigmoid().log().mean(-1).sum()
        case "squared_error":
            return (student - target).square().mean(-1).sum()
        case "cosine":
            product = (student * target).sum(-1)
            lengths = student.square().sum(-1).sqrt() * target.square().sum(-1).sqrt()
            return (1 - product / lengths).sum()


LOSSES: tuple[RowLoss, ...] = ("cross_entropy", "binary", "squared_error", "cosine")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_its_formula_and_is_not_negative(loss: RowLoss) -> None:
    total = _loss(loss, outputs(), labels(loss))
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(float(formula(loss, outputs(), labels(loss))), rel=1e-12)
    assert total >= 0


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_parts_add_up(loss: RowLoss) -> None:
    student, target = outputs(), labels(loss)
    parts = _loss(loss, student[:2], target[:2]) + _loss(loss, student[2:], target[2:])
    assert float(parts) == pytest.approx(float(_loss(loss, student, target)), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_is_computed_in_float32(loss: RowLoss) -> None:
    total = _loss(loss, outputs(torch.bfloat16), labels(loss))
    wide = _loss(loss, outputs(torch.bfloat16).float(), labels(loss))
    assert total.dtype in (torch.float32, torch.float64)
    assert float(total) == pytest.approx(float(wide), rel=1e-6)


def test_losses_of_values_are_zero_at_a_match() -> None:
    assert _loss("squared_error", outputs(), outputs()) == 0
    assert float(_loss("cosine", outputs(), 7 * outputs())) == pytest.approx(0, abs=1e-12)
    assert float(_loss("binary", outputs().sign() * 1e4, (outputs() > 0).double())) == 0


def test_one_value_needs_no_axis() -> None:
    student, target = outputs()[:, :1], labels("squared_error")[:, 0]
    with_axis = _loss("squared_error", student, target[:, None])
    assert torch.equal(_loss("squared_error", student, target), with_axis)


def test_missing_labels_have_no_loss_and_no_gradient() -> None:
    student, target = outputs().requires_grad_(), labels("binary")
    whole = binary_cross_entropy(student[:, :2], target[:, :2]) * 2 / WIDTH
    missing = target.clone()
    missing[:, 2] = torch.nan
    total = binary_cross_entropy(student, missing)
    assert total.item() == pytest.approx(whole.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(total, student)
    assert not gradient[:, 2].any()
    assert gradient.isfinite().all()


def test_a_zero_vector_has_distance_one() -> None:
    assert cosine_distance(torch.zeros(1, 3), torch.ones(1, 3)) == 1


FLOATS = (
    "'labels' must be whole numbers, one for each place with logits, to be "
    "classes; got torch.float32 of shape (5,); values are fitted by loss='squared_error' of "
    "LabelLoss or from_labels, and judged by metric='mean_squared_error'"
)
OTHER_SHAPE = (
    "'labels' must have the 3 values of the student's output at each position for loss='{}'; got "
    "shape {}"
)
OUT_OF_RANGE = (
    "'labels' must lie between 0 and 1 for loss='binary', or be NaN where missing; got 0 to 1.5 in "
    "the first batch"
)


@pytest.mark.parametrize(
    ("loss", "target", "sentence"),
    [
        ("cross_entropy", torch.zeros(ROWS), FLOATS),
        (
            "squared_error",
            torch.zeros(ROWS, dtype=torch.int64),
            OTHER_SHAPE.format("squared_error", (5,)),
        ),
        ("binary", torch.tensor([[0.0, 1.5, torch.nan]]), OUT_OF_RANGE),
        ("cosine", torch.zeros(ROWS, 2), OTHER_SHAPE.format("cosine", (5, 2))),
    ],
)
def test_labels_that_are_not_those_of_a_loss_are_refused(
    loss: LabelLossName, target: Tensor, sentence: str
) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        _check_labels(target, loss, WIDTH, " in the first batch")


def test_labels_of_each_loss_are_accepted() -> None:
    for loss in LOSSES:
        _check_labels(labels(loss), loss, WIDTH)
    _check_labels(torch.zeros(ROWS), "squared_error", 1)


def test_chunks_are_for_cross_entropy() -> None:
    with pytest.raises(SpecError, match=r"'chunk' has no effect with loss='binary'; choose 'cross"):
        LabelLoss(loss="binary", chunk=2)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        ("cross_entropy", torch.tensor([0, 3])),
        ("binary", torch.tensor([[0.0, 1.0, 1.5], [0.0, 1.0, 0.0]])),
        ("squared_error", torch.zeros(2, 2)),
        ("cosine", torch.zeros(2, 4)),
    ],
)
def test_labels_of_every_batch_are_checked(loss: LabelLossName, wrong: Tensor) -> None:
    check = label_check(_BoundLabels(declared=LabelLoss(loss=loss), width=3))
    assert check is not None
    check(torch.tensor([0, 2]) if loss == "cross_entropy" else torch.ones(2, 3))
    with pytest.raises(DataError, match="'labels' must"):
        check(wrong)


@pytest.mark.parametrize(
    ("student", "values"), [((2, 3), (3, 2)), ((6,), (2, 3)), ((2, 1), (1, 2)), ((4, 2), (4,))]
)
def test_values_of_other_shapes_are_refused(
    student: tuple[int, ...], values: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match="must have one value for each value of the student"):
        value_rows(torch.zeros(student), torch.zeros(values))


@pytest.mark.parametrize(("student", "values"), [((4, 1), (4,)), ((4,), (4, 1)), ((4, 2), (4, 2))])
def test_a_last_axis_of_one_value_may_be_missing(
    student: tuple[int, ...], values: tuple[int, ...]
) -> None:
    rows = value_rows(torch.zeros(student), torch.zeros(values))
    assert {tuple(tensor.shape) for tensor in rows} == {
        (4, max(student[-1], 1) if len(student) > 1 else 1)
    }
