"""Rows of a state that count, and the check of positions."""

import re

import pytest
import torch

from curricle.data.batch import Batch, Inputs, Rows, check_positions
from curricle.errors import BindError, CurricleError, DataError

TOKENS, FEATURES = {"input_ids": torch.zeros(4, 3).long()}, torch.zeros(4, 6)
IMAGES = torch.zeros(4, 3, 8, 8)
VALID = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()


@pytest.mark.parametrize(
    ("inputs", "leading", "expected"),
    [
        (TOKENS, (4, 3), 12),
        (TOKENS, (4,), 4),
        (TOKENS, (4, 5), 20),
        (TOKENS, (12,), 12),
        (FEATURES, (4,), 4),
        (torch.zeros(4, 3, 6), (4, 3), 12),
        # The positions of an image are those of the layer's output, not rows of pixels.
        (IMAGES, (4, 5, 7), 140),
        (IMAGES, (4,), 4),
    ],
    ids=[
        "tokens",
        "tokens pooled",
        "tokens resampled",
        "tokens in one row",
        "features",
        "sequences of features",
        "images",
        "images pooled",
    ],
)
def test_rows_are_counted_as_the_model_sees_them(
    inputs: Inputs, leading: tuple[int, ...], expected: int
) -> None:
    batch = Batch(inputs=inputs)
    rows = Rows.of("'tap'", leading, batch)
    assert rows.count(batch) == expected
    assert rows.take(torch.zeros(*leading, 2), batch).shape == (expected, 2)
    assert rows.count(batch.split(2)[0]) == expected // 2


def test_rows_of_tokens_follow_the_length_of_each_batch() -> None:
    rows = Rows.of("'tap'", (4, 3), Batch(inputs=TOKENS))
    longer = Batch(inputs={"input_ids": torch.zeros(4, 5).long()})
    assert rows.count(longer) == 20
    assert rows.take(torch.zeros(4, 5, 2), longer).shape == (20, 2)


@pytest.mark.parametrize("inputs", [TOKENS, torch.zeros(4, 3, 5)], ids=["tokens", "features"])
@pytest.mark.parametrize(
    ("leading", "expected"), [((4, 3), 6), ((12,), 6), ((4,), 4)], ids=["each", "one row", "pooled"]
)
def test_padding_is_not_counted_where_it_has_positions(
    inputs: Inputs, leading: tuple[int, ...], expected: int
) -> None:
    batch = Batch(inputs=inputs, valid=VALID)
    rows = Rows.of("'tap'", leading, batch)
    assert rows.count(batch) == expected
    assert rows.take(torch.zeros(*leading, 2), batch).shape == (expected, 2)


def test_rows_with_data_come_in_order() -> None:
    states = torch.arange(24.0).reshape(4, 3, 2)
    batch = Batch(inputs=TOKENS, valid=VALID)
    actual = Rows.of("'tap'", (4, 3), batch).take(states, batch)
    assert actual[:, 0].tolist() == [0, 2, 6, 12, 14, 16]


def test_padding_must_be_told_in_the_positions_of_a_state() -> None:
    with pytest.raises(
        BindError,
        match=r"^'tap' must have the positions \(4, 3\) of the padded data, or a single "
        r"position per example; got \(4, 5\)$",
    ):
        Rows.of("'tap'", (4, 5), Batch(inputs=TOKENS, valid=VALID))


@pytest.mark.parametrize("leading", [(), (3, 4), (6,)], ids=str)
def test_examples_must_lie_on_the_first_axis(leading: tuple[int, ...]) -> None:
    with pytest.raises(BindError, match=r"^'tap' must have the 4 examples on its first axis; got"):
        Rows.of("'tap'", leading, Batch(inputs=TOKENS))


def test_another_number_of_positions_than_was_counted_is_refused() -> None:
    batch = Batch(inputs=IMAGES)
    rows = Rows.of("'tap'", (4, 5, 7), batch)
    with pytest.raises(
        DataError, match=r"^a state must have the same positions .* 140 .*; got 120; posi"
    ):
        rows.take(torch.zeros(4, 5, 6, 2), batch)


@pytest.mark.parametrize("actual", [(4, 3), (12,), None], ids=str)
def test_positions_of_the_data_are_taken(actual: tuple[int, ...] | None) -> None:
    check_positions("'logits'", actual, Batch(inputs=TOKENS))


@pytest.mark.parametrize("actual", [(4, 6), (3, 4), (4,), (4, 3, 1)], ids=str)
@pytest.mark.parametrize("kind", [BindError, DataError])
def test_other_positions_are_refused(actual: tuple[int, ...], kind: type[CurricleError]) -> None:
    sentence = (
        rf"^'logits' must have the positions \(4, 3\) of the data; got {re.escape(str(actual))}"
    )
    with pytest.raises(kind, match=sentence):
        check_positions("'logits'", actual, Batch(inputs=TOKENS), kind=kind)


@pytest.mark.parametrize("name", ["decoder_input_ids", "decoder_inputs_embeds"])
def test_states_of_an_encoder_are_refused_where_a_decoder_is_scored(name: str) -> None:
    ids = torch.zeros(4, 3).long()
    read = ids if name == "decoder_input_ids" else torch.zeros(4, 3, 2)
    batch = Batch(inputs={"input_ids": torch.zeros(4, 5).long(), name: read})
    assert Rows.of("'tap'", (4, 3), batch).count(batch) == 12
    with pytest.raises(
        BindError, match=r"the positions \(4, 3\) of the decoder, .*; got \(4, 5\);"
    ):
        Rows.of("'tap'", (4, 5), batch)


def test_a_state_of_equally_many_but_other_positions_is_refused() -> None:
    batch = Batch(inputs=TOKENS)
    rows = Rows.of("'tap'", (4, 3), batch)
    with pytest.raises(
        DataError, match=r"^a state must have the positions \(4, 3\) of the data; got"
    ):
        rows.take(torch.zeros(3, 4, 2), batch)


def test_undeclared_positions_are_refused_with_the_way_to_declare_them() -> None:
    ids = torch.zeros(4, 3).long()
    batch, remedy = Batch(inputs=ids), r"; positions='token' of curricle.stream, or 'length' of a"
    with pytest.raises(BindError, match=remedy):
        Rows.of("'tap'", (12,), batch)
    rows = Rows.of("'tap'", (4, 3), batch)
    with pytest.raises(DataError, match=remedy):
        rows.take(torch.zeros(4, 5, 2), batch)
    declared = Batch(inputs=ids, length=3)
    assert Rows.of("'tap'", (12,), declared).count(declared) == 12
