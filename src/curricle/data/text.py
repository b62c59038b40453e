"""How does a text become tokens?

`read_corpus` reads a folder of splits, a single file or the sample shipped with the package;
`train_tokenizer` fits a byte-level BPE on the training split; `open_or_build` does both once,
keeps the result on disk and gives a `TokenStore`.

Design: the tokenizer is trained on the training split only and serves all splits. The folders in
the cache are named by a digest of everything they depend on (content of the files, split,
vocabulary size, versions), so another corpus never meets an old tokenizer. Documents are joined to
one row of tokens, each after a `<bos>`. WikiText writes rare words as a literal `<unk>`: that is
the tokenizer's unknown token, one id, and like all special tokens it is never scored.

This is the only module of the package's data part that needs `tokenizers` (the `hf` extra).
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from curricle.data.store import (
    TokenStore,
    Vocabulary,
    content_digest,
    open_store,
    read_manifest,
    require_digest,
    write_folder,
    write_store,
)
from curricle.errors import DataError, SpecError, reason
from curricle.specs import Plain, fingerprint

Split = Literal["train", "valid", "test"]
SAMPLE = "sample"
"""Word that stands for the text shipped with the package."""
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
SPECIAL = ("<pad>", "<unk>", "<mask>", "<bos>")
"""Special tokens; the place is the id."""
PAD, UNKNOWN, MASK, START = range(4)
ALGORITHM = 1
"""Version of the way from text to tokens; one more whenever the same text gives other tokens."""
SMALLEST = len(SPECIAL) + 256
"""Smallest vocabulary: every byte must have a token."""
AT_ONCE = 4096
"""Lines given to the tokenizer in one call."""


def read_corpus(path: str | Path, split: Split) -> list[str]:
    """Return the documents of one split.

    A text file is one document; in a JSON-lines file each line's field `text` is one. A folder
    holds one file for each split (`train.txt`, `valid.jsonl.gz`, ...); a single file is cut 90/5/5
    by lines, in order.

    Args:
        path: A folder, a file, or the word `sample` for the text shipped with the package.
        split: `train`, `valid` or `test`.

    Raises:
        DataError: If the file is missing, cannot be read, is not UTF-8 or holds no text.
    """
    file, is_folder = _locate(path, split)
    lines = _lines(file)
    if not is_folder:
        lines = _cut(lines, split)
    if ".jsonl" in file.suffixes:
        documents = [_record(line, file) for line in lines if line.strip()]
    else:
        documents = ["".join(lines)]
    if not any(map(str.strip, documents)):
        raise DataError(f"split {split!r} of {str(file)!r} must hold text; it is empty")
    return documents


def _locate(path: str | Path, split: Split) -> tuple[Path, bool]:
    """Return the file that holds a split and whether it holds nothing else.

    Raises:
        DataError: If there is no such file or more than one.
    """
    root = Path(__file__).parent / "sample" / "shakespeare.txt.gz" if path == SAMPLE else Path(path)
    if root.is_file():
        return root, False
    if not root.is_dir():
        raise DataError(
            f"corpus {str(path)!r} must be a folder or a text file; there is none; "
            f"'--set task.corpus={SAMPLE}' takes the shipped text"
        )
    names = [split + suffix for suffix in SUFFIXES]
    found = [root / name for name in names if (root / name).is_file()]
    if len(found) != 1:
        raise DataError(
            f"corpus {str(path)!r} must hold exactly one file for split {split!r} "
            f"({', '.join(names)}); got {' and '.join(file.name for file in found) or 'none'}"
        )
    return found[0], True


def _lines(file: Path) -> list[str]:
    try:
        # A byte order mark is not text; "utf-8-sig" drops it where there is one.
        if file.suffix == ".gz":
            with gzip.open(file, "rt", encoding="utf-8-sig") as text:
                return list(text)
        with file.open(encoding="utf-8-sig") as text:
            return list(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} must be UTF-8 text: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(file)!r} cannot be read: {reason(error)}") from None


def _cut(lines: list[str], split: Split) -> list[str]:
    borders = [len(lines) * percent // 100 for percent in (0, 90, 95, 100)]
    start, stop = list(pairwise(borders))[get_args(Split).index(split)]
    return lines[start:stop]


def _record(line: str, file: Path) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{str(file)!r} must hold one JSON object a line: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{str(file)!r} must hold a field 'text' in every line; got {line[:60]!r}")
    return text


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on texts; the same texts give the same one.

    The special tokens take the first ids in the order of `SPECIAL`. A text too short for that many
    merges gives a smaller vocabulary; the tokenizer knows its size.

    Args:
        texts: Documents or lines.
        vocabulary_size: Largest number of ids, special tokens included.

    Raises:
        SpecError: If there would be no room for every byte.
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
        # The blank before WikiText's `<unk>` belongs to it, as the blank before any word does.
        special_tokens=[AddedToken(name, lstrip=name == SPECIAL[UNKNOWN]) for name in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The trainer does not know special tokens in the text and would learn their letters.
    lines = (line.replace(SPECIAL[UNKNOWN], "") for text in texts for line in _by_line(text))
    tokenizer.train_from_iterator(lines, trainer=trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Iterable[str]) -> Iterator[Int[np.ndarray, " _"]]:
    """Yield the ids of documents in pieces; each document begins with `<bos>`.

    Args:
        tokenizer: From `train_tokenizer`.
        documents: Texts in order.
    """
    for document in documents:
        yield np.array([START])
        # Line by line, because one call on a whole book needs a hundred bytes for each letter.
        lines = _by_line(document)
        for start in range(0, len(lines), AT_ONCE):
            part = lines[start : start + AT_ONCE]
            encoded = tokenizer.encode_batch_fast(part, add_special_tokens=False)
            yield np.array([number for line in encoded for number in line.ids], dtype=np.int64)


def _by_line(text: str) -> list[str]:
    # Not `splitlines`, which also breaks at characters that are no line ends in a book.
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]


def open_tokenizer(corpus: str | Path, *, vocabulary_size: int, cache_dir: Path) -> Tokenizer:
    """Return the tokenizer of a corpus, trained on its training split the first time.

    Args:
        corpus: As in `read_corpus`.
        vocabulary_size: As in `train_tokenizer`.
        cache_dir: Folder that keeps what was made.
    """
    folder = cache_dir / f"tokenizer-{_tokenizer_key(corpus, vocabulary_size)}"

    def fill(building: Path) -> Plain:
        path = building / "tokenizer.json"
        train_tokenizer(read_corpus(corpus, "train"), vocabulary_size).save(str(path))
        return {"tokenizers": tokenizers.__version__, "sha256": content_digest(path)}

    if not folder.is_dir():
        write_folder(folder, fill)
    require_digest(folder / "tokenizer.json", str(read_manifest(folder).get("sha256")))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def open_or_build(
    corpus: str | Path, split: Split, *, vocabulary_size: int, cache_dir: Path
) -> TokenStore:
    """Return the tokens of one split, made the first time and mapped from disk afterwards.

    Args:
        corpus: As in `read_corpus`.
        split: `train`, `valid` or `test`; all use the tokenizer of the training split.
        vocabulary_size: As in `train_tokenizer`.
        cache_dir: Folder that keeps what was made.
    """
    key = fingerprint(
        {
            "tokenizer": _tokenizer_key(corpus, vocabulary_size),
            "split": split,
            "content": content_digest(_locate(corpus, split)[0]),
        }
    )
    folder = cache_dir / f"tokens-{split}-{key}"
    if not folder.is_dir():
        tokenizer = open_tokenizer(corpus, vocabulary_size=vocabulary_size, cache_dir=cache_dir)
        pieces = encode(tokenizer, read_corpus(corpus, split))
        write_store(folder, pieces, vocabulary_of(tokenizer))
    return open_store(folder)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Return the facts about the ids of a tokenizer from `train_tokenizer`."""
    return Vocabulary(
        size=tokenizer.get_vocab_size(), special=tuple(range(len(SPECIAL))), mask=MASK
    )


def _tokenizer_key(corpus: str | Path, vocabulary_size: int) -> str:
    return fingerprint(
        {
            "content": content_digest(_locate(corpus, "train")[0]),
            "vocabulary_size": vocabulary_size,
            "algorithm": ALGORITHM,
            "tokenizers": tokenizers.__version__,
        }
    )
