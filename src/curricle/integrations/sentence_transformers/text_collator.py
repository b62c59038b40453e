"""Collation of rows of texts for encoders of sentences.

`TextCollator` is the `collate_fn` of a `DataLoader` over texts, pairs with a score, or triplets.
The texts of a row become consecutive examples, as the objectives on embeddings read them. With a
teacher of another tokenizer a batch also has the teacher's tokens, and the pairs of positions that
end at the same character, where hidden states are compared.

Axes: example (texts), position (tokens), row (of the data set).

Design: columns are found by the names that tasks of specs know, and string columns beside them are
refused, so that an id never becomes a text. Each model reads texts with its own default prompt, as
its method `encode` does. Models are read by their methods `preprocess` or `tokenize`, so that the
package sentence-transformers is not imported, and any fast tokenizer of transformers serves as
well.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from curricle.data.batch import Batch, data_mask
from curricle.data.columns import PAIRS, USUAL
from curricle.data.encoding import TRIPLET
from curricle.data.table_files import Row
from curricle.data.text.alignment import UNMATCHED, aligned_positions
from curricle.errors import BindError, DataError, near_names
from curricle.protocols import fast_backend

TextRow = str | Sequence[str] | Row
"""A text, several texts, or columns with texts and, if any, a score."""
SCORES = ("score", "label", "similarity_score")
"""Names of the column of the score of a pair, in the order in which they are looked for."""
METHODS = ("preprocess", "tokenize")
"""Methods that make inputs of texts, of newer and older versions of sentence-transformers."""
PAIR = 2
"""Texts of a row with a score."""


@final
class TextCollator:
    """Makes a `curricle.Batch` of rows of texts."""

    def __init__(
        self,
        student: object,
        *,
        teacher: object = None,
        columns: Sequence[str] = (),
        score: str | None = None,
    ) -> None:
        """Set the tokenizers and columns.

        Args:
            student: A `SentenceTransformer`, or a fast tokenizer of transformers.
            teacher: The same of the teacher; None if both read the same tokens.
            columns: Names of the columns with texts, in the order of the examples; by default
                those of a triplet (such as query, positive, negative), of two texts (sentence1 and
                sentence2) or of a text.
            score: Name of the column with the score of a pair; by default one of the usual ones.

        Raises:
            BindError: If one has no tokenizer, or those of two different vocabularies have no
                offsets.
        """
        self._columns, self._score = tuple(columns), score
        self._student = _Reader("student", student)
        self._teacher = None if teacher is None else _Reader("teacher", teacher)
        if self._teacher is not None and self._teacher.reads_tokens_of(self._student):
            # Positions are those of the student, so that nothing has to be aligned.
            self._teacher = None
        for reader in () if self._teacher is None else (self._student, self._teacher):
            fast_backend(reader.role, reader.tokenizer)

    def __call__(self, rows: Sequence[TextRow]) -> Batch:
        """Return a batch with the texts of each row as consecutive examples.

        Args:
            rows: Rows of a data set.

        Raises:
            DataError: If they have different numbers of texts, or a score without a pair.
        """
        groups = [self._texts(row) for row in rows]
        sizes = {len(group) for group in groups}
        if sizes == {0} or len(sizes) != 1:
            raise DataError(f"rows must have equally many texts, at least one; got {sorted(sizes)}")
        size = sizes.pop()
        texts = [text for group in groups for text in group]
        inputs = self._student.read(texts)
        mask = data_mask(inputs)
        fields: dict[str, Any] = {}
        if self._teacher is not None:
            fields["teacher_inputs"] = self._teacher.read(texts)
            places = aligned_positions(self._student.bounds(texts), self._teacher.bounds(texts))
            fields |= {"alignment": places.clamp(min=0), "matched": places != UNMATCHED}
        scores = self._scores(rows)
        if scores is not None and size != PAIR:
            raise DataError(f"a score must come with {PAIR} texts; got {size}")
        if scores is not None:
            fields["labels"] = torch.tensor(scores).repeat_interleave(PAIR).unsqueeze(1)
        valid = None if mask is None else mask.bool()
        return Batch(inputs=inputs, valid=valid, group=size, **fields)

    def _texts(self, row: TextRow) -> list[str]:
        """Return the texts of a row.

        Raises:
            DataError: If a named column is missing, or an entry is no text.
        """
        if isinstance(row, str):
            return [row]
        if not isinstance(row, Mapping):
            texts = list(row)
        elif self._columns:
            missing = [name for name in self._columns if name not in row]
            if missing:
                raise DataError(
                    f"'columns' must be in every row; got {missing[0]!r}; "
                    f"{near_names(missing[0], row)}"
                )
            texts = [row[name] for name in self._columns]
        else:
            scores = SCORES if self._score is None else (self._score,)
            names = [name for name in row if isinstance(row[name], str) and name not in scores]
            texts = [row[name] for name in usual_columns(names)]
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise DataError(f"rows must hold texts; got {type(wrong[0]).__name__}")
        return texts

    def _scores(self, rows: Sequence[TextRow]) -> list[float] | None:
        """Return the scores of the rows; None if they have none.

        Raises:
            DataError: If a row lacks the score that another one has.
        """
        first = rows[0]
        if not isinstance(first, Mapping):
            return None
        names = SCORES if self._score is None else (self._score,)
        name = next((name for name in names if name in first), None)
        if name is None and self._score is not None:
            raise DataError(f"'score' must be in every row; {near_names(self._score, first)}")
        if name is None:
            return None
        try:
            return [float(row[name]) for row in rows if isinstance(row, Mapping)]
        except (KeyError, TypeError, ValueError):
            raise DataError(f"column {name!r} must hold a number in every row") from None


@final
class _Reader:
    """Texts as inputs of one model."""

    def __init__(self, role: str, model: object) -> None:
        """Find the tokenizer of a model.

        Args:
            role: `student` or `teacher`, for error sentences.
            model: A model with a tokenizer, or a tokenizer.

        Raises:
            BindError: If there is none.
        """
        self.role = role
        self.tokenizer: Any = getattr(model, "tokenizer", model)
        """Tokenizer of transformers."""
        if not callable(self.tokenizer) or not hasattr(self.tokenizer, "get_vocab"):
            raise BindError(
                f"{role!r} must be a SentenceTransformer or a tokenizer of transformers; got "
                f"{type(model).__name__!r}"
            )
        methods = (
            [getattr(model, name, None) for name in METHODS] if model is not self.tokenizer else []
        )
        self._preprocess: Callable[[list[str]], Mapping[str, object]] | None = next(
            filter(None, methods), None
        )
        self._max_length: int | None = getattr(model, "max_seq_length", None)
        self.prompt = _default_prompt(role, model)
        """Text before each text, empty for none."""

    def reads_tokens_of(self, reader: "_Reader") -> bool:
        """Return whether both readers make the same tokens.

        Args:
            reader: Another reader.
        """
        vocabularies = [side.tokenizer.get_vocab() for side in (self, reader)]
        return vocabularies[0] == vocabularies[1] and self.prompt == reader.prompt

    def read(self, texts: list[str]) -> dict[str, Tensor]:
        """Return the inputs of the model, padded to the longest text.

        Args:
            texts: The texts.
        """
        texts = [self.prompt + text for text in texts]
        # Words beside tensors, such as the modality of an input, are those of the defaults.
        output = self._tokenized(texts) if self._preprocess is None else self._preprocess(texts)
        return {name: entry for name, entry in output.items() if isinstance(entry, Tensor)}

    def bounds(self, texts: list[str]) -> Int[Tensor, "example position bound"]:
        """Return first and last character of each token, 0 of special tokens, prompt and padding.

        Args:
            texts: The texts.
        """
        prompted = [self.prompt + text for text in texts]
        offsets = self._tokenized(prompted, return_offsets_mapping=True)["offset_mapping"]
        return (offsets - len(self.prompt)).clamp(min=0)

    def _tokenized(self, texts: list[str], **options: bool) -> Mapping[str, Tensor]:
        output: Mapping[str, Tensor] = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
            **options,
        )
        return output


def usual_columns(names: Collection[str]) -> tuple[str, ...]:
    """Return the columns of a triplet, of two texts or of a text, in the order of the examples.

    Args:
        names: All columns of a row that hold texts.

    Returns:
        All of them; none for none.

    Raises:
        DataError: If columns are left over, or have other names.
    """
    roles = [
        tuple(next((name for name in USUAL[role] if name in names), "") for role in triplet)
        for triplet in (TRIPLET, TRIPLET[:PAIR], ("text",))
    ]
    for columns in (roles[0], *PAIRS, *roles[1:]):
        if {*columns} == {*names}:
            return columns
    if not names:
        return ()
    raise DataError(
        f"'columns' must choose among {', '.join(map(repr, names))}, which all hold texts; without "
        f"'columns' a row has no texts but one of text, of sentence1 and sentence2, or of query, "
        f"positive and negative"
    )


def _default_prompt(role: str, model: object) -> str:
    """Return the prompt that a model of sentence-transformers puts before each text by default.

    Raises:
        BindError: If its pooling leaves the prompt out, which its inputs would have to mark.
    """
    prompts, name = getattr(model, "prompts", None), getattr(model, "default_prompt_name", None)
    prompt = prompts.get(name) if isinstance(prompts, Mapping) else None
    if not prompt:
        return ""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    if any(getattr(module, "include_prompt", True) is False for module in modules):
        raise BindError(
            f"{role!r} must pool the tokens of its default prompt {name!r} with the others; got a "
            f"pooling with include_prompt=False; model.default_prompt_name = None reads texts "
            f"without a prompt"
        )
    return str(prompt)
