"""Rows of tables as token ids and labels."""

from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor

from curricle.data.encoding import Encoded, Encoding, TextKind, encode, texts_of
from curricle.data.table_files import Row
from curricle.errors import DataError
from curricle.models.huggingface import wrapped_tokenizer
from curricle.protocols import Tokenizer

WORDS = ["<pad>", "</s>", "a", "b", "c", "d", "[user]", "[model]"]
IDS = {word: number for number, word in enumerate(WORDS)}
PAD, END, A, B, C, D, USER, MODEL = range(8)
TEMPLATE = (
    "{% for m in messages %}{{ '[user] ' if m.role == 'user' else '[model] ' }}{{ m.content }} "
    "{% if m.role != 'user' %}</s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)


def words(**special: str) -> Any:
    """Return a tokenizer with one token for each word."""
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, unk_token="<pad>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return wrapped_tokenizer(model, special={"pad_token": "<pad>"} | special)


def encoded(
    kind: TextKind,
    rows: list[Row],
    *,
    training: list[Row] | None = None,
    tokenizer: Tokenizer | None = None,
    **fields: Any,
) -> Encoded:
    encoding = Encoding(kind=kind, tokenizer=tokenizer or words(), **({"window": 4} | fields))
    return encode(rows, encoding, training or rows)


def labels_of(part: Encoded) -> Tensor:
    assert part.labels is not None
    return part.labels


def test_classes_are_numbers_or_names_in_alphabetical_order() -> None:
    named = encoded("classification", [{"text": "a", "label": x} for x in ("no", "yes", "and")])
    assert (labels_of(named).tolist(), named.num_classes) == ([1, 2, 0], 3)
    assert named.class_names == ("and", "no", "yes")
    numbers = encoded("classification", [{"sentence": "a", "label": x} for x in ("2", "0")])
    assert (labels_of(numbers).tolist(), numbers.num_classes) == ([2, 0], 3)
    assert numbers.class_names == ()
    assert numbers.inputs["input_ids"].tolist() == [[A, PAD, PAD, PAD]] * 2
    assert numbers.inputs["attention_mask"].tolist() == [[1, 0, 0, 0]] * 2


def test_a_row_with_an_empty_label_is_no_class() -> None:
    rows: list[Row] = [{"text": "a", "label": label} for label in ("yes", "", "no")]
    with pytest.raises(DataError, match="'label' must hold a class in every row; got none in 1 of"):
        encoded("classification", rows)


def test_classes_are_those_of_the_training_rows() -> None:
    training: list[Row] = [{"text": "a", "label": name} for name in ("x", "z")]
    held_out = encoded("classification", [{"text": "b", "label": "z"}], training=training)
    assert (labels_of(held_out).tolist(), held_out.num_classes) == ([1], 2)
    with pytest.raises(DataError, match=r"'label' must hold one of the 2 classes .* got 'y'"):
        encoded("classification", [{"text": "b", "label": "y"}], training=training)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"sentence1": "a b", "sentence2": "c", "label": 0}, {}),
        ({"premise": "a b", "hypothesis": "c", "label": 0}, {}),
        ({"one": "a b", "two": "c", "grade": 0}, {"text": ("one", "two"), "label": "grade"}),
    ],
)
def test_two_texts_are_read_together(row: Row, columns: dict[str, Any]) -> None:
    example = encoded("classification", [row], columns=columns)
    assert example.inputs["input_ids"].tolist() == [[A, B, C, PAD]]


def test_long_texts_are_cut() -> None:
    example = encoded("classification", [{"text": "a b c d a b", "label": 0}])
    assert example.inputs["input_ids"].tolist() == [[A, B, C, D]]


def test_values_are_columns_lists_or_numbers() -> None:
    columns = {"label": ("x", "y")}
    several = encoded("several_labels", [{"text": "a", "x": "1", "y": 0}], columns=columns)
    assert labels_of(several).tolist() == [[1.0, 0.0]]
    listed = encoded("regression", [{"text": "a", "labels": [0.5, 2]}])
    assert (labels_of(listed).tolist(), listed.num_classes) == ([[0.5, 2.0]], 2)
    single = encoded("regression", [{"text": "a", "score": "1.5"}])
    assert (labels_of(single).tolist(), labels_of(single).dtype) == ([[1.5]], torch.float32)
    sentence = "labels of 'regression' must be numbers, equally many in every row; got"
    with pytest.raises(DataError, match=sentence):
        encoded("regression", [{"text": "a", "score": [1, 2]}, {"text": "a", "score": [1]}])


def test_the_first_token_of_each_word_has_its_tag() -> None:
    rows: list[Row] = [{"tokens": ["a b", "c"], "ner_tags": ["X", "O"]}]
    example = encoded("token_classification", rows)
    assert example.inputs["input_ids"].tolist() == [[A, B, C, PAD]]
    assert labels_of(example).tolist() == [[1, -100, 0, -100]]
    assert (example.num_classes, example.positions) == (2, "token")
    with pytest.raises(DataError, match="one tag for each word; row 1 has 1 words and 2 tags"):
        encoded("token_classification", [{"tokens": ["a"], "ner_tags": ["X", "O"]}])


def test_a_decoder_reads_the_target_one_token_later() -> None:
    rows: list[Row] = [{"translation": {"de": "a b", "en": "c d"}}]
    columns = {"source": "translation.de", "target": "translation.en"}
    example = encoded("seq2seq", rows, columns=columns, start_token=END)
    assert example.inputs["input_ids"].tolist() == [[A, B, PAD, PAD]]
    assert example.inputs["decoder_input_ids"].tolist() == [[END, C, D, PAD]]
    assert labels_of(example).tolist() == [[C, D, -100, -100]]
    plain = encoded("seq2seq", [{"source": "a", "target": "b"}])
    assert plain.inputs["decoder_input_ids"].tolist() == [[PAD, B, PAD, PAD]]


def test_a_prompt_is_read_and_its_completion_scored() -> None:
    rows: list[Row] = [
        {"prompt": "a b", "completion": "c"},
        {"prompt": "a b c d", "completion": "a"},
    ]
    example = encoded("instructions", rows, tokenizer=words(eos_token="</s>"))
    assert example.inputs["input_ids"].tolist() == [[A, B, C, END]]
    assert labels_of(example).tolist() == [[-100, -100, C, END]]
    assert (example.next_token, example.dropped) == (True, 1)


def test_the_input_of_an_instruction_is_read_after_it() -> None:
    rows: list[Row] = [
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a", "input": "", "output": "c"},
    ]
    example = encoded("instructions", rows, tokenizer=words(eos_token="</s>"))
    assert example.inputs["input_ids"].tolist() == [[A, B, C, END], [A, C, END, PAD]]
    assert labels_of(example).tolist() == [[-100, -100, C, END], [-100, C, END, -100]]


def test_words_of_the_user_after_the_last_answer_are_not_scored() -> None:
    tokenizer = words(eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    rows: list[Row] = [
        {"messages": [{"role": role, "content": text} for role, text in turns[:stop]]}
        for stop in (2, 3, 1)
    ]
    example = encoded("instructions", rows, tokenizer=tokenizer, window=8)
    first, second = labels_of(example).tolist()
    assert first == second
    assert [label for label in first if label != -100] == [B, END]
    assert example.dropped == 1


def test_a_text_alone_is_scored_as_a_whole() -> None:
    example = encoded("instructions", [{"text": "a b"}], tokenizer=words(eos_token="</s>"))
    assert labels_of(example).tolist() == [[A, B, END, -100]]
    assert example.inputs["attention_mask"].tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("form", ["messages", "prompt"])
def test_messages_pass_through_the_chat_template_and_the_last_answer_is_scored(form: str) -> None:
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": r, "content": c} for r, c in zip(roles, "abcd", strict=True)]
    tokenizer = words(eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    row = (
        {"messages": messages}
        if form == "messages"
        else {"prompt": messages[:3], "completion": messages[3:]}
    )
    example = encoded("instructions", [row], tokenizer=tokenizer, window=12)
    ids = [USER, A, MODEL, B, END, USER, C, MODEL, D, END]
    assert example.inputs["input_ids"].tolist() == [[*ids, PAD, PAD]]
    assert labels_of(example).tolist() == [[*[-100] * 8, D, END, -100, -100]]


def test_a_tokenizer_without_a_chat_template_is_named() -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
    with pytest.raises(DataError, match="'messages' must suit the chat template of the tokenizer"):
        encoded("instructions", [{"messages": turns}])


def test_a_window_without_room_for_any_completion_is_refused() -> None:
    with pytest.raises(DataError, match=r"'window' must leave room .* got 2, which none of 1 rows"):
        encoded("instructions", [{"prompt": "a b", "completion": "c"}], window=2)


@pytest.mark.parametrize(
    ("row", "columns", "sentence"),
    [
        ({"body": "a", "label": 0}, {}, "a column for 'text', such as text, .* got columns body"),
        (
            {"body": "a", "label": 0},
            {"text": "bdy"},
            "'columns.text' must name a column; got 'bdy'",
        ),
        (
            {"text": "a", "label": None},
            {},
            "'label' must have a value in every row; row 1 has none",
        ),
        ({"text": 3, "label": 0}, {}, "column 'text' must hold texts; got 3 in row 1"),
    ],
)
def test_a_column_that_is_missing_is_named(
    row: Row, columns: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        encoded("classification", [row], columns=columns)


@pytest.mark.parametrize(
    ("kind", "row", "texts"),
    [
        ("classification", {"premise": "a", "hypothesis": "b", "label": 0}, ["a", "b"]),
        ("token_classification", {"tokens": ["a", "b"], "tags": [0, 1]}, ["a b"]),
        ("seq2seq", {"source": "a", "target": "b"}, ["a", "b"]),
        ("instructions", {"prompt": "a", "completion": "b"}, ["a", "b"]),
        ("instructions", {"messages": [{"role": "user", "content": "a"}]}, ["a"]),
        ("instructions", {"text": "a"}, ["a"]),
    ],
)
def test_a_tokenizer_is_trained_on_all_texts_that_are_read(
    kind: TextKind, row: Row, texts: list[str]
) -> None:
    assert texts_of([row], kind, {}) == texts


def test_an_answer_is_its_first_and_last_token() -> None:
    row = {"question": "d", "context": "a b c", "answers": {"text": ["b c"], "answer_start": [2]}}
    cut = {"question": "d a", "context": "a b c", "answers": {"text": ["c"], "answer_start": [4]}}
    none = {"question": "d", "context": "a", "answers": {"text": [], "answer_start": []}}
    example = encoded("question_answering", [row, cut, none])
    assert example.inputs["input_ids"].tolist() == [[D, A, B, C], [D, A, PAD, PAD]]
    assert (labels_of(example).tolist(), example.dropped) == ([[2, 3], [0, 0]], 1)
    wrong = row | {"answers": {"text": ["b"], "answer_start": [0]}}
    with pytest.raises(DataError, match="row 1 has 'a' at 0 and not 'b'"):
        encoded("question_answering", [wrong])
    with pytest.raises(DataError, match="'window' must leave room for an answer; got 4"):
        encoded("question_answering", [cut])


def test_texts_of_a_row_become_consecutive_examples() -> None:
    pairs = [
        {"sentence1": "a", "sentence2": "b", "score": 5},
        {"sentence1": "c", "sentence2": "d", "score": "1"},
    ]
    similar = encoded("similarity", pairs, largest_score=5.0)
    assert similar.inputs["input_ids"][:, 0].tolist() == [A, B, C, D]
    assert similar.labels is not None
    torch.testing.assert_close(similar.labels, torch.tensor([[1.0], [1.0], [0.2], [0.2]]))
    triplets = encoded("triplets", [{"anchor": "a", "pos": "b", "negative": "c"}])
    assert triplets.inputs["input_ids"][:, 0].tolist() == [A, B, C]
    plain = encoded("sentences", [{"text": "d"}, {"text": "a"}])
    assert plain.inputs["input_ids"][:, 0].tolist() == [D, A]
    assert triplets.labels is None
    assert plain.labels is None
    assert texts_of([{"anchor": "a", "pos": "b", "negative": "c"}], "triplets", {}) == [
        "a",
        "b",
        "c",
    ]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "a", "score": 1}, r"two columns of texts for 'similarity'.*; got text"),
        ({"text1": "a", "text2": "b", "score": "high"}, r"scores of 'similarity' must be numbers"),
        ({"text1": "a", "text2": "b", "score": 4.5}, r"lie between -1 and 1; got 4.5; 'largest_sc"),
    ],
)
def test_pairs_without_two_texts_or_a_score_are_refused(row: Row, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        encoded("similarity", [row])
