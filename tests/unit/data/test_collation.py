"""What a loader collates, as batches."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curricle.data.batch import Batch
from curricle.data.dataloaders import LoaderStream, stream
from curricle.errors import DataError

END = 2
"""A token that serves as padding and as the end of a sentence."""


class Items(Dataset[Any]):
    """A data set of ready items."""

    def __init__(self, items: Sequence[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def of_item(item: object, *, next_token: bool = False, rows: int = 2) -> Batch:
    """Return the batch of a loader that collates to the given item."""

    def collate(_: list[object]) -> object:
        return item

    loader: DataLoader[Any] = DataLoader(Items(range(rows)), batch_size=rows, collate_fn=collate)
    return stream(loader, next_token=next_token).batch(0)


def labels(batch: Batch) -> list[int]:
    assert batch.labels is not None
    return batch.labels.tolist()


def selected(batch: Batch) -> list[int]:
    assert batch.selected is not None
    return batch.selected.tolist()


def test_a_batch_passes_unchanged() -> None:
    batch = Batch(inputs=torch.ones(2, 3), labels=torch.tensor([0, 1]))
    assert of_item(batch) is batch


def test_a_pair_is_inputs_and_labels() -> None:
    batch = of_item((torch.ones(2, 3), torch.tensor([4, 5])))
    assert (labels(batch), batch.selected, batch.valid) == ([4, 5], None, None)


@pytest.mark.parametrize("item", [torch.ones(2, 3), [torch.ones(2, 3)], {"x": torch.ones(2, 3)}])
def test_inputs_alone_have_no_labels(item: object) -> None:
    batch = of_item(item)
    assert (batch.leading.shape, batch.labels) == ((2, 3), None)


def test_named_inputs_begin_with_the_token_ids_and_keep_the_attention_mask() -> None:
    ids, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
    batch = of_item({"attention_mask": mask, "input_ids": ids, "labels": torch.tensor([0, 1])})
    assert isinstance(batch.inputs, dict)
    assert list(batch.inputs) == ["input_ids", "attention_mask"]
    assert batch.valid is not None
    assert batch.valid.tolist() == [[True, True], [True, False]]
    assert (labels(batch), batch.selected) == ([0, 1], None)


def test_named_inputs_may_come_in_a_pair_with_labels() -> None:
    batch = of_item(({"input_ids": torch.ones(2, 3).long()}, torch.tensor([1, 0])))
    assert labels(batch) == [1, 0]


def test_ignored_labels_are_not_selected() -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 5]])
    batch = of_item({"input_ids": ids, "labels": torch.tensor([[-100, 6, -100], [8, -100, 3]])})
    assert (selected(batch), labels(batch)) == ([1, 3, 5], [6, 8, 3])


def test_labels_of_padding_are_not_selected() -> None:
    ids, mask = torch.tensor([[5, 6], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
    batch = of_item({"input_ids": ids, "labels": ids, "attention_mask": mask})
    assert (selected(batch), labels(batch)) == ([0, 1, 2], [5, 6, 7])


def test_next_token_labels_are_shifted_once() -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 5]])
    batch = of_item({"input_ids": ids, "labels": ids}, next_token=True)
    assert (selected(batch), labels(batch)) == ([0, 1, 3, 4], [6, 7, 9, 5])


def test_next_token_labels_agree_with_the_loss_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator)
    wanted = torch.randint(11, (2, 5), generator=generator)
    wanted[0, :2], wanted[1, 3] = -100, -100
    # The reference: shift the logits left of the labels, then mean over what is not ignored.
    reference = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 11), wanted[:, 1:].reshape(-1), ignore_index=-100
    )
    ids = torch.zeros(2, 5, dtype=torch.long)
    batch = of_item({"input_ids": ids, "labels": wanted}, next_token=True)
    found = logits.reshape(-1, 11)[torch.tensor(selected(batch))]
    assert torch.nn.functional.cross_entropy(found, torch.tensor(labels(batch))) == reference


def test_padding_with_the_end_token_does_not_hide_the_real_end() -> None:
    ids, mask = torch.tensor([[5, END, END], [7, 8, END]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    item = {"input_ids": ids, "labels": ids, "attention_mask": mask}
    batch = of_item(item, next_token=True)
    assert (selected(batch), labels(batch)) == ([0, 3, 4], [END, 8, END])


def test_left_padding_predicts_nothing() -> None:
    ids, mask = torch.tensor([[END, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    batch = of_item({"input_ids": ids, "labels": ids, "attention_mask": mask}, next_token=True)
    assert (selected(batch), labels(batch)) == ([1, 3, 4], [6, 8, 9])


def test_labels_that_are_the_inputs_are_told_of_the_shift() -> None:
    ids = torch.arange(12).view(2, 6)
    item = {"input_ids": ids, "labels": ids.masked_fill(ids == 7, -100)}
    with pytest.raises(
        DataError,
        match=r"^'next_token=True' must be given where 'labels' are the input ids, .*; all 11 lab",
    ):
        of_item(item)
    assert of_item(item, next_token=True).num_selected == 9


def drawn_ids(seed: int, *, classes: int = 50) -> Tensor:
    return torch.randint(classes, (4, 9), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("end", [-100, 7, 0])
@pytest.mark.parametrize("form", ["pair", "mapping", "prompt", "padded", "decoder"])
def test_labels_that_are_shifted_already_are_not_shifted_again(
    seed: int, end: int, form: str
) -> None:
    ids = drawn_ids(seed)
    shifted = torch.cat([ids[:, 1:], torch.full((4, 1), end)], dim=1)
    mask = torch.arange(9) < torch.tensor([[9], [6], [5], [7]])
    item = {
        "pair": (ids, shifted),
        "mapping": {"input_ids": ids, "labels": shifted},
        "prompt": {"input_ids": ids, "labels": shifted.where(torch.arange(9) > 3, -100)},
        "padded": {"input_ids": ids, "labels": shifted, "attention_mask": mask.long()},
        "decoder": {"input_ids": ids + 1, "decoder_input_ids": ids, "labels": shifted},
    }[form]
    sentence = (
        r"^'labels' must be the token at their own position where 'next_token=True' .*; all "
        r"\d+ compared labels .* are the token after it, .*; leave 'next_token' out, or give"
    )
    with pytest.raises(DataError, match=sentence):
        of_item(item, next_token=True, rows=4)
    assert of_item(item, rows=4).num_selected > 8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("period", [1, 2, 3, None])
def test_labels_that_are_the_ids_are_shifted_whatever_the_ids_are(
    seed: int, period: int | None
) -> None:
    ids = drawn_ids(seed)
    if period is not None:
        ids = ids[:, :period].repeat(1, 9)[:, :9]
    assert of_item((ids, ids), next_token=True, rows=4).num_selected == 32
    ignored = ids.masked_fill(torch.arange(9) < 3, -100)
    assert of_item((ids, ignored), next_token=True, rows=4).num_selected == 24


def test_labels_that_do_not_tell_whether_they_are_shifted_are_taken() -> None:
    ids = drawn_ids(0)
    shifted = ids.roll(-1, dims=1)
    constant = torch.full((4, 9), 3)
    few = shifted.masked_fill(torch.arange(9) > 1, -100).masked_fill(
        torch.tensor([[False], [False], [False], [True]]), -100
    )
    other = shifted.clone()
    other[1, 4] += 1
    pairs = {
        "constant": (constant, constant),
        "nearly constant": (constant.index_fill(1, torch.tensor([4]), 5), constant),
        "fewer than eight": (ids, few),
        "one is another": (ids, other),
        "corrupted": (ids, drawn_ids(1)),
    }
    for inputs, wanted in pairs.values():
        assert of_item((inputs, wanted), next_token=True, rows=4).num_selected


def test_labels_of_masked_and_of_shifted_tokens_are_taken() -> None:
    ids = torch.arange(12).view(2, 6)
    masked = ids.masked_fill(ids % 5 == 0, 103)
    for inputs, wanted in ((masked, ids), (ids, ids.roll(-1, dims=1))):
        assert of_item({"input_ids": inputs, "labels": wanted}).num_selected == 12
    # All of a few masked tokens may have been left as they were.
    assert of_item((ids, ids.masked_fill(ids % 5 > 0, -100))).num_selected == 3
    # A `Batch` says itself what is predicted where.
    copied = Batch(inputs=ids, labels=ids.flatten(), selected=torch.arange(12))
    assert of_item(copied) is copied


def test_labels_that_are_all_ignored_give_an_empty_selection() -> None:
    ids = torch.ones(2, 3).long()
    batch = of_item({"input_ids": ids, "labels": torch.full((2, 3), -100)})
    assert (selected(batch), labels(batch)) == ([], [])


@pytest.mark.parametrize("name", ["label", "label_ids"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.tensor([0, 1]), r"of shape \(2,\)"),
        (torch.ones(2, 3).long(), r"of shape \(2, 3\)"),
        (torch.rand(2), r"of shape \(2,\)"),
        (["a", "b"], "list"),
    ],
    ids=["classes", "positions", "values", "texts"],
)
def test_labels_under_the_name_of_a_column_are_told_to_be_renamed(
    name: str, given: object, told: str
) -> None:
    ids = torch.ones(2, 3).long()
    sentence = (
        rf"^'labels' must be the name of the labels in a mapping; got '{name}' {told}; "
        rf"batch\['labels'\] = batch.pop\('{name}'\) in the collate function renames them"
    )
    for item in ({"input_ids": ids, name: given}, ({"input_ids": ids, name: given},)):
        with pytest.raises(DataError, match=sentence):
            of_item(item)


@pytest.mark.parametrize("name", ["label", "label_ids"])
def test_an_input_may_have_the_name_of_a_column_beside_labels(name: str) -> None:
    inputs = {"input_ids": torch.ones(2, 3).long(), name: torch.tensor([5, 6])}
    classes = torch.tensor([0, 1])
    for item in ({**inputs, "labels": classes}, (inputs, classes), Batch(inputs=inputs)):
        batch = of_item(item)
        assert not isinstance(batch.inputs, Tensor)
        assert name in batch.inputs


IDS = torch.ones(2, 3).long()
HOT = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0]])


TEXTS = (
    r"; texts are read by the 'collate_fn' of the DataLoader: .*TextCollator\(tokenizer\), .*; "
    r"curricle.text_stream makes next-token data of texts$"
)


@pytest.mark.parametrize(
    ("item", "next_token", "sentence"),
    [
        ("text", False, r"must be a Batch, inputs, .*; got str"),
        ((IDS, IDS, IDS), False, r"must be a Batch, inputs, .*; got tuple"),
        ({}, False, r"must be a Batch, inputs, .*; got dict"),
        ({"input_ids": IDS, "name": "a"}, False, "'name' must be a tensor .*; got str"),
        ((IDS, [1, 2]), False, r"'labels' must be a tensor; got list; torch.tensor\(...\) makes"),
        ((IDS, HOT.numpy()), False, r"got ndarray; torch.as_tensor\(...\) makes one$"),
        (["a", "b", "c"], False, TEXTS),
        (("a", "b"), False, TEXTS),
        ([("a", "b", "c"), IDS[0]], False, TEXTS),
        ({"text": ["a", "b"], "label": IDS[0]}, False, "'text' must be a tensor .*" + TEXTS),
        ([{"text": "a"}] * 3, False, TEXTS),
        ([{"input_ids": IDS[0]}] * 3, False, "these are rows, of which torch.utils.data.default_"),
        ({"input_ids": [[1], [2, 3]]}, False, r"WithPadding\(tokenizer\) pads token ids$"),
        (
            ({"input_ids": IDS}, IDS[:, :1]),
            False,
            r"got shape \(2, 1\); labels.squeeze\(1\) gives one an example$",
        ),
        ((IDS, IDS[:, :1]), True, r"one a position of \(2, 3\); got shape \(2, 1\)$"),
        (
            ({"input_ids": IDS}, HOT),
            False,
            r"got shape \(2, 4\); they are one-hot, and labels.argmax\(-1\) gives",
        ),
        (
            ({"input_ids": IDS}, HOT.bool()),
            False,
            r"got shape \(2, 4\); they are one-hot, and labels.argmax\(-1\)",
        ),
        ((IDS, HOT[:, None]), False, r"got shape \(2, 1, 4\); they are one-hot, and labels.argmax"),
        (({"input_ids": IDS}, IDS[:, :2]), False, r"one a position of \(2, 3\); got .* \(2, 2\)"),
        ((IDS, IDS[0]), False, r"one an example or .*; got shape \(3,\)"),
        ((IDS, torch.tensor(1)), False, r"one an example or .*; got shape \(\)"),
        ((IDS, torch.tensor([1, -100])), False, "of whole examples cannot be ignored; got -100"),
        ((IDS, torch.tensor([1, 0])), True, "'next_token' must find labels .*; got one an exa"),
        (
            {"pixel_values": torch.zeros(2, 3)},
            True,
            "'next_token' must find labels of every position, or token ids .*; got none",
        ),
        (Batch(inputs=IDS), True, "'next_token' has no effect on a `Batch`"),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)},
            False,
            r"'attention_mask' must have the axes example and position; got \(2, 1, 3, 3\)",
        ),
    ],
)
def test_items_that_cannot_be_read_are_refused(
    item: object, next_token: bool, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        of_item(item, next_token=next_token)


# --- positions of the labels ----------------------------------------------------------------------

SOURCE = torch.arange(8).view(2, 4)
TARGET = torch.tensor([[5, 6, 7, -100], [8, -100, -100, -100]])
DECODED = {"input_ids": SOURCE, "attention_mask": torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])}


@pytest.mark.parametrize("name", ["decoder_input_ids", "decoder_inputs_embeds"])
def test_the_mask_of_an_encoder_says_nothing_of_the_labels(name: str) -> None:
    read = SOURCE + 1 if name == "decoder_input_ids" else torch.zeros(2, 4, 3)
    batch = of_item({**DECODED, name: read, "labels": TARGET})
    assert (selected(batch), labels(batch)) == ([0, 1, 2, 4], [5, 6, 7, 8])
    assert batch.valid is not None
    assert batch.valid.sum(1).tolist() == [3, 1]


def test_the_mask_of_a_decoder_says_what_is_scored() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    item = {"decoder_input_ids": SOURCE + 1, "decoder_attention_mask": mask, "labels": TARGET}
    batch = of_item({**DECODED, **item})
    assert selected(batch) == [0, 1, 4]
    assert batch.valid is not None
    assert torch.equal(batch.valid, mask.bool())


def test_labels_of_a_decoder_have_its_positions() -> None:
    with pytest.raises(DataError, match=r"one a position of \(2, 3\); got shape \(2, 4\)"):
        of_item({**DECODED, "decoder_input_ids": SOURCE[:, :3], "labels": TARGET})


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 80, 30), (2, 5)], ids=str)
def test_labels_give_the_positions_that_inputs_do_not_have(shape: tuple[int, ...]) -> None:
    batch = of_item({"features": torch.zeros(shape), "labels": TARGET})
    assert (batch.positions, selected(batch)) == ((2, 4), [0, 1, 2, 4])
    assert batch.split(2)[1].num_selected == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.tensor([[3], [4]]), r"\(2, 1\); got \(2, 9\); labels.squeeze\(1\) gives one an"),
        (HOT, r"\(2, 4\); got \(2, 9\); they are one-hot, and labels.argmax\(-1\) gives"),
        (torch.tensor([[3, 4], [4, 2]]), r"\(2, 2\); got \(2, 9\)$"),
    ],
)
def test_a_mask_is_not_to_blame_for_the_form_of_the_labels(wrong: Tensor, words: str) -> None:
    item = {"values": torch.zeros(2, 9), "attention_mask": torch.ones(2, 9), "labels": wrong}
    with pytest.raises(DataError, match=rf"must have the positions of 'labels', {words}"):
        of_item(item)


@pytest.mark.parametrize("name", ["input_values", "input_features"])
def test_transcripts_of_sound_are_refused_with_the_objective_that_works(name: str) -> None:
    item = {name: torch.zeros(2, 9), "attention_mask": torch.ones(2, 9), "labels": TARGET}
    with pytest.raises(DataError, match=r"; transcripts, as CTC .* MatchLogits matches"):
        of_item(item)


def test_more_labels_than_numbers_of_an_example_are_read() -> None:
    assert of_item((torch.zeros(2, 3), torch.arange(10).view(2, 5))).num_selected == 10


def test_a_mask_must_have_the_positions_of_labels_or_ids() -> None:
    mask = torch.ones(2, 9)
    for item, owner in (
        ({"values": torch.zeros(2, 9), "labels": TARGET}, "'labels', "),
        ({"input_ids": SOURCE}, "the token ids, "),
    ):
        with pytest.raises(DataError, match=rf"the positions of {owner}\(2, 4\); got \(2, 9\)$"):
            of_item({**item, "attention_mask": mask})


@pytest.mark.parametrize(
    "mask",
    [[[1, 1, 1, 0], [1, 1, 1, 1]], [[0, 0, 1, 1], [0, 1, 1, 1]], [[1, 1, 1, 1]] * 2],
    ids=["padded right", "padded left", "no padding"],
)
def test_a_mask_in_the_place_of_labels_is_refused(mask: list[list[int]]) -> None:
    with pytest.raises(
        DataError, match=r"like an attention mask; a mapping tells them apart: {'inp"
    ):
        of_item((SOURCE + 5, torch.tensor(mask)))


@pytest.mark.parametrize("second", [[[1, 0, 1, 0], [0, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]]])
def test_labels_of_two_classes_are_no_mask(second: list[list[int]]) -> None:
    assert of_item((SOURCE + 5, torch.tensor(second))).num_selected == 8


# --- declared positions ---------------------------------------------------------------------------

FEATURES = torch.zeros(2, 3)
FLOATS = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))


def read(item: object, **options: Any) -> LoaderStream:
    """Return the stream of a loader that collates to the given item."""

    def collate(_: list[object]) -> object:
        return item

    loader: DataLoader[Any] = DataLoader(Items(range(2)), batch_size=2, collate_fn=collate)
    return stream(loader, **options)


@pytest.mark.parametrize(
    ("item", "positions", "of_positions"),
    [
        (FEATURES, (2,), None),
        (IDS, (2,), None),
        ({"input_ids": IDS}, (2, 3), None),
        ({"x": FEATURES, "attention_mask": IDS}, (2, 3), None),
        ((FEATURES, torch.tensor([0, 1])), (2,), False),
        ((FEATURES, torch.rand(2)), (2,), False),
        ((FEATURES, torch.rand(2, 4)), (2,), False),
        (({"input_ids": IDS}, torch.rand(2, 4)), (2, 3), False),
        (({"input_ids": IDS}, FLOATS), (2, 3), True),
        ((FEATURES, torch.tensor([[0, 2, 1, 3], [1, 0, 2, 2]])), (2, 4), True),
    ],
    ids=[
        "features",
        "unnamed ids",
        "ids",
        "mask",
        "classes",
        "values",
        "several values",
        "several values of a text",
        "values of tokens",
        "classes of positions",
    ],
)
def test_positions_are_decided_by_names_masks_and_labels(
    item: object, positions: tuple[int, ...], of_positions: bool | None
) -> None:
    loaded = read(item)
    batch = loaded.batch(0)
    assert batch.positions == positions
    if of_positions is not None:
        assert (batch.selected is not None) == of_positions
    if loaded.note == "":
        assert batch.leading.is_floating_point()
        assert (len(positions), batch.leading.ndim) == (1, 2)
        assert batch.labels is None or batch.labels[:1].numel() == 1
        return
    count = f"as {positions[1]} positions" if len(positions) > 1 else "as a whole"
    assert loaded.note.startswith(f"data: examples are read {count}, with")
    words = {None: "without labels", True: "for each selected position", False: "for each example"}
    assert f"{words[of_positions]}, by the form of the first batch; " in loaded.note


@pytest.mark.parametrize(
    ("shape", "label", "is_noted"),
    [
        ((3,), torch.tensor([0, 1]), False),
        ((3,), torch.tensor([0.0, 1.0]), False),
        ((1, 4, 4), torch.tensor([0, 1]), False),
        ((1, 4, 4), torch.tensor([0.0, 1.0]), True),
        ((5, 3), torch.tensor([0, 1]), True),
    ],
)
def test_the_note_on_positions_is_left_out_where_nothing_else_is_likely(
    shape: tuple[int, ...], label: torch.Tensor, is_noted: bool
) -> None:
    assert bool(read((torch.zeros(2, *shape), label)).note) == is_noted


def test_several_whole_numbers_of_an_example_are_declared() -> None:
    several = torch.tensor([[1, 0, 1], [0, 1, 1]])
    batch = read((FEATURES, several), positions="example").batch(0)
    assert batch.labels is not None
    assert (batch.labels.tolist(), batch.selected) == (several.tolist(), None)
    text = {"input_ids": IDS, "attention_mask": IDS, "labels": several}
    batch = read(text, positions="example").batch(0)
    assert (batch.positions, batch.num_selected) == ((2, 3), 2)


def test_unnamed_tokens_are_declared() -> None:
    loaded = read(IDS, positions="token")
    assert (loaded.batch(0).positions, loaded.tokens_per_batch) == ((2, 3), 6)
    classes = read((IDS, torch.tensor([0, 1])), positions="token").batch(0)
    assert (classes.positions, classes.num_selected) == ((2, 3), 2)
    floats = read((FEATURES, FLOATS), positions="token").batch(0)
    assert (floats.positions, floats.num_selected) == ((2, 3), 6)
    assert floats.labels is not None
    assert torch.equal(floats.labels, FLOATS.flatten())


def test_only_a_decision_that_is_overridden_changes_the_fingerprint() -> None:
    plain, declared = read({"input_ids": IDS}), read({"input_ids": IDS}, positions="token")
    assert plain.fingerprint == declared.fingerprint
    assert read(IDS).fingerprint != read(IDS, positions="token").fingerprint


@pytest.mark.parametrize(
    ("item", "options", "sentence"),
    [
        (IDS, {"positions": "tokens"}, r"'positions' must be 'example', 'token' or None; got 'tok"),
        (torch.zeros(2), {"positions": "token"}, r"must be 'example' for inputs of shape \(2,\)"),
        (
            Batch(inputs=IDS),
            {"positions": "token"},
            "'positions' has no effect on a `Batch`, which declares them itself",
        ),
        (
            (IDS, IDS + 1),
            {"positions": "example", "next_token": True},
            "'next_token' must find labels of every position; got one an example",
        ),
        ({"x": IDS, "teacher_inputs": [1]}, {}, "'teacher_inputs' must be a tensor; got list"),
        (
            {"x": IDS, "teacher_inputs": {"y": "a"}},
            {},
            "'y' must be a tensor for a model to read it; got str",
        ),
        ({"x": IDS, "alignment": 3}, {}, "'alignment' must be a tensor; got int"),
    ],
)
def test_positions_and_teacher_inputs_that_cannot_be_read_are_refused(
    item: object, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        # The shape checks of the tests would refuse some of them first.
        inspect.unwrap(stream)(
            DataLoader(Items(range(2)), batch_size=2, collate_fn=lambda _: item), **options
        )


def test_the_teacher_s_inputs_are_read_apart() -> None:
    other, alignment = torch.arange(8).view(2, 4), torch.tensor([[0, 1, 3], [0, 2, 3]])
    item = {
        "input_ids": IDS,
        "labels": IDS + 4,
        "teacher_inputs": {"attention_mask": torch.ones(2, 4), "input_ids": other},
        "alignment": alignment,
    }
    loaded = read(item)
    batch = loaded.batch(0)
    assert not isinstance(batch.inputs, Tensor)
    assert list(batch.inputs) == ["input_ids"]
    side = batch.for_teacher
    assert side.selected is not None
    assert side.selected.tolist() == [0, 1, 3, 4, 6, 7]
    assert read({**item, "alignment": alignment.flip(0)}).fingerprint != loaded.fingerprint
    assert read({**item, "teacher_inputs": other + 1}).fingerprint != loaded.fingerprint
