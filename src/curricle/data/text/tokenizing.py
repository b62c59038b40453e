"""Tokenizers trained on a corpus, and its text as tokens.

`train_tokenizer` fits a byte-level BPE on the training split of a corpus, and `encode` converts
documents to tokens; `open_or_build` does both once, caches the result on disk and returns a
`TokenStore`. Documents come from `curricle.data.text.corpora`.

Design: a text is read piece by piece, so neither a book nor its tokens are in memory. The tokenizer
is trained on the training split only and serves all splits. Folders in the cache are named by a
digest of all dependencies (documents, split, vocabulary size, versions), so a corpus is never read
with the tokenizer of another. Documents are concatenated to a row of tokens, each after a `<bos>`.
WikiText writes rare words as a literal `<unk>`: it is a single id, the tokenizer's unknown token,
and like all special tokens it is never scored.

This is the only data module that needs `tokenizers` (the `hf` extra).
"""

import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from curricle.data.text import progress
from curricle.data.text.corpora import Corpus, Documents, Pieces, Split, open_corpus
from curricle.data.text.pieces import batches, pieces
from curricle.data.text.token_store import (
    TokenStore,
    Vocabulary,
    open_store,
    read_manifest,
    remove_leftovers,
    require_digest,
    write_folder,
    write_store,
)
from curricle.errors import BindError, DataError, SpecError
from curricle.files import content_digest, write_text
from curricle.values import Plain, fingerprint

SPECIAL = ("<pad>", "<unk>", "<mask>", "<bos>")
"""Special tokens in the order of their ids."""
PAD, UNKNOWN, MASK, START = range(4)
SPECIAL_NAMES = {
    "pad_token": SPECIAL[PAD],
    "unk_token": SPECIAL[UNKNOWN],
    "mask_token": SPECIAL[MASK],
    "bos_token": SPECIAL[START],
}
"""Special tokens by their names in transformers."""
ALGORITHM = 3
"""Version of the tokenization; increased when the same text gives other tokens."""
SMALLEST = len(SPECIAL) + 256
"""Smallest vocabulary: every byte must have a token."""


def train_tokenizer(texts: Iterable[str | Pieces], vocabulary_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on texts; a deterministic function of the texts.

    The special tokens take the first ids in the order of `SPECIAL`. A text too short for that many
    merges gives a smaller vocabulary, see `get_vocab_size` of the tokenizer.

    Args:
        texts: Documents or lines, as strings or in pieces.
        vocabulary_size: Largest number of ids, special tokens included.

    Raises:
        SpecError: If the vocabulary has no room for every byte.
    """
    if vocabulary_size < SMALLEST:
        raise SpecError(
            f"'vocabulary_size' must be at least {SMALLEST}, which is every byte and "
            f"{len(SPECIAL)} special tokens; got {vocabulary_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        # The blank before WikiText's `<unk>` belongs to it, as before any word.
        special_tokens=[AddedToken(name, lstrip=name == SPECIAL[UNKNOWN]) for name in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The trainer does not recognize special tokens in the text and would learn their letters.
    lines = (piece.replace(SPECIAL[UNKNOWN], "") for text in texts for piece in _pieces(text))
    _train(tokenizer, lines, trainer)
    return tokenizer


def _train(tokenizer: Tokenizer, lines: Iterator[str], trainer: trainers.BpeTrainer) -> None:
    """Train a tokenizer in a second thread, so that a signal can interrupt the main one.

    The package reads its iterator in threads of its own, in which Python handles no signals.
    """
    context, is_stopped = copy_context(), threading.Event()

    def read() -> Iterator[str]:
        # The context variable with the watcher of the progress is not inherited by those threads.
        while (line := context.run(next, lines, None)) is not None:
            if is_stopped.is_set():
                raise DataError("'corpus' was not read to its end: training was stopped")
            yield line

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(tokenizer.train_from_iterator, read(), trainer=trainer)
        try:
            training.result()
        finally:
            is_stopped.set()


def encode(
    tokenizer: Tokenizer, documents: Iterable[str | Pieces]
) -> Iterator[Int[np.ndarray, " _"]]:
    """Yield the ids of documents in pieces; each document begins with `<bos>`.

    Args:
        tokenizer: From `train_tokenizer`.
        documents: Texts in order, as strings or in pieces.
    """
    for document in documents:
        yield np.array([START])
        for batch in batches(_pieces(document)):
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            yield np.array([number for piece in encoded for number in piece.ids], dtype=np.int64)


def _pieces(document: str | Pieces) -> Iterator[str]:
    return pieces([document] if isinstance(document, str) else document)


def open_tokenizer(corpus: Corpus, *, vocabulary_size: int, cache_dir: Path) -> Tokenizer:
    """Return the tokenizer of a corpus, trained on its training split the first time.

    Args:
        corpus: As in `open_corpus`.
        vocabulary_size: As in `train_tokenizer`.
        cache_dir: Folder of the cache.
    """
    return tokenizer_of(open_corpus(corpus, "train"), vocabulary_size, cache_dir)


def load_tokenizer(path: str) -> Tokenizer:
    """Return the tokenizer in a file or folder.

    Args:
        path: A `tokenizer.json`, or a folder with that file.

    Raises:
        BindError: If it cannot be read.
    """
    file = Path(path, "tokenizer.json") if Path(path).is_dir() else Path(path)
    try:
        return Tokenizer.from_file(str(file))
    # The package raises the base class of all errors.
    except Exception as error:  # noqa: BLE001 - see above
        raise BindError(
            f"{str(file)!r} must be the tokenizer.json of a fast tokenizer; got: {error}"
        ) from None


def open_or_build(
    corpus: Corpus, split: Split, *, vocabulary_size: int, cache_dir: Path
) -> TokenStore:
    """Return the tokens of a split, from the cache after the first call.

    Args:
        corpus: As in `open_corpus`.
        split: `train`, `valid` or `test`; all use the tokenizer of the training split.
        vocabulary_size: As in `train_tokenizer`.
        cache_dir: Folder of the cache.
    """
    remove_leftovers(cache_dir)
    train = open_corpus(corpus, "train")
    documents = train if split == "train" else open_corpus(corpus, split)
    key = fingerprint(
        {
            "tokenizer": _tokenizer_key(train, vocabulary_size),
            "split": split,
            "documents": documents.digest,
        }
    )
    folder = cache_dir / f"tokens-{split}-{key}"
    if not folder.is_dir():
        tokenizer = tokenizer_of(train, vocabulary_size, cache_dir)
        with progress.job(f"tokenizing {split}"):
            write_store(folder, encode(tokenizer, documents.read()), vocabulary_of(tokenizer))
    return open_store(folder)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, window: int) -> None:
    """Write a tokenizer in the format of `AutoTokenizer.from_pretrained` of transformers.

    It returns the ids of `encode` without the `<bos>` before a document.

    Args:
        tokenizer: From `train_tokenizer`; not modified.
        folder: Folder of the model.
        window: Maximum number of tokens of the model's input.
    """
    exported = Tokenizer.from_str(tokenizer.to_str())
    # `encode` reads single lines, so no token may extend over the end of a line.
    by_line = pre_tokenizers.Split("\n", behavior="merged_with_previous")
    exported.pre_tokenizer = pre_tokenizers.Sequence(
        [
            by_line,
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    write_text(folder / "tokenizer.json", exported.to_str(pretty=True))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIAL_NAMES,
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(facts, indent=2))


def with_start_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that begins each text with `<bos>`, also the second of two.

    Args:
        tokenizer: From `train_tokenizer`; not modified.
    """
    starting = Tokenizer.from_str(tokenizer.to_str())
    start = SPECIAL[START]
    starting.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, START)]
    )
    return starting


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Return the vocabulary of a tokenizer from `train_tokenizer`."""
    return Vocabulary(
        size=tokenizer.get_vocab_size(), special=tuple(range(len(SPECIAL))), mask=MASK
    )


def tokenizer_of(train: Documents, vocabulary_size: int, cache_dir: Path) -> Tokenizer:
    """Return the tokenizer of documents, trained the first time.

    Args:
        train: Documents for training.
        vocabulary_size: As in `train_tokenizer`.
        cache_dir: Folder of the cache.
    """
    folder = cache_dir / f"tokenizer-{_tokenizer_key(train, vocabulary_size)}"

    def fill(building: Path) -> Plain:
        path = building / "tokenizer.json"
        with progress.job("training the tokenizer"):
            train_tokenizer(train.read(), vocabulary_size).save(str(path))
        return {"tokenizers": tokenizers.__version__, "sha256": content_digest(path)}

    if not folder.is_dir():
        write_folder(folder, fill)
    require_digest(folder / "tokenizer.json", str(read_manifest(folder).get("sha256")))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _tokenizer_key(train: Documents, vocabulary_size: int) -> str:
    return fingerprint(
        {
            "documents": train.digest,
            "vocabulary_size": vocabulary_size,
            "algorithm": ALGORITHM,
            "tokenizers": tokenizers.__version__,
        }
    )
