"""Rows of files of JSON lines, plain or gzip."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from curricle.errors import DataError, reason
from curricle.yaml_specs import Document, from_json

GZIP = b"\x1f\x8b"
"""First bytes of a gzip file."""


def read_json_lines(path: Path) -> Iterator[tuple[int, Document]]:
    """Yield the number of each line, counted from 1, and its object; empty lines are left out.

    Args:
        path: The file.

    Raises:
        DataError: If it cannot be read, or a line is no JSON object.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(len(GZIP)) == GZIP
        opened = gzip.open if is_gzip else open
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parsed(line, number, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{str(path)!r} must be a readable file of JSON lines; got {reason(error)}"
        ) from None


def _parsed(line: bytes, number: int, path: Path) -> Document:
    """Return the object in a line.

    Raises:
        DataError: If there is none.
    """
    try:
        row = from_json(line)
    except ValueError as error:
        raise DataError(
            f"line {number} of {str(path)!r} must be a JSON object; got {reason(error)}"
        ) from None
    if not isinstance(row, dict):
        raise DataError(
            f"line {number} of {str(path)!r} must be a JSON object; got {type(row).__name__!r}"
        )
    return row
