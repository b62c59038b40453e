"""The tensor in what a module has returned; models that return each form are in `test_hooked`."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from curricle.errors import BindError
from curricle.models.outputs import (
    first_tensor,
    heads_beside_logits,
    heads_note,
    is_span,
    logits_in,
    logits_note,
)

FIRST, SECOND = torch.zeros(1), torch.ones(1)
SCORES, OTHER = torch.zeros(2, 3), torch.zeros(2, 3, 4)


@dataclass
class Answer:
    note: str
    first: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    [FIRST, (FIRST, SECOND), [None, FIRST], {"a": 1, "b": FIRST}, Answer("x", FIRST, SECOND)],
    ids=lambda output: type(output).__name__,
)
def test_the_first_tensor_is_found(output: object) -> None:
    assert first_tensor(output, "x") is FIRST


@pytest.mark.parametrize("output", [Answer("x", FIRST, SECOND), {"a": FIRST, "logits": SECOND}])
def test_logits_are_found_by_name(output: object) -> None:
    assert logits_in(output) is SECOND


class Pair(NamedTuple):
    start: Tensor
    logits: Tensor


@dataclass
class Span:
    start_logits: Tensor
    end_logits: Tensor


class Holder:
    """An object of no known kind that names its logits."""

    logits = SCORES


@pytest.mark.parametrize("output", [Pair(OTHER, SCORES), Holder()], ids=["tuple", "object"])
def test_any_object_may_name_its_logits(output: object) -> None:
    assert logits_in(output) is SCORES


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        (SCORES,),
        (FIRST, SCORES),
        (SCORES, FIRST, None, (OTHER,)),
        {"out": SCORES, "ids": torch.ones(2, 3, dtype=torch.int64)},
    ],
    ids=["alone", "in a tuple", "after a loss", "before states", "beside ids"],
)
def test_the_only_scores_are_the_logits(output: object) -> None:
    assert logits_in(output) is SCORES


@pytest.mark.parametrize(
    ("output", "listed"),
    [
        ((OTHER, SCORES), r"item 0 \(2, 3, 4\), item 1 \(2, 3\)"),
        ({"digits": SCORES, "sex": SCORES}, r"digits \(2, 3\), sex \(2, 3\)"),
        ({"last_hidden_state": OTHER}, r"last_hidden_state \(2, 3, 4\)"),
        ({"image_embeds": SCORES}, r"image_embeds \(2, 3\)"),
        ({"pooler_output": SCORES}, r"pooler_output \(2, 3\)"),
        ({"logits": OTHER, "pred_boxes": OTHER}, r"logits \(2, 3, 4\), pred_boxes \(2, 3, 4\)"),
        ({"logits": [SCORES, SCORES]}, r"logits \(list\)"),
        ([{"boxes": SCORES}, {"boxes": SCORES}], r"item 0 \(dict\), item 1 \(dict\)"),
        ({"loss": FIRST}, r"loss \(1,\)"),
        ({}, r"nothing"),
    ],
)
def test_logits_are_never_one_of_several_outputs(output: object, listed: str) -> None:
    with pytest.raises(
        BindError,
        match=rf"^'logits' must be the only output of Net or have that name; got {listed}; wrap "
        rf"the model in a module that returns the logits, or name one of them by curricle.tapped"
        rf"\(model, output=...\), or the module that computes them by head=...$",
    ):
        logits_in(output, "Net")


@pytest.mark.parametrize(
    ("output", "note"),
    [
        (SCORES, ""),
        ({"logits": SCORES, "last_hidden_state": OTHER}, ""),
        (
            {"out": SCORES},
            "'out' of the output is taken for the logits, since nothing has that name",
        ),
        (
            (SCORES, FIRST),
            "'item 0' of the output is taken for the logits, since nothing has that name",
        ),
    ],
)
def test_what_was_taken_for_the_logits_is_noted(output: object, note: str) -> None:
    assert logits_note(output) == note


def test_heads_that_nothing_reads_are_noted() -> None:
    output = {"loss": FIRST, "logits": SCORES, "shape": SCORES, "color": SCORES}
    heads = heads_beside_logits(output)
    assert heads == ("shape", "color")
    assert heads_note(heads, ()) == "only 'logits' are taught, 'shape', 'color' are left out"
    assert heads_note(heads, {"shape"}) == (
        "only 'logits', 'shape' are taught, 'color' is left out"
    )
    assert not heads_note(heads, {"color", "shape"})
    assert not heads_beside_logits({"first": SCORES, "second": SCORES})
    assert not heads_beside_logits(SCORES)


@pytest.mark.parametrize(
    "output",
    [
        {"last_hidden_state": SCORES, "pooler_output": OTHER},
        {"ids": torch.ones(2, 3, dtype=torch.int64), "state": SCORES},
        (SCORES, OTHER),
    ],
    ids=["named", "only state", "first of a tuple"],
)
def test_a_state_is_found_among_other_outputs(output: object) -> None:
    assert first_tensor(output, "x") is SCORES


@pytest.mark.parametrize(
    ("output", "listed"),
    [
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.int64), "tokens": OTHER, "text": SCORES},
            r"input_ids \(2, 3\), tokens \(2, 3, 4\), text \(2, 3\)",
        ),
        ((torch.ones(2, dtype=torch.int64), SCORES), r"item 0 \(2,\), item 1 \(2, 3\)"),
    ],
)
def test_a_state_is_never_one_of_several_outputs(output: object, listed: str) -> None:
    with pytest.raises(
        BindError, match=rf"^tap 'pool' must give one state; got {listed}; name a module inside"
    ):
        first_tensor(output, "pool")


def test_something_without_a_tensor_is_refused() -> None:
    with pytest.raises(BindError, match=r"^tap 'blocks.1' must give a tensor; got int$"):
        first_tensor(3, "blocks.1")


def test_a_prediction_beside_the_logits_is_no_box() -> None:
    assert logits_in({"logits": SCORES, "pred_labels": SCORES.argmax(-1)}) is SCORES


def test_a_single_column_is_no_candidate_for_the_logits() -> None:
    value = torch.zeros(2, 1)
    assert logits_in((SCORES, value)) is SCORES
    assert logits_in((value, SCORES)) is SCORES
    assert "'item 1' of the output is taken" in logits_note((value, SCORES))


def test_start_and_end_logits_are_two_rows_of_one_tensor() -> None:
    output = Span(SCORES, SCORES + 1)
    logits = logits_in(output)
    assert torch.equal(logits[:, 0], SCORES)
    assert torch.equal(logits[:, 1], SCORES + 1)
    assert is_span(output)
    assert logits_note(output) == (
        "start and end logits are taught as two distributions over the positions"
    )
    assert not is_span({"logits": SCORES, "start_logits": SCORES, "end_logits": SCORES})
    assert not is_span({"start_logits": SCORES})
    assert not is_span(SCORES)
