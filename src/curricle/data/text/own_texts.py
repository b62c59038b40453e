"""Next-token batches of texts in memory, by a tokenizer of the user.

`text_stream` tokenizes texts and cuts the row of their tokens into windows, as language models are
trained and evaluated on. The stream is training data, and held-out data for `evaluation`.

Axes: token (places in all texts, one after another).

Design: a text is tokenized whole, since a tokenizer may join characters of two lines, and without
added tokens. Nothing separates two texts, as in the usual scripts for language models: a text
that is to end with a token has it written at its end. Every token is predicted, also a special one
that the texts contain, as `curricle.stream(..., next_token=True)` does with the same windows; there
is no padding.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from curricle.data.text.pieces import batches
from curricle.data.text.token_store import TokenStore, Vocabulary, store_in_memory
from curricle.data.text.windows import CausalWindows
from curricle.errors import DataError
from curricle.protocols import fast_backend


def text_stream(
    texts: Iterable[str],
    tokenizer: object,
    *,
    window: int,
    batch_size: int,
    seed: int = 0,
    purpose: str = "train",
) -> CausalWindows:
    """Return next-token data of texts, for training and as held-out data.

    The tokens of all texts are kept in memory, two or four bytes for each.

    Args:
        texts: Texts or lines in order, with their line ends; a window may extend over the end of
            one.
        tokenizer: A fast tokenizer of transformers, or a `Tokenizer` of tokenizers. It adds no
            special tokens; those in the texts, such as the end of a text, are predicted.
        window: Tokens of an example; at least 2.
        batch_size: Examples of a batch.
        seed: Seed of the order of the windows.
        purpose: Name of the order, so that training and evaluation differ.

    Raises:
        BindError: If the tokenizer is of another kind.
        DataError: If `texts` are a single text, or shorter than a window.
        SpecError: If a size is too small.
    """
    if isinstance(texts, str):
        raise DataError("'texts' must be an iterable of texts, as [text]; got a single text")
    return CausalWindows(
        _tokenized(_checked(texts), tokenizer),
        window=window,
        batch_size=batch_size,
        seed=seed,
        purpose=purpose,
    )


def _tokenized(texts: Iterable[str], tokenizer: object) -> TokenStore:
    """Return the tokens of texts in memory."""
    backend = fast_backend("", tokenizer)
    # A copy, since the caller's truncation and padding are settings of the same object.
    copied = type(backend).from_str(backend.to_str())
    copied.no_truncation()
    copied.no_padding()
    # Ids may have gaps, so the number of tokens is no bound of them.
    size = 1 + max(copied.get_vocab(with_added_tokens=True).values())
    rows = (
        np.array([number for text in encoded for number in text.ids], dtype=np.int64)
        for encoded in (
            copied.encode_batch_fast(batch, add_special_tokens=False) for batch in batches(texts)
        )
    )
    return store_in_memory(rows, Vocabulary(size=size))


def _checked(texts: Iterable[object]) -> Iterator[str]:
    """Yield texts after checking that they are strings.

    Raises:
        DataError: If one is not.
    """
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"'texts' must be strings; got {type(text).__name__!r}")
        yield text
