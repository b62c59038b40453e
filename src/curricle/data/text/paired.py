"""Next-token batches of one text in the tokens of two tokenizers.

`paired_texts` tokenizes texts with the tokenizer of the student and with that of the teacher. A
batch holds the student's tokens as `inputs`, the teacher's tokens of the same characters as
`teacher_inputs`, and in `alignment` and `matched` the pairs of positions that end at the same
character. There both models have read the same text, so hidden states can be compared, and both
predict its continuation.

Axes: example (windows of a batch), position (tokens of the student in a window), token (tokens of a
whole text), window (windows of the whole text).

Design: tokens are aligned by `data.text.alignment`. Windows have a fixed number of tokens of the
student and begin where both tokenizers do, if there is such a place in the second half of the
window before; so the last tokens of a window may be read again as the first of the next one. The
teacher's tokens are padded at the end. The order of windows is a permutation an epoch, drawn from
the named stream (seed, `paired texts/<purpose>`, epoch), so the batch of a step is a lookup.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from jaxtyping import Int

from curricle.data.batch import Batch
from curricle.data.streams import numbers_in_order
from curricle.data.text.alignment import UNMATCHED, TokenBounds, counterparts
from curricle.data.text.pieces import batches
from curricle.errors import DataError, SpecError
from curricle.protocols import fast_backend
from curricle.seeding import numpy_generator
from curricle.values import fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer


def paired_texts(
    texts: Iterable[str],
    student_tokenizer: object,
    teacher_tokenizer: object,
    *,
    window: int,
    batch_size: int,
    seed: int = 0,
    purpose: str = "train",
) -> "PairedTexts":
    """Return next-token data of texts for a student and a teacher with different tokenizers.

    Both are decoders. The tokens of all texts are kept in memory, about 40 bytes for each.

    Args:
        texts: Texts or lines in order; each is tokenized by itself, without special tokens, and
            windows may extend over the end of one.
        student_tokenizer: The student's tokenizer: a fast one of transformers, or a `Tokenizer` of
            tokenizers.
        teacher_tokenizer: The teacher's tokenizer, likewise.
        window: Tokens of the student in an example; at least 2.
        batch_size: Examples of a batch.
        seed: Seed of the order of the windows.
        purpose: Name of the order, so that training and evaluation differ.

    Raises:
        BindError: If a tokenizer has no offsets.
        SpecError: If a size is too small.
        DataError: If the texts are shorter than a window.
    """
    tokenizers = _copied("student", student_tokenizer), _copied("teacher", teacher_tokenizer)
    lines = [text for text in texts if text]
    student, teacher = (_spans(tokenizer, lines) for tokenizer in tokenizers)
    return PairedTexts(
        student, teacher, window=window, batch_size=batch_size, seed=seed, purpose=purpose
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spans:
    """A text in the tokens of one tokenizer."""

    ids: Int[np.ndarray, " token"]
    """Ids of the tokens."""
    starts: Int[np.ndarray, " token"]
    """First character of each token, counted over the whole text; ascending."""
    ends: Int[np.ndarray, " token"]
    """Character after the last one of each token; ascending."""
    special: Int[np.ndarray, " special"]
    """Ids of special tokens, which are read but not predicted."""
    padding: int = 0
    """Id of padding."""

    @property
    def bounds(self) -> TokenBounds:
        """Return the characters of the tokens."""
        return TokenBounds(self.starts, self.ends)


@final
class PairedTexts:
    """Windows of a text in the tokens of two tokenizers, with aligned positions."""

    def __init__(
        self,
        student: Spans,
        teacher: Spans,
        *,
        window: int,
        batch_size: int,
        seed: int,
        purpose: str = "train",
    ) -> None:
        """Pair the tokens and cut the text into windows.

        Args:
            student: The text in the student's tokens.
            teacher: The same text in the teacher's tokens.
            window: Tokens of the student in an example.
            batch_size: Examples of a batch.
            seed: Seed of the order of the windows.
            purpose: Name of the order.

        Raises:
            SpecError: If a size is too small.
            DataError: If the text is shorter than a window.
        """
        for name, size, smallest in (("window", window, 2), ("batch_size", batch_size, 1)):
            if size < smallest:
                raise SpecError(f"{name!r} must be at least {smallest}; got {size}")
        if len(student.ids) < window:
            raise DataError(
                f"'texts' must hold at least one window of {window} tokens of the student; got "
                f"{len(student.ids)} tokens"
            )
        self._student, self._teacher = student, teacher
        self._window, self._batch_size, self._seed = window, batch_size, seed
        self._purpose = f"paired texts/{purpose}"
        self._counterparts = counterparts(student.bounds, teacher.bounds)
        self._starts = window_starts(self._counterparts, window)
        self._bounds = self._teacher_bounds()
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._fingerprint = fingerprint(
            {
                "stream": "paired texts",
                "texts": [_digest(student), _digest(teacher)],
                "shape": [batch_size, window],
                "seed": seed,
                "purpose": purpose,
            }
        )

    @property
    def batch_size(self) -> int:
        """Return the number of windows of every batch."""
        return self._batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of the student's positions of every batch."""
        return self._batch_size * self._window

    @property
    def fingerprint(self) -> str:
        """Return a digest of both tokenizations, the shape and the seed."""
        return self._fingerprint

    @property
    def examples_per_epoch(self) -> int:
        """Return the number of windows, which are the examples."""
        return self.num_windows

    @property
    def num_windows(self) -> int:
        """Return the number of windows of an epoch."""
        return len(self._starts)

    @property
    def teacher_window(self) -> int:
        """Return the number of the teacher's positions of every example, padding included."""
        first, stop = self._bounds
        return max(int((stop - first).max()), 1)

    @property
    def _mean_teacher_tokens(self) -> float:
        first, stop = self._bounds
        return float((stop - first).mean())

    @property
    def matched_share(self) -> float:
        """Return the share of the student's tokens that end where one of the teacher ends."""
        return float((self._counterparts != UNMATCHED).mean())

    @property
    def note(self) -> str:
        """Return the share of aligned positions as a sentence for `plan`."""
        return (
            f"data: {self.matched_share:.1%} of the student's tokens end at the same character as "
            f"a token of the teacher, and are compared with it; for {self._window} tokens of the "
            f"student the teacher reads {self._mean_teacher_tokens:.1f} on average"
        )

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; labels are the student's next tokens inside each window."""
        return self._paired(self._numbers(step))

    def held_out(self) -> tuple[Batch, ...]:
        """Return all windows in the order of the text as batches; the last may be smaller."""
        return tuple(map(self._paired, numbers_in_order(self.num_windows, self._batch_size)))

    def _paired(self, windows: Int[np.ndarray, " example"]) -> Batch:
        """Return windows as a batch with the next tokens as labels."""
        places = self._starts[windows][:, None] + np.arange(self._window)
        rows = self._student.ids[places]
        first, stop = (bound[windows][:, None] for bound in self._bounds)
        teacher_places = first + np.arange(self.teacher_window)
        is_read = teacher_places < stop
        # Padding at the end alone may lie behind the text.
        teacher_rows = self._teacher.ids[np.minimum(teacher_places, len(self._teacher.ids) - 1)]
        tokens = self._counterparts[places]
        is_matched = (tokens >= first) & (tokens < stop)
        following = np.roll(rows, -1, axis=1)
        is_selected = ~np.isin(following, self._student.special)
        # The last position would be labeled with the first token of its own window.
        is_selected[:, -1] = False
        selected = np.flatnonzero(is_selected)
        return Batch(
            inputs={"input_ids": torch.from_numpy(rows)},
            labels=torch.from_numpy(following.reshape(-1)[selected]),
            selected=torch.from_numpy(selected),
            teacher_inputs={
                "input_ids": torch.from_numpy(
                    np.where(is_read, teacher_rows, self._teacher.padding)
                ),
                "attention_mask": torch.from_numpy(is_read.astype(np.int64)),
            },
            alignment=torch.from_numpy(np.where(is_matched, tokens - first, 0)),
            matched=torch.from_numpy(is_matched),
        )

    def _numbers(self, step: int) -> Int[np.ndarray, " example"]:
        """Return the numbers of the windows of a step."""
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, offsets = np.divmod(places, self.num_windows)
        return np.concatenate(
            [self._permutation(int(e))[offsets[epochs == e]] for e in np.unique(epochs)]
        )

    def _permutation(self, epoch: int) -> Int[np.ndarray, " window"]:
        if epoch != self._epoch:
            generator = numpy_generator(self._seed, self._purpose, epoch)
            self._order, self._epoch = generator.permutation(self.num_windows), epoch
        return self._order

    def _teacher_bounds(self) -> tuple[Int[np.ndarray, " window"], Int[np.ndarray, " window"]]:
        """Return for each window the teacher's first token, and the one after the last.

        They are the tokens inside the window's characters.
        """
        student, teacher = self._student, self._teacher
        first = np.searchsorted(teacher.starts, student.starts[self._starts], side="left")
        # Where both have ended before the window, the teacher goes on with its next token: it may
        # hold a blank that the student's offsets leave out, and so begin before the window.
        before = np.where(self._starts > 0, self._counterparts[self._starts - 1], UNMATCHED)
        first = np.where(before == UNMATCHED, first, before + 1)
        last = self._starts + self._window - 1
        stop = np.searchsorted(teacher.ends, student.ends[last], side="right")
        return first, np.maximum(stop, first)


def window_starts(tokens: Int[np.ndarray, " token"], window: int) -> Int[np.ndarray, " window"]:
    """Return the student's first token of each window.

    Args:
        tokens: The teacher's counterpart of each token.
        window: Tokens of a window.
    """
    numbers = np.arange(len(tokens))
    # The last token up to each one at which both tokenizers end.
    latest = np.maximum.accumulate(np.where(tokens == UNMATCHED, UNMATCHED, numbers))
    starts = [0]
    while (stop := starts[-1] + window) + 1 < len(tokens):
        common = int(latest[stop - 1]) + 1
        start = common if common >= stop - window // 2 else stop
        if start + window > len(tokens):
            break
        starts.append(start)
    return np.array(starts)


def _spans(tokenizer: "FastTokenizer", texts: list[str]) -> Spans:
    """Return texts in the tokens of a tokenizer."""
    ids: list[int] = []
    bounds: list[tuple[int, int]] = []
    offset = 0
    for lines in batches(texts):
        for line, encoded in zip(
            lines, tokenizer.encode_batch(lines, add_special_tokens=False), strict=True
        ):
            ids += encoded.ids
            bounds += [(offset + start, offset + end) for start, end in encoded.offsets]
            offset += len(line)
    starts, ends = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
    special = [
        number
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if getattr(token, "special", False)
    ]
    return Spans(
        ids=np.array(ids, dtype=np.int64),
        # A normalizer that moves marks may give a character back.
        starts=np.maximum.accumulate(starts),
        ends=np.maximum.accumulate(ends),
        special=np.array(sorted(special), dtype=np.int64),
    )


def _copied(role: str, tokenizer: object) -> "FastTokenizer":
    """Return a copy of a tokenizer that adds nothing and gives the offsets of whole tokens.

    Raises:
        BindError: If it has no offsets.
    """
    backend = fast_backend(role, tokenizer)
    copied = type(backend).from_str(backend.to_str())
    copied.no_truncation()
    copied.no_padding()
    # It would add special tokens, and take blanks out of the offsets.
    copied.post_processor = None
    return copied


def _digest(spans: Spans) -> str:
    digest = hashlib.sha256()
    for array in (spans.ids, spans.starts, spans.ends, spans.special):
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return digest.hexdigest()
