"""Rows of tables as token ids and labels, by kind of task.

`encode` makes tensors of rows with texts. Columns are found by the names that people give them
(`text`, `label`, `sentence1` and `sentence2`, `prompt` and `completion`, `messages`), or named.

Axes: example, position, value.

Design: examples are padded to one length, so that every batch has equally many positions. A
position that is not scored has the label -100. Classes are numbers, or names that are put in
alphabetical order over the training rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, final

import torch
from torch import Tensor

from curricle.data.collation import IGNORED
from curricle.data.examples import Owner
from curricle.data.table_files import Cell, Row
from curricle.errors import DataError, near_names
from curricle.protocols import Tokenizer

if TYPE_CHECKING:
    from transformers import BatchEncoding

TextKind = Literal[
    "classification",
    "several_labels",
    "regression",
    "embedding",
    "token_classification",
    "question_answering",
    "seq2seq",
    "instructions",
]
"""Kinds of tasks on rows with texts."""
Columns = Mapping[str, str | tuple[str, ...]]
"""Names of columns by role."""
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("text1", "text2"),
)
"""Columns of two texts of one example."""
USUAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("text", "sentence", "content", "review", "question", "query"),
        "label": ("label", "labels", "target", "score", "stars", "intent"),
        "values": ("labels", "label", "score", "value", "values", "target", "stars"),
        "embedding": ("embedding", "embeddings", "label", "labels"),
        "question": ("question", "query"),
        "context": ("context", "passage", "document", "text"),
        "answers": ("answers", "answer"),
        "tokens": ("tokens", "words"),
        "tags": ("ner_tags", "pos_tags", "tags", "labels"),
        "source": ("source", "src", "input", "text", "document", "article"),
        "target": ("target", "tgt", "output", "summary", "highlights"),
        "prompt": ("prompt", "instruction", "question"),
        "completion": ("completion", "response", "output", "answer"),
        "messages": ("messages", "conversations"),
    }
)
"""Names of columns by role, in the order in which they are looked for."""
INSTRUCTION, CONTEXT = "instruction", "input"
"""Names of the column of an instruction and of that of the text it is about."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Examples as tensors."""

    inputs: dict[str, Tensor]
    """Inputs of models by name."""
    labels: Tensor
    """Labels, with positions if `positions` is `token`."""
    num_classes: int
    """Classes or values of an output."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by number; empty if the labels are numbers or no classes."""
    positions: Owner = "example"
    """Owner of a label; `span` for the first and last position of an answer."""
    next_token: bool = False
    """Whether labels are to be shifted by one position."""
    dropped: int = 0
    """Number of rows left out, which have no scored token within the window."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How rows become tensors."""

    kind: TextKind
    """Kind of the task."""
    tokenizer: Tokenizer
    """Tokenizer of transformers."""
    window: int
    """Tokens of an example."""
    columns: Columns = field(default_factory=dict)
    """Names of columns by role, where they are not among the usual ones."""
    start_token: int | None = None
    """First token that a decoder reads; None for padding, as T5 has it."""


def encode(rows: Sequence[Row], encoding: Encoding, training: Sequence[Row]) -> Encoded:
    """Return rows as tensors.

    Args:
        rows: Rows to encode.
        encoding: How.
        training: Training rows, which define the classes.

    Returns:
        Token ids and labels.
    """
    return _ENCODERS[encoding.kind](rows, encoding, training)


def texts_of(rows: Sequence[Row], kind: TextKind, columns: Columns) -> list[str]:
    """Return all texts in rows, from which a tokenizer may be trained.

    Args:
        rows: The rows.
        kind: Kind of the task.
        columns: As in `Encoding`.
    """
    names = {
        "token_classification": ("tokens",),
        "seq2seq": ("source", "target"),
        "question_answering": ("question", "context"),
    }.get(kind, ())
    if kind == "instructions":
        return [piece for row in rows for piece in _pieces(row, columns)]
    if not names:
        return [text for column in _text_columns(rows, columns) for text in _texts(rows, column)]
    return [
        " ".join(entry) if role == "tokens" else str(entry)
        for role in names
        for entry in _column(rows, role, columns)
    ]


def _find(rows: Sequence[Row], role: str, columns: Columns) -> str:
    """Return the name of the column of a role.

    Raises:
        DataError: If there is none.
    """
    present = rows[0]
    name = columns.get(role)
    if isinstance(name, str):
        if name.partition(".")[0] not in present:
            near = near_names(name, present)
            raise DataError(f"'columns.{role}' must name a column; got {name!r}; {near}")
        return name
    usual = next((name for name in USUAL[role] if name in present), None)
    if usual is None:
        raise DataError(
            f"'data' must have a column for {role!r}, such as {', '.join(USUAL[role][:3])}, or "
            f"'columns.{role}' must name it; got columns {', '.join(present)}"
        )
    return usual


def _column(rows: Sequence[Row], role: str, columns: Columns) -> list[Cell]:
    return _values(rows, _find(rows, role, columns))


def _values(rows: Sequence[Row], name: str) -> list[Cell]:
    """Return a column, also one inside another, as in `translation.de`.

    Raises:
        DataError: If a row does not have it.
    """
    values = []
    for number, row in enumerate(rows, start=1):
        entry: object = row
        for key in [name] if name in row else name.split("."):
            entry = entry.get(key) if isinstance(entry, Mapping) else None
        if entry is None:
            raise DataError(
                f"column {name!r} must have a value in every row; row {number} has none"
            )
        values.append(entry)
    return values


def _texts(rows: Sequence[Row], name: str) -> list[str]:
    """Return a column of texts.

    Raises:
        DataError: If an entry is none.
    """
    for number, text in enumerate(texts := _values(rows, name), start=1):
        if not isinstance(text, str):
            raise DataError(f"column {name!r} must hold texts; got {text!r} in row {number}")
    return texts


def _text_columns(rows: Sequence[Row], columns: Columns) -> tuple[str, ...]:
    """Return the column of the text, or those of two texts."""
    stated = columns.get("text")
    if isinstance(stated, tuple):
        return tuple(_find(rows, "text", {"text": name}) for name in stated)
    if stated is None:
        for pair in PAIRS:
            if all(name in rows[0] for name in pair):
                return pair
    return (_find(rows, "text", columns),)


def _tokenized(
    encoding: Encoding, *texts: Sequence[object], **options: bool
) -> tuple["BatchEncoding", dict[str, Tensor]]:
    """Return the tokenizer's output, and its inputs of models."""
    output = encoding.tokenizer(
        *map(list, texts),
        truncation=True,
        padding="max_length",
        max_length=encoding.window,
        **options,
    )
    names = ["input_ids", "attention_mask"]
    names += [name for name in encoding.tokenizer.model_input_names if name not in names]
    return output, {name: torch.tensor(output[name]) for name in names if name in output}


def _classified(rows: Sequence[Row], encoding: Encoding, training: Sequence[Row]) -> Encoded:
    names = _text_columns(training, encoding.columns)
    _, inputs = _tokenized(encoding, *(_texts(rows, name) for name in names))
    column = _find(training, "label", encoding.columns)
    classes = _Classes(_values(training, column), column)
    labels = torch.tensor(classes.numbers(_values(rows, column)))
    return Encoded(
        inputs=inputs, labels=labels, num_classes=classes.count, class_names=classes.names
    )


def _valued(rows: Sequence[Row], encoding: Encoding, training: Sequence[Row]) -> Encoded:
    """Return texts with one or several float values.

    Raises:
        DataError: If rows have different numbers of values, or something else.
    """
    names = _text_columns(training, encoding.columns)
    _, inputs = _tokenized(encoding, *(_texts(rows, name) for name in names))
    role = "embedding" if encoding.kind == "embedding" else "values"
    stated = encoding.columns.get("label")
    if isinstance(stated, tuple):
        entries = [list(row) for row in zip(*(_values(rows, n) for n in stated), strict=True)]
    else:
        columns = {} if stated is None else {role: stated}
        entries = _column(rows, role, columns)
    try:
        labels = torch.tensor(
            [
                [float(n) for n in entry] if isinstance(entry, list) else [float(entry)]
                for entry in entries
            ]
        )
    except (TypeError, ValueError):
        raise DataError(
            f"the labels of {encoding.kind!r} must be numbers, equally many in every row; got "
            f"{entries[0]!r} in the first row"
        ) from None
    return Encoded(inputs=inputs, labels=labels, num_classes=labels.shape[1])


def _tagged(rows: Sequence[Row], encoding: Encoding, training: Sequence[Row]) -> Encoded:
    """Return words with a class each, at the first token of the word.

    Raises:
        DataError: If a row has not one tag for each word.
    """
    words = _column(rows, "tokens", encoding.columns)
    column = _find(training, "tags", encoding.columns)
    tags = _values(rows, column)
    for number, (row_words, row_tags) in enumerate(zip(words, tags, strict=True), start=1):
        if len(row_words) != len(row_tags):
            raise DataError(
                f"column {column!r} must have one tag for each word; row {number} has "
                f"{len(row_words)} words and {len(row_tags)} tags"
            )
    classes = _Classes([tag for row in _values(training, column) for tag in row], column)
    output, inputs = _tokenized(encoding, words, is_split_into_words=True)
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for place, row_tags in enumerate(tags):
        numbers = classes.numbers(row_tags)
        last = None
        for position, word in enumerate(output.word_ids(place)):
            if word is not None and word != last:
                labels[place, position] = numbers[word]
            last = word
    return Encoded(
        inputs=inputs,
        labels=labels,
        num_classes=classes.count,
        class_names=classes.names,
        positions="token",
    )


def _answered(rows: Sequence[Row], encoding: Encoding, training: Sequence[Row]) -> Encoded:
    """Return questions and contexts with the first and last token of the first answer.

    The answer of a question without any is the first token. Rows whose answer is cut off are left
    out.

    Raises:
        DataError: If an answer is not in its context, or every answer is cut off.
    """
    del training
    questions, contexts, answers = (
        _column(rows, role, encoding.columns) for role in ("question", "context", "answers")
    )
    output, inputs = _tokenized(encoding, questions, contexts, return_offsets_mapping=True)
    spans, complete = [], []
    for number, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        texts, starts = answer["text"], answer["answer_start"]
        if not texts:
            spans.append((0, 0))
            complete.append(number)
            continue
        first, end = starts[0], starts[0] + len(texts[0])
        if context[first:end] != texts[0] or not texts[0]:
            raise DataError(
                f"an answer must stand in its context at 'answer_start'; row {number + 1} has "
                f"{context[first:end]!r} at {first} and not {texts[0]!r}"
            )
        inside = [
            place
            for place, (offsets, part) in enumerate(
                zip(output["offset_mapping"][number], output.sequence_ids(number), strict=True)
            )
            if part == 1 and offsets[0] < end and offsets[1] > first
        ]
        if inside and output["offset_mapping"][number][inside[-1]][1] >= end:
            spans.append((inside[0], inside[-1]))
            complete.append(number)
    if not spans:
        raise DataError(
            f"'window' must leave room for an answer; got {encoding.window}, in which none of "
            f"{len(rows)} rows has one"
        )
    numbers = torch.tensor(complete)
    return Encoded(
        inputs={name: tensor[numbers] for name, tensor in inputs.items()},
        labels=torch.tensor(spans),
        num_classes=2,
        positions="span",
        dropped=len(rows) - len(spans),
    )


def _translated(rows: Sequence[Row], encoding: Encoding, training: Sequence[Row]) -> Encoded:
    del training
    source = _find(rows, "source", encoding.columns)
    target = _find(rows, "target", encoding.columns)
    _, inputs = _tokenized(encoding, _texts(rows, source))
    output = encoding.tokenizer(
        text_target=_texts(rows, target),
        truncation=True,
        padding="max_length",
        max_length=encoding.window,
    )
    ids, mask = torch.tensor(output["input_ids"]), torch.tensor(output["attention_mask"])
    start = encoding.start_token
    first = (encoding.tokenizer.pad_token_id or 0) if start is None else start
    inputs["decoder_input_ids"] = torch.cat([torch.full((len(ids), 1), first), ids[:, :-1]], 1)
    return Encoded(
        inputs={name: inputs[name] for name in inputs if name != "token_type_ids"},
        labels=ids.masked_fill(mask == 0, IGNORED),
        num_classes=0,
        positions="token",
    )


def _instructed(rows: Sequence[Row], encoding: Encoding, training: Sequence[Row]) -> Encoded:
    """Return texts with their scored tokens: completions, last answers, or everything.

    Raises:
        DataError: If no row has a scored token within the window.
    """
    del training
    window, padding = encoding.window, encoding.tokenizer.pad_token_id or 0
    ids_rows, labels_rows, masks = [], [], []
    for row in rows:
        prompt, completion = _prompt_and_completion(row, encoding)
        ids = [*prompt, *completion][:window]
        labels = [*(IGNORED for _ in prompt), *completion][:window]
        # The first token has no predecessor that could predict it.
        if all(label == IGNORED for label in labels[1:]):
            continue
        blank = window - len(ids)
        ids_rows.append([*ids, *(padding for _ in range(blank))])
        labels_rows.append([*labels, *(IGNORED for _ in range(blank))])
        masks.append([*(1 for _ in ids), *(0 for _ in range(blank))])
    if not ids_rows:
        raise DataError(
            f"'window' must leave room for tokens after the prompt; got {window}, which none of "
            f"{len(rows)} rows has"
        )
    return Encoded(
        inputs={"input_ids": torch.tensor(ids_rows), "attention_mask": torch.tensor(masks)},
        labels=torch.tensor(labels_rows),
        num_classes=0,
        positions="token",
        next_token=True,
        dropped=len(rows) - len(ids_rows),
    )


def _prompt_and_completion(row: Row, encoding: Encoding) -> tuple[list[int], list[int]]:
    """Return the tokens that are only read, and those that are scored."""
    tokenizer, columns = encoding.tokenizer, encoding.columns
    conversation = _messages(row, columns)
    if conversation is not None:
        # Only answers are scored: what follows the last one has no answer yet.
        while conversation and conversation[-1].get("role") == "user":
            conversation.pop()
        if not conversation:
            return [], []
        ids = _templated(tokenizer, conversation, add_generation_prompt=False)
        prompt = _templated(tokenizer, conversation[:-1], add_generation_prompt=True)
        common = 0
        while common < min(len(ids), len(prompt)) and ids[common] == prompt[common]:
            common += 1
        return ids[:common], ids[common:]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if _has(row, "completion", columns):
        prompt_text, text = (
            _texts([row], _find([row], role, columns))[0] for role in ("prompt", "completion")
        )
        # The further text of an instruction, in a column of its own since Alpaca.
        context = row.get(CONTEXT)
        if row.get(INSTRUCTION) == prompt_text and isinstance(context, str) and context:
            prompt_text = f"{prompt_text}\n\n{context}"
        read = _without_end(tokenizer(prompt_text)["input_ids"], end)
        return read, [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]
    text = _texts([row], _find([row], "text", columns))[0]
    return [], [*_without_end(tokenizer(text)["input_ids"], end), *end]


def _without_end(ids: list[int], end: list[int]) -> list[int]:
    return ids[:-1] if end and ids[-1:] == end else ids


def _templated(tokenizer: Tokenizer, messages: list[Cell], **options: bool) -> list[int]:
    """Return the tokens of messages by the tokenizer's chat template.

    Raises:
        DataError: If it has none, or the template refuses the messages.
    """
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, **options
        )
    except Exception as error:
        # Templates are programs, whose errors have no common base class.
        raise DataError(
            f"'messages' must suit the chat template of the tokenizer; got: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return ids


def _messages(row: Row, columns: Columns) -> list[Cell] | None:
    """Return the messages of a row; None if it has texts."""
    if _has(row, "messages", columns):
        return list(row[_find([row], "messages", columns)])
    if _has(row, "completion", columns) and _has(row, "prompt", columns):
        pieces = [row[_find([row], role, columns)] for role in ("prompt", "completion")]
        if all(isinstance(piece, list) for piece in pieces):
            return [*pieces[0], *pieces[1]]
    return None


def _pieces(row: Row, columns: Columns) -> list[str]:
    messages = _messages(row, columns)
    if messages is not None:
        return [str(message["content"]) for message in messages]
    roles = ("prompt", "completion") if _has(row, "completion", columns) else ("text",)
    return [str(row[_find([row], role, columns)]) for role in roles]


def _has(row: Row, role: str, columns: Columns) -> bool:
    return role in columns or any(name in row for name in USUAL[role])


@final
class _Classes:
    """Numbers of classes, by the labels of the training rows."""

    def __init__(self, labels: Sequence[Cell], column: str) -> None:
        self._column = column
        self.names: tuple[str, ...] = ()
        num_missing = sum(label == "" for label in labels)
        if num_missing:
            raise DataError(
                f"column {column!r} must hold a class in every row; got none in {num_missing} of "
                f"{len(labels)}"
            )
        if all(_is_number(label) for label in labels):
            self.count = max(int(label) for label in labels) + 1
        else:
            self.names = tuple(sorted({str(label) for label in labels}))
            self.count = len(self.names)

    def numbers(self, labels: Sequence[Cell]) -> list[int]:
        """Return the classes of labels.

        Raises:
            DataError: If a label is not in the training rows.
        """
        if not self.names:
            numbers = [int(label) if _is_number(label) else -1 for label in labels]
        else:
            by_name = {name: number for number, name in enumerate(self.names)}
            numbers = [by_name.get(str(label), -1) for label in labels]
        for label, number in zip(labels, numbers, strict=True):
            if not 0 <= number < self.count:
                raise DataError(
                    f"column {self._column!r} must hold one of the {self.count} classes of the "
                    f"training rows; got {label!r}"
                )
        return numbers


def _is_number(label: object) -> bool:
    """Return whether a label is a whole number, which CSV files have as a text."""
    return isinstance(label, int) or (isinstance(label, str) and label.strip().isdecimal())


_ENCODERS: Mapping[TextKind, Callable[[Sequence[Row], Encoding, Sequence[Row]], Encoded]] = (
    MappingProxyType(
        {
            "classification": _classified,
            "several_labels": _valued,
            "regression": _valued,
            "embedding": _valued,
            "token_classification": _tagged,
            "question_answering": _answered,
            "seq2seq": _translated,
            "instructions": _instructed,
        }
    )
)
