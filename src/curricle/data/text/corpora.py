"""Corpora of documents: text files, folders, the shipped sample, and data sets of the Hub.

`open_corpus` returns the documents of a split from a text file, a folder with a file for each
split, the sample shipped with the package, a data set of the Hugging Face Hub, or several of these
in order.

Design: every iteration reads documents again, one at a time and text files in chunks, since a
Wikipedia does not fit into memory. A digest of the source bytes and of their interpretation is the
cache key of all derived data. Every reading of a text file is verified against it. For a data set,
the bytes are the Arrow files of `datasets`: they are opened once for both digest and documents, so
a new version on the Hub or an old one in its cache cannot come between the two. The package is an
extra, imported when a corpus needs it.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final, get_args

from curricle.data.table_files import form_of, rows_of
from curricle.data.text import progress
from curricle.data.text.chunks import TextFile, between, count_lines, lines, open_text
from curricle.errors import DataError, SpecError, near_names
from curricle.extras import imported
from curricle.files import content_digest
from curricle.values import fingerprint
from curricle.yaml_specs import from_json

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Split = Literal["train", "valid", "test"]
Corpus = str | Path | Sequence[str | Path]
SAMPLE = "sample"
"""Name of the text shipped with the package."""
HUB = "datasets:"
"""Prefix of the names of data sets."""
TABLES = (".csv", ".tsv", ".parquet")
"""Formats of tables beside JSON lines, in each of whose rows a column is a document."""
SUFFIXES = (
    *(".txt", ".txt.gz", ".jsonl", ".jsonl.gz"),
    *(".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"),
)
TEXT = "text"
"""Field of a JSON line, or column of a table or data set, that holds a document."""
AT_ONCE = 1000
"""Rows of a data set per call; single rows take fifty times as long."""
_TEXT = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ufeff]")
"""A character of text: neither blank nor control character."""
Pieces = Iterable[str]
"""A document in order, in pieces of any length."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """The documents of a split; every iteration reads them again."""

    read: Callable[[], Iterator[Pieces]]
    """Yields them in order; each must be read to its end before the next."""
    digest: str
    """Equal only for equal documents."""

    def __iter__(self) -> Iterator[str]:
        """Return the documents in order, as single strings."""
        return ("".join(pieces) for pieces in self.read())


def open_corpus(corpus: Corpus, split: Split) -> Documents:
    """Return the documents of a split, without documents that have no text.

    A text file is a single document; in a JSON-lines file the field `text` of each line is a
    document, and in a CSV or Parquet file that of each row. A folder has a file for each split
    (`train.txt`, `valid.jsonl.gz`, ...); a single file is cut 90/5/5 by lines or rows, in order. In
    a data set the column `text` of each row is a document, and its split `validation` is `valid`;
    if it has only `train`, that is cut 90/5/5 by rows.

    The content of files and rows is validated while the documents are read; its errors are raised
    then.

    Args:
        corpus: A folder, a file, the word `sample` for the text shipped with the package,
            `datasets:NAME` or `datasets:NAME:CONFIG`, or several of these, each with the split.
        split: `train`, `valid` or `test`.
    """
    sources = [_open(name, split) for name in names(corpus)]
    return Documents(
        read=lambda: itertools.chain.from_iterable(source.read() for source in sources),
        digest=fingerprint([source.digest for source in sources]),
    )


def names(corpus: Corpus) -> list[str]:
    """Return the names of the texts of a corpus, in order.

    Raises:
        SpecError: If there is none.
    """
    texts = [corpus] if isinstance(corpus, str | Path) else corpus
    if not texts:
        raise SpecError(f"'corpus' must name at least one text; got {corpus!r}")
    return list(map(str, texts))


def _open(name: str, split: Split) -> Documents:
    if name.startswith(HUB):
        return _open_data_set(name, split)
    return _open_file(name, split)


def _with_text(documents: Iterable[str], name: str, split: Split) -> Iterator[Pieces]:
    """Yield the documents with text.

    Raises:
        DataError: If there is none, or a document has an incomplete character.
    """
    is_empty = True
    for number, document in enumerate(documents, start=1):
        if _TEXT.search(document) is None:
            continue
        is_empty = False
        if not _is_encodable(document):
            raise DataError(
                f"split {split!r} of {name!r} must hold whole characters; document {number} has "
                f"a lone surrogate, half of one; write the text again as UTF-8"
            )
        yield (document,)
    if is_empty:
        raise DataError(_empty(name, split))


def _is_encodable(text: str) -> bool:
    """Return whether a text can be written as UTF-8; strings in JSON may have lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _empty(name: str, split: Split) -> str:
    return (
        f"split {split!r} of {name!r} must hold text; it is empty, or holds nothing but blanks "
        f"and control characters"
    )


def _digest(content: list[str], form: str, cut: Split | None) -> str:
    """Return a digest of documents.

    Args:
        content: Digests of their files.
        form: Format of the files.
        cut: Split that is cut from the files; None if the files have nothing else.
    """
    return fingerprint({"content": content, "form": form, "cut": cut or ""})


def _share(split: Split, count: int) -> tuple[int, int]:
    """Return the first item of a split, and the first after it, if 90, 5 and 5 percent are cut."""
    borders = [count * percent // 100 for percent in (0, 90, 95, 100)]
    return list(itertools.pairwise(borders))[get_args(Split).index(split)]


def _open_file(name: str, split: Split) -> Documents:
    path, is_folder = _locate(name, split)
    cut = None if is_folder else split
    if form_of(path) in TABLES:
        return _open_table(path, cut, name, split)
    form = ".jsonl" if ".jsonl" in path.suffixes else ".txt"
    file = open_text(path)
    chunks = partial(_chunks, file, cut, name)
    if form == ".jsonl":
        read = partial(_read_records, chunks, file, name, split)
    else:
        read = partial(_read_whole, chunks, name, split)
    return Documents(read=read, digest=_digest([file.sha256], form, cut))


def _locate(name: str, split: Split) -> tuple[Path, bool]:
    """Return the file with a split and whether it has nothing else.

    Raises:
        DataError: If there is no such file or more than one.
    """
    root = Path(__file__).parent / "sample" / "shakespeare.txt.gz" if name == SAMPLE else Path(name)
    if root.is_file():
        return root, False
    if not root.is_dir():
        raise DataError(
            f"corpus {name!r} must be a folder or a text file; there is none; "
            f"'--set task.corpus={SAMPLE}' takes the shipped text"
        )
    file_names = [split + suffix for suffix in SUFFIXES]
    files = [root / file_name for file_name in file_names if (root / file_name).is_file()]
    if len(files) != 1:
        raise DataError(
            f"corpus {name!r} must hold exactly one file for split {split!r} "
            f"({', '.join(file_names)}); got {' and '.join(file.name for file in files) or 'none'}"
        )
    return files[0], True


def _chunks(file: TextFile, cut: Split | None, name: str) -> Iterator[str]:
    """Yield a file, or the lines of a split that is cut from it.

    Raises:
        DataError: If the file has too few lines for that split.
    """
    if cut is None:
        yield from file.chunks()
        return
    count = count_lines(file.chunks())
    first, last = _share(cut, count)
    if count and first == last:
        raise DataError(
            f"{_empty(name, cut)}; a single file is cut 90/5/5 by lines, in order, and this has "
            f"{count}; a folder with {cut}.txt and the other splits is read as it is"
        )
    yield from between(file.chunks(), first, last)


def _read_whole(chunks: Callable[[], Iterator[str]], name: str, split: Split) -> Iterator[Pieces]:
    """Yield the single document of a text file.

    Raises:
        DataError: If it has no text.
    """
    if not any(_TEXT.search(chunk) for chunk in chunks()):
        raise DataError(_empty(name, split))
    yield chunks()


def _read_records(
    chunks: Callable[[], Iterator[str]], file: TextFile, name: str, split: Split
) -> Iterator[Pieces]:
    records = (
        _record(line, file.path, number)
        for number, line in enumerate(lines(chunks(), file.path), start=1)
        if line.strip()
    )
    return _with_text(records, name, split)


def _record(line: str, file: Path, number: int) -> str:
    """Return the document in a JSON line.

    Raises:
        DataError: If there is none.
    """
    where = f"{str(file)!r} must hold"
    try:
        record = from_json(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} one JSON object a line: line {number}, column {error.colno}: {error.msg}"
        ) from None
    text = record.get(TEXT) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{where} a field 'text' in every line; got {line[:60]!r} in line {number}")
    return text


def _open_table(path: Path, cut: Split | None, name: str, split: Split) -> Documents:
    """Return the documents in the rows of a file, or of a split that is cut from it."""
    sha256 = open_text(path).sha256

    def texts() -> Iterator[str]:
        borders = _share(cut, sum(1 for _ in rows_of(path))) if cut else (0, None)
        for number, row in enumerate(itertools.islice(rows_of(path), *borders), start=1):
            text = row.get(TEXT)
            if not isinstance(text, str):
                raise DataError(
                    f"{str(path)!r} must hold a text in column {TEXT!r} of every row; got {text!r} "
                    f"in row {number} with columns {', '.join(row)}"
                )
            yield text
        if open_text(path).sha256 != sha256:
            raise DataError(
                f"{str(path)!r} must not change while it is read; it did, and nothing made from "
                f"it is kept; start again when the file is complete"
            )

    digest = _digest([sha256], form_of(path), cut)
    return Documents(read=lambda: _with_text(texts(), name, split), digest=digest)


def _open_data_set(name: str, split: Split) -> Documents:
    """Return the documents of a data set.

    Raises:
        DataError: If it has no such split or no texts.
    """
    splits = load_data_set(name)
    cut = split if set(splits) == {"train"} else None
    source = "train" if cut else "validation" if split == "valid" else split
    if source not in splits:
        raise DataError(f"{name!r} must have a split {source!r}; {near_names(source, splits)}")
    table = splits[source]
    if TEXT not in table.column_names:
        similar = near_names(TEXT, table.column_names)
        raise DataError(f"{name!r} must have a column {TEXT!r}; {similar}")
    files = [Path(file["filename"]) for file in table.cache_files]
    digest = _digest([content_digest(file) for file in files], "arrow", cut)
    rows = (table.select(range(*_share(cut, len(table)))) if cut else table).select_columns([TEXT])
    return Documents(read=lambda: _with_text(_read_rows(rows, name), name, split), digest=digest)


def load_data_set(name: str) -> "DatasetDict":
    """Return the splits of a data set by name, mapped from the cache of `datasets`.

    Args:
        name: `datasets:NAME` or `datasets:NAME:CONFIG`.

    Raises:
        DataError: If it cannot be loaded.
    """
    path, _, config = name.removeprefix(HUB).partition(":")
    if not path:
        raise DataError(f"corpus {name!r} must name a data set after the colon; got nothing")
    datasets = imported(
        "datasets", package="datasets", extra="datasets", use="a corpus of that kind"
    )
    cause: object
    try:
        # Data sets in memory have no files, so the digests of all of them would be equal.
        return datasets.load_dataset(path, config or None, keep_in_memory=False)
    except datasets.exceptions.DatasetGenerationError as error:
        # This error has no information of its own.
        cause = error.__cause__ or error
    except Exception as error:  # noqa: BLE001 - network, disk, name or format may be wrong
        cause = error
    raise DataError(f"{name!r} cannot be loaded: {' '.join(str(cause).split())}")


def _read_rows(rows: "Dataset", name: str) -> Iterator[str]:
    """Yield the texts of a data set.

    Raises:
        DataError: If a value of the column is not a text.
    """
    for number, batch in enumerate(rows.iter(AT_ONCE)):
        progress.advance(min((number + 1) * AT_ONCE, len(rows)), len(rows))
        for text in batch[TEXT]:
            if not isinstance(text, str):
                raise DataError(f"{name!r} must hold a text in every row; got {text!r}")
            yield text
