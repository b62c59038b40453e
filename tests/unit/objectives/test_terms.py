"""What objectives of all kinds share."""

import pytest
import torch

from curricle.data.streams import Batch
from curricle.errors import BindError
from curricle.models.tapped import Place
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.outputs import FitLabels, MatchLogits
from curricle.objectives.terms import (
    Objective,
    Reads,
    num_positions,
    required,
    rows_with_data,
)


@pytest.mark.parametrize("found", [0, "", False, [], 3])
def test_what_is_there_is_returned_even_if_it_is_nothing(found: object) -> None:
    assert required(found, "name") is found


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        BindError, match=r"^'labels' must be given, since an objective reads it; got none$"
    ):
        required(None, "labels")


def test_nothing_is_read_unless_it_is_said() -> None:
    assert Reads() == Reads(student=(), teacher=(), student_logits=False, teacher_logits=False)


def test_reads_are_a_value() -> None:
    assert Reads(student=(Place("a"),)) == Reads(student=(Place("a", call=0),))
    assert len({Reads(), Reads(student_logits=True), Reads()}) == 2


@pytest.mark.parametrize(
    "objective",
    [MatchHidden(pair=LayerPair(student=1, teacher=1)), MatchLogits(), FitLabels()],
    ids=lambda objective: objective.kind,
)
def test_shipped_objectives_are_objectives(objective: object) -> None:
    assert isinstance(objective, Objective)


@pytest.mark.parametrize("other", [None, "labels", {"kind": "labels"}], ids=str)
def test_other_things_are_no_objectives(other: object) -> None:
    assert not isinstance(other, Objective)


@pytest.mark.parametrize(
    ("inputs", "leading", "expected"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), (2, 3), 12),
        (torch.zeros(4, 6), (2,), 4),
        (torch.zeros(4, 3, 6), (2, 3), 12),
        # An image of 3 channels has as many positions as the layer leaves it, not as it has rows.
        (torch.zeros(4, 3, 8, 8), (2, 5, 7), 140),
        (torch.zeros(4, 3, 8, 8), (2,), 4),
    ],
    ids=["tokens", "features", "sequences of features", "images", "images pooled"],
)
def test_positions_are_counted_as_the_model_sees_them(
    inputs: torch.Tensor, leading: tuple[int, ...], expected: int
) -> None:
    assert num_positions(Batch(inputs=inputs), leading) == expected


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_padding_is_not_counted(dtype: torch.dtype) -> None:
    valid = torch.tensor([[True, True, False], [True, False, False]])
    inputs = torch.zeros((2, 3) if dtype == torch.int64 else (2, 3, 4), dtype=dtype)
    assert num_positions(Batch(inputs=inputs, valid=valid), (2, 3)) == 3


def test_rows_with_data_come_in_order() -> None:
    states = torch.arange(12.0).reshape(2, 3, 2)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    valid = torch.tensor([[True, False, True], [False, False, True]])
    found = rows_with_data(states, Batch(inputs=tokens, valid=valid))
    assert found.tolist() == [[0.0, 1.0], [4.0, 5.0], [10.0, 11.0]]
    assert rows_with_data(states, Batch(inputs=tokens)).shape == (6, 2)
