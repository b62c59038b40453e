"""Where does a text come from?

`open_corpus` gives the documents of one split: of a text file, a folder with a file for each split,
the sample shipped with the package, a data set of the Hugging Face Hub, or several of these, one
after another.

Design: documents are read one by one, and anew each time they are asked for, since a Wikipedia does
not fit into memory. With them goes a digest of the bytes that they are read from and of how, which
names what is made of them in the cache. For a data set these are the Arrow files into which
`datasets` has put it: they are opened once and give both digest and documents, so that neither a
new version on the Hub nor an old one in its cache can come between the two. The package is
imported when a corpus asks for it; it is an extra.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, final, get_args

from curricle.data.store import content_digest
from curricle.errors import DataError, SpecError, near_names, reason
from curricle.extras import imported
from curricle.specs import fingerprint

Split = Literal["train", "valid", "test"]
Corpus = str | Path | Sequence[str | Path]
SAMPLE = "sample"
"""Word that stands for the text shipped with the package."""
HUB = "datasets:"
"""What the name of a data set begins with."""
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
TEXT = "text"
"""Field of a JSON line, or column of a data set, that holds a document."""
AT_ONCE = 1000
"""Rows of a data set read in one call; one by one takes fifty times as long."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """The documents of one split, read anew each time they are iterated."""

    read: Callable[[], Iterator[str]]
    """Gives them in order."""
    digest: str
    """Equal only for equal documents."""

    def __iter__(self) -> Iterator[str]:
        """Return the documents in order."""
        return self.read()


def open_corpus(corpus: Corpus, split: Split) -> Documents:
    """Return the documents of one split; those without text are left out.

    A text file is one document; in a JSON-lines file each line's field `text` is one. A folder
    holds one file for each split (`train.txt`, `valid.jsonl.gz`, ...); a single file is cut 90/5/5
    by lines, in order. In a data set each row's column `text` is a document, and its split
    `validation` is `valid`; if it has only `train`, that is cut 90/5/5 by rows.

    What a file or row holds is first looked at when the documents are read; errors of it are raised
    there.

    Args:
        corpus: A folder, a file, the word `sample` for the text shipped with the package,
            `datasets:NAME` or `datasets:NAME:CONFIG`, or several of these, which must each hold the
            split.
        split: `train`, `valid` or `test`.
    """
    parts = [_open(one, split) for one in names(corpus)]
    return Documents(
        read=lambda: itertools.chain.from_iterable(parts),
        digest=fingerprint([part.digest for part in parts]),
    )


def names(corpus: Corpus) -> list[str]:
    """Return the names of the texts that a corpus is made of, in order.

    Raises:
        SpecError: If it is made of none.
    """
    found = [str(one) for one in ([corpus] if isinstance(corpus, str | Path) else corpus)]
    if not found:
        raise SpecError(f"'corpus' must name at least one text; got {corpus!r}")
    return found


def _open(name: str, split: Split) -> Documents:
    part = _open_data_set(name, split) if name.startswith(HUB) else _open_file(name, split)
    return Documents(read=partial(_with_text, part, name, split), digest=part.digest)


def _with_text(documents: Iterable[str], name: str, split: Split) -> Iterator[str]:
    """Yield the documents that hold text.

    Raises:
        DataError: If none does.
    """
    is_empty = True
    for document in documents:
        if document.strip():
            is_empty = False
            yield document
    if is_empty:
        raise DataError(f"split {split!r} of {name!r} must hold text; it is empty")


def _digest(files: Iterable[Path], form: str, cut: Split | None) -> str:
    """Return a digest of documents.

    Args:
        files: What they are read from.
        form: How they are found in it.
        cut: Split that is cut from the files; None if they are read whole.
    """
    return fingerprint(
        {"content": [content_digest(file) for file in files], "form": form, "cut": cut or ""}
    )


def _share(split: Split, count: int) -> tuple[int, int]:
    """Return where a split begins and ends if 90, 5 and 5 percent are cut, in order."""
    borders = [count * percent // 100 for percent in (0, 90, 95, 100)]
    return list(itertools.pairwise(borders))[get_args(Split).index(split)]


def _open_file(name: str, split: Split) -> Documents:
    file, is_folder = _locate(name, split)
    cut = None if is_folder else split
    form = ".jsonl" if ".jsonl" in file.suffixes else ".txt"
    return Documents(read=partial(_read_file, file, form, cut), digest=_digest([file], form, cut))


def _locate(name: str, split: Split) -> tuple[Path, bool]:
    """Return the file that holds a split and whether it holds nothing else.

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
    possible = [split + suffix for suffix in SUFFIXES]
    found = [root / one for one in possible if (root / one).is_file()]
    if len(found) != 1:
        raise DataError(
            f"corpus {name!r} must hold exactly one file for split {split!r} "
            f"({', '.join(possible)}); got {' and '.join(file.name for file in found) or 'none'}"
        )
    return found[0], True


def _read_file(file: Path, form: str, cut: Split | None) -> Iterator[str]:
    lines = _lines(file)
    if cut is not None:
        lines = itertools.islice(lines, *_share(cut, sum(1 for _ in _lines(file))))
    if form == ".jsonl":
        yield from (_record(line, file) for line in lines if line.strip())
    else:
        yield "".join(lines)


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends.

    Raises:
        DataError: If it cannot be read or is not UTF-8.
    """
    try:
        # A byte order mark is not text; "utf-8-sig" drops it where there is one.
        if file.suffix == ".gz":
            with gzip.open(file, "rt", encoding="utf-8-sig") as text:
                yield from text
        else:
            with file.open(encoding="utf-8-sig") as text:
                yield from text
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} must be UTF-8 text: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(file)!r} cannot be read: {reason(error)}") from None


def _record(line: str, file: Path) -> str:
    """Return the document in a JSON line.

    Raises:
        DataError: If there is none.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{str(file)!r} must hold one JSON object a line: {error}") from None
    text = record.get(TEXT) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{str(file)!r} must hold a field 'text' in every line; got {line[:60]!r}")
    return text


def _open_data_set(name: str, split: Split) -> Documents:
    """Return the documents of a data set.

    Raises:
        DataError: If it has no such split or no texts.
    """
    splits = _load(name)
    cut = split if set(splits) == {"train"} else None
    wanted = "train" if cut else "validation" if split == "valid" else split
    if wanted not in splits:
        raise DataError(f"{name!r} must have a split {wanted!r}; {near_names(wanted, splits)}")
    table = splits[wanted]
    if TEXT not in table.column_names:
        known = near_names(TEXT, table.column_names)
        raise DataError(f"{name!r} must have a column {TEXT!r}; {known}")
    digest = _digest([Path(one["filename"]) for one in table.cache_files], "arrow", cut)
    rows = table.select(range(*_share(cut, len(table)))) if cut else table
    return Documents(read=partial(_read_rows, rows.select_columns([TEXT]), name), digest=digest)


def _load(name: str) -> Any:  # noqa: ANN401 - the package may be missing and with it the type
    """Return the splits of a data set by name, mapped from the cache of `datasets`.

    Raises:
        DataError: If it cannot be loaded, for whatever reason.
    """
    path, _, config = name.removeprefix(HUB).partition(":")
    if not path:
        raise DataError(f"corpus {name!r} must name a data set after the colon; got nothing")
    datasets = imported(
        "datasets", package="datasets", extra="datasets", use="a corpus of that kind"
    )
    why: object
    try:
        # In memory a data set would have no files, and a digest of none is the same for all.
        return datasets.load_dataset(path, config or None, keep_in_memory=False)
    except datasets.exceptions.DatasetGenerationError as error:
        # The error itself says no more than that there is one.
        why = error.__cause__ or error
    except Exception as error:  # noqa: BLE001 - what fails may be network, disk, name or format
        why = error
    raise DataError(f"{name!r} cannot be loaded: {' '.join(str(why).split())}")


def _read_rows(rows: Any, name: str) -> Iterator[str]:  # noqa: ANN401 - as above
    """Yield the texts of a data set.

    Raises:
        DataError: If something else stands in the column.
    """
    for batch in rows.iter(AT_ONCE):
        for text in batch[TEXT]:
            if not isinstance(text, str):
                raise DataError(f"{name!r} must hold a text in every row; got {text!r}")
            yield text
