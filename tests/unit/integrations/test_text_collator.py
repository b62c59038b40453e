"""Rows of texts as batches: groups of examples, scores, and positions of two tokenizers."""

from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

import curricle
from curricle.errors import BindError, DataError
from curricle.integrations.sentence_transformers import TextCollator

SPECIAL = ["[PAD]", "[UNK]", "[CLS]"]
WORDS = [f"w{number}" for number in range(10)]


def tokenizer(*, characters: bool = False) -> PreTrainedTokenizerFast:
    entries = [*SPECIAL, *(["w", *map(str, range(10))] if characters else WORDS)]
    inner = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(entries)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Split(pattern="", behavior="isolated"),
            ]
        )
        if characters
        else pre_tokenizers.WhitespaceSplit()
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


class Model(torch.nn.Module):
    """Has the tokenizer, method and prompts of a `SentenceTransformer`."""

    max_seq_length = 4

    def __init__(self, prompt: str = "", *, include_prompt: bool = True) -> None:
        super().__init__()
        self.tokenizer = tokenizer()
        self.prompts, self.default_prompt_name = {"query": prompt, "document": "w9 "}, "query"
        self.pooling = torch.nn.Identity()
        setattr(self.pooling, "include_prompt", include_prompt)  # noqa: B010 - of another type

    def preprocess(self, texts: list[str]) -> dict[str, Any]:
        output = self.tokenizer(
            texts, padding=True, truncation=True, max_length=4, return_tensors="pt"
        )
        return {**output, "modality": "text"}


def named(inputs: Any) -> dict[str, Tensor]:
    assert isinstance(inputs, dict)
    return inputs


def test_texts_are_padded_to_the_longest() -> None:
    batch = TextCollator(tokenizer())(["w1 w2 w3", "w4"])
    assert named(batch.inputs)["input_ids"].tolist() == [[4, 5, 6], [7, 0, 0]]
    assert batch.valid is not None
    assert batch.valid.tolist() == [[True] * 3, [True, False, False]]
    assert batch.labels is None


def test_a_model_reads_texts_by_its_own_method_and_words_are_left_out() -> None:
    batch = TextCollator(Model())(["w1 " * 9])
    assert {*named(batch.inputs)} == {*tokenizer()(["w1"])}
    assert batch.positions == (1, 4)


@pytest.mark.parametrize(
    "rows",
    [
        [("w1", "w2", "w3"), ("w4", "w5", "w6")],
        [
            {"anchor": "w1", "positive": "w2", "negative": "w3"},
            {"anchor": "w4", "positive": "w5", "negative": "w6"},
        ],
    ],
)
def test_texts_of_a_row_are_consecutive_examples(rows: Any) -> None:
    batch = TextCollator(tokenizer())(rows)
    assert named(batch.inputs)["input_ids"].flatten().tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.group == 3


@pytest.mark.parametrize(
    ("row", "ids"),
    [
        ({"review": "w1"}, [4]),
        ({"sentence2": "w2", "sentence1": "w1"}, [4, 5]),
        ({"passage": "w2", "question": "w1"}, [4, 5]),
        ({"hard_negative": "w3", "positive": "w2", "query": "w1", "number": 1}, [4, 5, 6]),
    ],
)
def test_columns_are_found_by_the_names_that_tasks_know(row: Any, ids: list[int]) -> None:
    batch = TextCollator(tokenizer())([row])
    assert named(batch.inputs)["input_ids"].flatten().tolist() == ids


def test_both_texts_of_a_pair_have_its_score() -> None:
    rows = [
        {"text1": "w1", "text2": "w2", "score": 0.5, "number": 3},
        {"text1": "w3", "text2": "w4", "score": "1", "number": 4},
    ]
    batch = TextCollator(tokenizer())(rows)
    assert batch.group == 2
    assert batch.labels is not None
    assert batch.labels.tolist() == [[0.5], [0.5], [1.0], [1.0]]
    named_columns = TextCollator(tokenizer(), columns=["text2", "text1"], score="score")(rows)
    assert named(named_columns.inputs)["input_ids"].flatten().tolist() == [5, 4, 7, 6]


def test_tokens_of_two_tokenizers_are_aligned_where_words_end() -> None:
    batch = TextCollator(tokenizer(), teacher=tokenizer(characters=True))(["w1 w2", "w3"])
    assert named(batch.inputs)["input_ids"].tolist() == [[4, 5], [6, 0]]
    assert named(batch.teacher_inputs)["input_ids"].tolist() == [[3, 5, 3, 6], [3, 7, 0, 0]]
    assert batch.alignment is not None
    assert batch.matched is not None
    assert batch.matched.tolist() == [[True, True], [True, False]]
    assert batch.alignment[batch.matched].tolist() == [1, 3, 1]


def test_a_teacher_with_the_same_vocabulary_reads_the_tokens_of_the_student() -> None:
    assert TextCollator(tokenizer(), teacher=Model())(["w1"]).teacher_inputs is None


def test_each_model_reads_its_own_default_prompt() -> None:
    assert named(TextCollator(Model("w7 w"))(["1 w2"]).inputs)["input_ids"].tolist() == [[10, 4, 5]]
    batch = TextCollator(Model(), teacher=Model("w7 w8 "))(["w1 w2", "w3"])
    assert named(batch.inputs)["input_ids"].tolist() == [[4, 5], [6, 0]]
    teacher = named(batch.teacher_inputs)["input_ids"].tolist()
    assert teacher == [[10, 11, 4, 5], [10, 11, 6, 0]]
    assert batch.alignment is not None
    assert batch.matched is not None
    assert batch.matched.tolist() == [[True, True], [True, False]]
    assert batch.alignment[batch.matched].tolist() == [2, 3, 2]
    mirrored = TextCollator(Model("w7 w8 "), teacher=Model())(["w1 w2"])
    assert mirrored.matched is not None
    assert mirrored.matched.tolist() == [[False, False, True, True]]
    assert TextCollator(Model("w7 "), teacher=Model("w7 "))(["w1"]).teacher_inputs is None


def test_a_pooling_without_its_prompt_is_refused() -> None:
    with pytest.raises(BindError, match=r"^'teacher' must pool .* prompt 'query' with the others;"):
        TextCollator(Model(), teacher=Model("w7 ", include_prompt=False))
    TextCollator(Model(include_prompt=False))


@pytest.mark.parametrize(
    ("rows", "fields", "sentence"),
    [
        (["w1", ("w1", "w2")], {}, r"equally many texts, at least one; got \[1, 2\]"),
        ([{"number": 3}], {}, r"at least one; got \[0\]"),
        ([{"a": 2}], {"columns": ["a"]}, r"rows must hold texts; got int"),
        ([{"a": "w1"}], {"columns": ["b"]}, r"'columns' must be in every row; got 'b'; available"),
        ([{"text": "w1", "score": 1.0}], {}, r"a score must come with 2 texts; got 1"),
        (
            [{"text1": "w1", "text2": "w1"}],
            {"score": "x"},
            r"'score' must be in every row; available",
        ),
        (
            [{"id": "w1", "query": "w1", "positive": "w2", "negative": "w3"}],
            {},
            r"'columns' must choose among 'id', 'query', 'positive', 'negative', which all hold",
        ),
        ([{"a": "w1", "b": "w1"}], {}, r"'columns' must choose among 'a', 'b', which"),
        ([{"query": "w1", "text": "w1"}], {}, r"'columns' must choose among 'query', 'text'"),
        (
            [{"a": "w1", "b": "w1", "score": "high"}],
            {"columns": ["a", "b"]},
            r"column 'score' must hold a number in every row",
        ),
    ],
)
def test_other_rows_are_refused(rows: Any, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        TextCollator(tokenizer(), **fields)(rows)


def test_what_has_no_tokenizer_is_refused() -> None:
    with pytest.raises(BindError, match=r"^'student' must be a SentenceTransformer or a tokenizer"):
        TextCollator(torch.nn.Identity())


def test_a_loader_of_rows_is_a_stream_of_their_texts() -> None:
    rows = [(f"w{number}", f"w{number + 1}") for number in range(6)]
    loader: Any = DataLoader(cast("Any", rows), batch_size=3, collate_fn=TextCollator(tokenizer()))
    data = curricle.stream(loader)
    assert (data.batch_size, data.batch(1).num_examples) == (6, 6)
    assert data.steps_per_epoch == 2
