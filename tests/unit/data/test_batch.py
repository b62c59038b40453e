"""What a batch knows about itself, and how it is cut."""

import dataclasses
import inspect
import math

import pytest
import torch
from torch import Tensor

from curricle.data.batch import Batch, Rows
from curricle.data.blocks import concatenate
from curricle.data.streams import Stream
from curricle.errors import DataError


def vectors() -> Batch:
    return Batch(inputs=torch.arange(12.0).view(4, 3), labels=torch.tensor([0, 1, 1, 0]))


def sequences() -> Batch:
    """Return two sequences of three ids; places 1, 3 and 5 of the whole batch are scored."""
    return Batch(
        inputs=torch.arange(6).view(2, 3),
        labels=torch.tensor([10, 30, 50]),
        selected=torch.tensor([1, 3, 5]),
        valid=torch.tensor([[True, True, False], [True, True, True]]),
    )


def test_a_batch_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        vectors().labels = None  # type: ignore[misc]


@pytest.mark.parametrize(
    ("labels", "selected", "sentence"),
    [
        (torch.ones(5, 1).long(), None, r"one for each of the 4 examples; got shape \(5, 1\); l"),
        (torch.ones(3).long(), None, r"one for each of the 4 examples; got shape \(3,\)"),
        (torch.ones(4).long(), torch.tensor([1, 3]), r"of the 2 selected positions; got .*\(4,"),
    ],
)
def test_there_is_a_label_for_each_place_with_logits(
    labels: Tensor, selected: Tensor | None, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        # The shape checks of the tests would refuse it first.
        inspect.unwrap(Batch.__init__)(
            Batch.__new__(Batch), inputs=torch.zeros(4, 3), labels=labels, selected=selected
        )


def test_feature_vectors_count_one_token_an_example() -> None:
    batch = vectors()
    assert (batch.num_examples, batch.num_tokens, batch.has_positions) == (4, 4, False)


def test_sequences_count_their_positions() -> None:
    batch = Batch(inputs=torch.zeros(2, 3, dtype=torch.long), length=3)
    assert (batch.num_examples, batch.num_tokens, batch.has_positions) == (2, 6, True)


def test_padding_is_no_token() -> None:
    assert sequences().num_tokens == 5


def test_positions_are_those_of_the_data() -> None:
    assert vectors().positions == (4,)
    assert Batch(inputs={"input_ids": torch.zeros(2, 3)}).positions == (2, 3)
    assert Batch(inputs={"inputs_embeds": torch.zeros(2, 3, 5)}).positions == (2, 3)
    # A mask declares them for features whose axes may be anything.
    valid = torch.ones(2, 3, dtype=torch.bool)
    assert Batch(inputs=torch.zeros(2, 3, 5, 5), valid=valid).positions == (2, 3)


def test_one_position_an_example_is_scored_if_none_is_selected() -> None:
    assert vectors().num_selected == 4


def test_selected_positions_are_counted() -> None:
    assert sequences().num_selected == 3


def test_the_first_of_named_inputs_tells_the_size() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    batch = Batch(inputs={"input_ids": ids, "extra": torch.zeros(5)})
    assert batch.leading is ids


def test_one_part_is_the_batch_itself() -> None:
    batch = vectors()
    assert batch.split(1) == (batch,)


def test_parts_hold_the_examples_in_order() -> None:
    parts = vectors().split(2)
    assert [tensor(part.inputs)[:, 0].tolist() for part in parts] == [[0.0, 3.0], [6.0, 9.0]]
    assert [some(part.labels).tolist() for part in parts] == [[0, 1], [1, 0]]


def test_selected_positions_are_counted_anew_in_each_part() -> None:
    parts = sequences().split(2)
    assert [some(part.selected).tolist() for part in parts] == [[1], [0, 2]]
    assert [some(part.labels).tolist() for part in parts] == [[10], [30, 50]]


def test_the_mask_is_cut_with_the_examples() -> None:
    parts = sequences().split(2)
    assert [some(part.valid).tolist() for part in parts] == [
        [[True, True, False]],
        [[True, True, True]],
    ]


def test_every_named_input_is_cut() -> None:
    ids = torch.arange(6).view(2, 3)
    parts = Batch(inputs={"input_ids": ids, "attention_mask": ids + 10}).split(2)
    second = parts[1].inputs
    assert not isinstance(second, Tensor)
    assert [second[name].tolist() for name in second] == [[[3, 4, 5]], [[13, 14, 15]]]


def test_a_batch_without_labels_is_cut_without_them() -> None:
    batch = Batch(inputs=torch.arange(6).view(2, 3), selected=torch.tensor([0, 4]))
    assert [(part.labels, some(part.selected).tolist()) for part in batch.split(2)] == [
        (None, [0]),
        (None, [1]),
    ]
    assert [part.labels for part in Batch(inputs=torch.zeros(2, 3)).split(2)] == [None, None]


def test_parts_must_be_of_equal_size() -> None:
    with pytest.raises(
        DataError,
        match=r"^'gradient_accumulation_steps' must divide the 4 examples of a batch; got 3$",
    ):
        vectors().split(3)


@pytest.mark.parametrize("batch", [vectors(), sequences()], ids=["vectors", "sequences"])
def test_all_tensors_of_a_batch_move_together(batch: Batch) -> None:
    moved = batch.map(lambda tensor: tensor.to("meta"))
    for field in dataclasses.fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        assert (before is None) == (after is None)
        assert not isinstance(after, Tensor) or after.device.type == "meta"


def test_named_inputs_move_as_well() -> None:
    moved = Batch(inputs={"input_ids": torch.zeros(2, 3)}).map(lambda ids: ids.to("meta"))
    assert moved.leading.device.type == "meta"


def test_a_stream_is_known_by_what_it_can_do() -> None:
    class Constant:
        batch_size = 4
        tokens_per_batch = 4
        fingerprint = "constant"

        def batch(self, step: int) -> Batch:
            return vectors()

    assert isinstance(Constant(), Stream)
    assert not isinstance(object(), Stream)


def tensor(inputs: object) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


def some(found: Tensor | None) -> Tensor:
    assert found is not None
    return found


def test_chunks_hold_the_batch_in_order_and_may_end_short() -> None:
    first, last = vectors().chunks(3)
    assert (first.num_examples, last.num_examples) == (3, 1)
    assert torch.equal(torch.cat([first.leading, last.leading]), vectors().leading)
    assert last.labels is not None
    assert last.labels.tolist() == [0]
    assert [one.num_examples for one in vectors().chunks(9)] == [4]


IDS = torch.arange(8).view(4, 2)
PATCHES = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "positions"),
    [
        ({"pixel_values": PATCHES, "input_ids": IDS}, (4, 2)),
        ({"input_features": torch.zeros(4, 80, 30), "decoder_input_ids": IDS}, (4, 2)),
        ({"input_ids": torch.zeros(4, 9).long(), "decoder_inputs_embeds": PATCHES[:, 0]}, (4, 8)),
        ({"inputs_embeds": PATCHES[:, 0]}, (4, 8)),
    ],
    ids=["image and text", "speech", "decoder states", "embedded"],
)
def test_positions_are_those_that_are_scored(
    inputs: dict[str, Tensor], positions: tuple[int, ...]
) -> None:
    batch = Batch(inputs=inputs)
    assert batch.positions == positions
    assert (batch.has_positions, batch.num_read_tokens) == (True, math.prod(positions))


@pytest.mark.parametrize(
    "inputs",
    [
        PATCHES.to(torch.uint8),
        torch.zeros(4, 9, dtype=torch.uint8),
        torch.zeros(4, 9, dtype=torch.bool),
        PATCHES.long(),
        torch.zeros(4, 9),
        torch.zeros(4, 9, dtype=torch.int64),
    ],
    ids=["pixels", "bytes", "flags", "whole pixels", "features", "whole features"],
)
def test_no_data_type_declares_positions(inputs: Tensor) -> None:
    batch = Batch(inputs=inputs)
    assert (batch.has_positions, batch.num_read_tokens) == (False, 4)


def test_bytes_are_tokens_where_they_are_declared_to_be() -> None:
    read = torch.zeros(4, 9, dtype=torch.uint8)
    valid = torch.ones(4, 9, dtype=torch.bool)
    batches = [
        Batch(inputs={"input_ids": read}),
        Batch(inputs=read, valid=valid),
        Batch(inputs=read, selected=torch.tensor([3])),
        Batch(inputs=PATCHES, length=9),
    ]
    assert [batch.num_read_tokens for batch in batches] == [36] * 4


@pytest.mark.parametrize("name", ["pixel_values", "input_features"])
def test_parts_select_by_the_positions_of_the_labels(name: str) -> None:
    inputs = {name: PATCHES, "decoder_input_ids": torch.zeros(4, 6).long()}
    batch = Batch(inputs=inputs, labels=torch.arange(24), selected=torch.arange(24))
    parts = batch.split(2)
    assert [part.num_selected for part in parts] == [12, 12]
    assert parts[1].selected is not None
    assert parts[1].selected.tolist() == list(range(12))
    assert parts[1].labels is not None
    assert parts[1].labels.tolist() == list(range(12, 24))


def test_parts_of_images_select_by_the_length_that_is_said() -> None:
    batch = Batch(
        inputs=PATCHES, labels=torch.arange(4), selected=torch.arange(0, 64, 16), length=16
    )
    part = batch.split(2)[1].map(Tensor.clone)
    assert part.selected is not None
    assert (part.selected.tolist(), part.length, part.positions) == ([0, 16], 16, (2, 16))


@pytest.mark.parametrize("table", [torch.tensor(0.5), torch.zeros(1, 2)], ids=["number", "table"])
def test_what_belongs_to_no_example_cannot_be_cut(table: Tensor) -> None:
    batch = Batch(inputs={"input_ids": IDS, "scale": table})
    with pytest.raises(DataError, match=r"^'scale' must have a row for each of the 4 examples, so"):
        batch.split(2)
    assert batch.split(1) == (batch,)


def test_inputs_must_have_examples_and_what_is_selected_positions() -> None:
    with pytest.raises(DataError, match=r"^'inputs' must have the examples on their first axis"):
        Batch(inputs=torch.tensor(1))
    with pytest.raises(
        DataError, match=r"^'selected' must come with the positions .* \(4,\) do no"
    ):
        Batch(inputs=torch.zeros(4), selected=torch.tensor([1]))


def test_an_encoder_has_positions_and_padding_of_its_own() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {
        "input_ids": torch.zeros(2, 4).long(),
        "attention_mask": mask,
        "decoder_input_ids": torch.zeros(2, 3).long(),
        "decoder_attention_mask": torch.ones(2, 3).long(),
    }
    batch = Batch(inputs=inputs, selected=torch.tensor([1, 4]))
    encoder = batch.for_encoder
    assert (batch.positions, encoder.positions) == ((2, 3), (2, 4))
    assert (encoder.num_tokens, encoder.selected) == (6, None)
    assert isinstance(encoder.inputs, dict)
    assert set(encoder.inputs) == {"input_ids", "attention_mask"}
    assert encoder.for_encoder is encoder


def test_frames_of_sound_are_counted_by_the_encoder() -> None:
    inputs = {"input_features": torch.zeros(2, 5, 8), "decoder_input_ids": torch.zeros(2, 3).long()}
    encoder = Batch(inputs=inputs).for_encoder
    assert encoder.positions == (2,)
    rows = Rows.of("states", (2, 4), encoder)
    assert rows.take(torch.zeros(2, 4, 7), encoder).shape == (8, 7)


def test_parts_of_whole_groups_keep_them() -> None:
    batch = Batch(inputs=torch.arange(6), group=3, step=2)
    assert [part.group for part in (batch.map(torch.neg), *batch.split(2))] == [3, 3, 3]
    assert [part.group for part in batch.chunks(4)] == [1, 1]
    assert concatenate([batch, batch]).group == batch.for_encoder.group == 3


@pytest.mark.parametrize("group", [0, 4])
def test_examples_are_whole_groups(group: int) -> None:
    with pytest.raises(DataError, match=rf"'group' must be a divisor of the 6 .*; got {group}"):
        Batch(inputs=torch.arange(6), group=group)


def test_a_split_keeps_groups_together() -> None:
    with pytest.raises(DataError, match=r"divide the 2 groups of 3 examples .* together; got 3"):
        Batch(inputs=torch.arange(6), group=3).split(3)
