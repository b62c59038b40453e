"""Text files read in chunks, with a digest of the bytes read.

`TextFile` opens a file, compressed or not, and yields its text in chunks of bounded length. Results
derived from a text are cached under the digest of its bytes. A file that changes between digest and
reading, even if it is restored afterwards, would leave a wrong result under a valid name. Every
reading therefore hashes the bytes it reads and raises an error at the end if they differ.
"""

import codecs
import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from curricle.data.text import progress
from curricle.errors import DataError, reason
from curricle.files import content_digest

CHUNK_BYTES = 2**20
"""Bytes read at once."""
LONGEST_LINE = 2**26
"""Characters of the longest line that is read as one: a document of a JSON-lines file."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A text file with the content that it had when it was opened."""

    path: Path
    """The file; one that ends in `.gz` is compressed."""
    sha256: str
    """Digest of its bytes, in hexadecimal."""

    def chunks(self) -> Iterator[str]:
        """Yield the text in order, with line feeds as line ends and without a byte order mark.

        Raises:
            DataError: If the file cannot be read, is not UTF-8, or has changed since it was opened.
        """
        try:
            yield from self._decoded()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{str(self.path)!r} cannot be read: {reason(error)}") from None

    def _decoded(self) -> Iterator[str]:
        # A byte order mark is not text; "utf-8-sig" drops it where there is one.
        utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
        line = 1
        for data in self._bytes():
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise DataError(
                    f"{str(self.path)!r} must be UTF-8 text: line {line} has byte "
                    f"0x{error.object[error.start]:02x} ({error.reason})"
                ) from None
            line += text.count("\n")
            if text:
                yield text

    def _bytes(self) -> Iterator[bytes]:
        """Yield the content, uncompressed; an empty part closes it.

        Raises:
            DataError: If the bytes read differ from those at the time of opening.
        """
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            raw = _Hashing(file)
            with gzip.open(raw) if self.path.suffix == ".gz" else io.BytesIO() as unpacked:
                source: _Readable = unpacked if self.path.suffix == ".gz" else raw
                while data := source.read(CHUNK_BYTES):
                    progress.advance(raw.count, size)
                    yield data
        if raw.digest.hexdigest() != self.sha256:
            raise DataError(
                f"{str(self.path)!r} must not change while it is read; it did, and nothing that "
                f"was made of it is kept; start again once it stays as it is"
            )
        yield b""


class _Readable(Protocol):
    """Something with bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        ...


@final
class _Hashing(io.RawIOBase):
    """A file that hashes everything that is read from it, in order."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        self.count += len(data)
        return data


def open_text(path: Path) -> TextFile:
    """Return a text file with the digest of its present content.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return TextFile(path=path, sha256=content_digest(path))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {reason(error)}") from None


def lines(chunks: Iterable[str], source: object) -> Iterator[str]:
    """Yield the lines of a text without their ends.

    Args:
        chunks: The text in order, in parts of any length.
        source: The file, for errors.

    Raises:
        DataError: If a line has more than `LONGEST_LINE` characters.
    """
    line: list[str] = []
    count = number = 0
    for chunk in chunks:
        # Joined once, at its end: a line of many chunks is copied only once.
        for position, text in enumerate(chunk.split("\n")):
            if position:
                yield "".join(line)
                line, count, number = [], 0, number + 1
            line.append(text)
            count += len(text)
            if count > LONGEST_LINE:
                raise DataError(
                    f"{str(source)!r} must hold lines of at most {LONGEST_LINE:,} characters; line "
                    f"{number + 1} is longer; a '.txt' file may hold one text of any length"
                )
    if count:
        yield "".join(line)


def count_lines(chunks: Iterable[str]) -> int:
    """Return the number of lines of a text; a last one without an end counts.

    Args:
        chunks: The text in order, in parts of any length; none is empty.
    """
    count, last = 0, "\n"
    for chunk in chunks:
        count, last = count + chunk.count("\n"), chunk[-1]
    return count + (last != "\n")


def between(chunks: Iterable[str], first: int, last: int) -> Iterator[str]:
    """Yield the part of a text that some of its lines make up.

    Args:
        chunks: The text in order, in parts of any length; all of it is read.
        first: Number of the first line, from 0 on.
        last: Number of the line after the last.
    """
    number = 0
    for chunk in chunks:
        breaks = chunk.count("\n")
        if first <= number and number + breaks < last:
            yield chunk
        elif number < last and number + breaks >= first:
            numbered = enumerate(_with_ends(chunk), number)
            yield "".join(line for at, line in numbered if first <= at < last)
        number += breaks


def _with_ends(chunk: str) -> Iterator[str]:
    *complete, tail = chunk.split("\n")
    return itertools.chain((line + "\n" for line in complete), [tail])
