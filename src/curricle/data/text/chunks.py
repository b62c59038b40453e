"""Text files read in chunks, with a digest of the bytes that were read.

`TextFile` opens a file, compressed or not, and yields its text in chunks of bounded length. Tokens
are cached under the digest of the text's bytes; if the file changed between the digest and the
reading, even temporarily, wrong tokens would be cached under a right name. So every reading hashes
its bytes and raises an error at the end if the content differs.
"""

import codecs
import gzip
import hashlib
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import final

from curricle.data.text import progress
from curricle.errors import DataError, reason
from curricle.files import content_digest

CHUNK_BYTES = 2**20
"""Bytes per read."""
LONGEST_LINE = 2**26
"""Maximum number of characters of a line, which is a document in a JSON-lines file."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A text file with the digest of its content at opening."""

    path: Path
    """The file, compressed if its name ends in `.gz`."""
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
        # A byte order mark is not text; "utf-8-sig" drops it.
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
        """Yield the content, uncompressed; ends with an empty chunk.

        Raises:
            DataError: If the content differs from that at opening.
        """
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            raw = _Hashing(file)
            with gzip.open(raw) if self.path.suffix == ".gz" else nullcontext(raw) as source:
                while data := source.read(CHUNK_BYTES):
                    progress.advance(raw.count, size)
                    yield data
        if raw.digest.hexdigest() != self.sha256:
            raise DataError(
                f"{str(self.path)!r} must not change while it is read; it did, and nothing made "
                f"from it is kept; start again when the file is complete"
            )
        yield b""


@final
class _Hashing(io.RawIOBase):
    """A file that hashes all bytes read from it, in order."""

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
        chunks: The text in order, in chunks of any length.
        source: The file, for errors.

    Raises:
        DataError: If a line has more than `LONGEST_LINE` characters.
    """
    fragments: list[str] = []
    count = number = 0
    for chunk in chunks:
        # Fragments are joined at the end of a line, so a line of many chunks is copied once.
        for position, text in enumerate(chunk.split("\n")):
            if position:
                yield "".join(fragments)
                fragments, count, number = [], 0, number + 1
            fragments.append(text)
            count += len(text)
            if count > LONGEST_LINE:
                raise DataError(
                    f"{str(source)!r} must hold lines of at most {LONGEST_LINE:,} characters; line "
                    f"{number + 1} is longer; a '.txt' file may hold one text of any length"
                )
    if count:
        yield "".join(fragments)


def count_lines(chunks: Iterable[str]) -> int:
    """Return the number of lines of a text; a last one without an end counts.

    Args:
        chunks: The text in order, in chunks of any length except 0.
    """
    count, last = 0, "\n"
    for chunk in chunks:
        count, last = count + chunk.count("\n"), chunk[-1]
    return count + (last != "\n")


def between(chunks: Iterable[str], first: int, last: int) -> Iterator[str]:
    """Yield a range of the lines of a text.

    Args:
        chunks: The text in order, in chunks of any length; all of it is read.
        first: Number of the first line, counted from 0.
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
    *complete, remainder = chunk.split("\n")
    return itertools.chain((line + "\n" for line in complete), [remainder])
