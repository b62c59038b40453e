"""Masked and causal training batches of a tokenized text.

The text is cut into windows that do not overlap. The windows of an epoch are a permutation drawn
from the named stream (seed, `windows/<purpose>`, epoch), and step s reads batch_size places of the
endless row of epochs from s * batch_size on; so every window is read exactly once an epoch, no
batch is short, and the batch of a step is a lookup.

Axes: example (rows of a batch), position (places in a window), selected (scored positions),
token (places in the whole text), window (windows of the whole text).

Design: special tokens (padding, unknown, mask, start) are read but never scored. If a batch's draw
selects nothing, its first scorable position is selected, so that a mean over selected positions
exists; a batch without scorable positions has an empty selection, which a sum over micro-batches
divided by the count of the full batch handles. Tokens after the last full window are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import Field

from curricle.data.batch import Batch
from curricle.data.streams import Stream, numbers_in_order
from curricle.data.text.token_store import TokenStore, Vocabulary
from curricle.errors import DataError, SpecError
from curricle.seeding import numpy_generator
from curricle.values import fingerprint, plain, value


@final
@value
class Masking:
    """Rates of masked language modeling.

    Source:
        Devlin et al. 2018 (arXiv 1810.04805), section 3.1. Deviation: positions are drawn
        independently, so the number of selected positions varies between batches.
    """

    rate: float = Field(default=0.15, gt=0, le=1)
    """Probability of selection of a scorable position; between 0 and 1."""
    mask_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the selected positions with the mask token in place of their token."""
    random_share: float = Field(default=0.1, ge=0, le=1)
    """Share of the selected positions with a random token; all others are unchanged."""

    def __post_init__(self) -> None:
        """Check that the share of unchanged tokens is not negative.

        Raises:
            SpecError: If it is.
        """
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise SpecError(
                f"'mask_share' and 'random_share' must not exceed 1 together; "
                f"got {self.mask_share} and {self.random_share}"
            )

    def replace_tokens(
        self,
        labels: Int[np.ndarray, " selected"],
        generator: np.random.Generator,
        *,
        mask: int,
        ordinary: Int[np.ndarray, " class"],
    ) -> Int[np.ndarray, " selected"]:
        """Return the inputs at selected positions.

        Args:
            labels: Original tokens of these positions.
            generator: Source of random numbers.
            mask: Id of the mask token.
            ordinary: Ids of random tokens.
        """
        uniform = generator.random(labels.shape)
        random = ordinary[generator.integers(len(ordinary), size=labels.shape)]
        inputs = np.where(uniform < self.mask_share + self.random_share, random, labels)
        return np.where(uniform < self.mask_share, mask, inputs)


BERT_MASKING = Masking()
"""Masking with the rates of BERT."""


@final
class WindowOrder:
    """The windows of a text in the order of training steps."""

    def __init__(
        self, store: TokenStore, *, window: int, batch_size: int, seed: int, purpose: str
    ) -> None:
        """Cut the text into windows.

        Args:
            store: The tokenized text.
            window: Tokens of a window.
            batch_size: Windows of a batch.
            seed: Seed of the permutations.
            purpose: Name of their stream.

        Raises:
            SpecError: If a size is not positive.
            DataError: If the text is shorter than a window.
        """
        for name, size in (("window", window), ("batch_size", batch_size)):
            if size < 1:
                raise SpecError(f"{name!r} must be positive; got {size}")
        self.num_windows = len(store.tokens) // window
        if not self.num_windows:
            raise DataError(
                f"the text must hold at least one window of {window} tokens; "
                f"got {len(store.tokens)} tokens"
            )
        self._windows = store.tokens[: self.num_windows * window].reshape(-1, window)
        self._batch_size = batch_size
        self._seed = seed
        self._purpose = f"windows/{purpose}"
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def in_order(self) -> Iterator[Int[np.ndarray, "example position"]]:
        """Yield the tokens of all windows in the order of the text; the last rows may be fewer."""
        for numbers in numbers_in_order(self.num_windows, self._batch_size):
            yield np.asarray(self._windows[numbers], dtype=np.int64)

    def numbers(self, step: int) -> Int[np.ndarray, " example"]:
        """Return the numbers of the windows of a step."""
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, offsets = np.divmod(places, self.num_windows)
        first, last = int(epochs[0]), int(epochs[-1])
        if first == last:
            return self._permutation(first)[offsets]
        return np.concatenate(
            [self._permutation(e)[offsets[epochs == e]] for e in range(first, last + 1)]
        )

    def rows(self, step: int) -> Int[np.ndarray, "example position"]:
        """Return the tokens of a step."""
        return np.asarray(self._windows[self.numbers(step)], dtype=np.int64)

    def _permutation(self, epoch: int) -> Int[np.ndarray, " window"]:
        if epoch != self._epoch:
            generator = numpy_generator(self._seed, self._purpose, epoch)
            self._order, self._epoch = generator.permutation(self.num_windows), epoch
        return self._order


@final
class MaskedWindows:
    """Windows with masked tokens, predicted from both sides."""

    def __init__(
        self,
        store: TokenStore,
        *,
        window: int,
        batch_size: int,
        seed: int,
        masking: Masking = BERT_MASKING,
        purpose: str = "train",
    ) -> None:
        """Prepare the stream.

        Args:
            store: The tokenized text; its vocabulary must have a mask token.
            window: Tokens of a window.
            batch_size: Windows of a batch.
            seed: Seed of the order of the windows and of the masks.
            masking: Rates of the masking.
            purpose: Name of the streams, so that training and evaluation differ.

        Raises:
            DataError: If the vocabulary has no mask token.
        """
        if store.vocabulary.mask is None:
            raise DataError("'store' must have a mask token in its vocabulary; got None")
        self._order = WindowOrder(
            store, window=window, batch_size=batch_size, seed=seed, purpose=purpose
        )
        self._scorable = scorable(store.vocabulary)
        self._ordinary = np.flatnonzero(self._scorable)
        self._mask_token = store.vocabulary.mask
        self._masking = masking
        self._seed = seed
        self._purpose = f"masking/{purpose}"
        self._facts = _Facts(
            batch_size=batch_size,
            tokens_per_batch=batch_size * window,
            fingerprint=fingerprint(
                {
                    "stream": "masked windows",
                    "store": store.fingerprint,
                    "shape": [batch_size, window],
                    "seed": seed,
                    "purpose": purpose,
                    "masking": plain(masking),
                }
            ),
        )

    @property
    def batch_size(self) -> int:
        """Return the number of windows of every batch."""
        return self._facts.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of every batch."""
        return self._facts.tokens_per_batch

    @property
    def fingerprint(self) -> str:
        """Return a digest of the text, the shape, the masking and the seed."""
        return self._facts.fingerprint

    @property
    def examples_per_epoch(self) -> int:
        """Return the number of windows, which are the examples."""
        return self.num_windows

    @property
    def num_windows(self) -> int:
        """Return the number of windows of an epoch."""
        return self._order.num_windows

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; labels are the original tokens."""
        rows = self._order.rows(step)
        generator = numpy_generator(self._seed, self._purpose, step)
        is_scorable = self._scorable[rows]
        is_masked = generator.random(rows.shape) < self._masking.rate
        selected = np.flatnonzero(is_masked & is_scorable)
        if not selected.size:
            selected = np.flatnonzero(is_scorable)[:1]
        labels = rows.reshape(-1)[selected]
        inputs = rows.copy()
        inputs.reshape(-1)[selected] = self._masking.replace_tokens(
            labels, generator, mask=self._mask_token, ordinary=self._ordinary
        )
        return _batch(inputs, selected, labels)


@final
class CausalWindows:
    """Windows with every token predicted from its predecessors."""

    def __init__(
        self,
        store: TokenStore,
        *,
        window: int,
        batch_size: int,
        seed: int,
        purpose: str = "train",
    ) -> None:
        """Prepare the stream.

        Args:
            store: The tokenized text.
            window: Tokens of a window; at least 2, since a label is the next token.
            batch_size: Windows of a batch.
            seed: Seed of the order of the windows.
            purpose: Name of the stream, so that training and evaluation differ.

        Raises:
            SpecError: If the window has no next token.
        """
        if window == 1:
            raise SpecError(f"'window' must be at least 2 to hold a next token; got {window}")
        self._order = WindowOrder(
            store, window=window, batch_size=batch_size, seed=seed, purpose=purpose
        )
        self._scorable = scorable(store.vocabulary)
        self._facts = _Facts(
            batch_size=batch_size,
            tokens_per_batch=batch_size * window,
            fingerprint=fingerprint(
                {
                    "stream": "causal windows",
                    "store": store.fingerprint,
                    "shape": [batch_size, window],
                    "seed": seed,
                    "purpose": purpose,
                }
            ),
        )

    @property
    def batch_size(self) -> int:
        """Return the number of windows of every batch."""
        return self._facts.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of every batch."""
        return self._facts.tokens_per_batch

    @property
    def fingerprint(self) -> str:
        """Return a digest of the text, the shape and the seed."""
        return self._facts.fingerprint

    @property
    def examples_per_epoch(self) -> int:
        """Return the number of windows, which are the examples."""
        return self.num_windows

    @property
    def num_windows(self) -> int:
        """Return the number of windows of an epoch."""
        return self._order.num_windows

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; labels are the next tokens inside each window."""
        return self._predicted(self._order.rows(step))

    def held_out(self) -> tuple[Batch, ...]:
        """Return all windows in the order of the text as batches; the last may be smaller."""
        return tuple(map(self._predicted, self._order.in_order()))

    def _predicted(self, rows: Int[np.ndarray, "example position"]) -> Batch:
        """Return windows as a batch with the next tokens as labels."""
        following = np.roll(rows, -1, axis=1)
        is_selected = self._scorable[following]
        # The last position would be labeled with the first token of its own window.
        is_selected[:, -1] = False
        selected = np.flatnonzero(is_selected)
        return _batch(rows, selected, following.reshape(-1)[selected])


def evaluation_batches(stream: Stream, num_batches: int) -> tuple[Batch, ...]:
    """Return the first batches of a stream, for repeated evaluation.

    Args:
        stream: A stream, usually over the validation split.
        num_batches: Number of batches; positive.

    Raises:
        SpecError: If it is not positive.
    """
    if num_batches < 1:
        raise SpecError(f"'num_batches' must be positive; got {num_batches}")
    return tuple(stream.batch(step) for step in range(num_batches))


def scorable(vocabulary: Vocabulary) -> Bool[np.ndarray, " class"]:
    """Return for each id whether it may be scored: not special and not the mask token."""
    allowed = np.ones(vocabulary.size, dtype=np.bool_)
    allowed[list(vocabulary.special)] = False
    if vocabulary.mask is not None:
        allowed[vocabulary.mask] = False
    return allowed


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """Common properties of a stream."""

    batch_size: int
    tokens_per_batch: int
    fingerprint: str


def _batch(
    rows: Int[np.ndarray, "example position"],
    selected: Int[np.ndarray, " selected"],
    labels: Int[np.ndarray, " selected"],
) -> Batch:
    return Batch(
        inputs={"input_ids": torch.from_numpy(rows)},
        labels=torch.from_numpy(labels),
        selected=torch.from_numpy(selected),
    )
