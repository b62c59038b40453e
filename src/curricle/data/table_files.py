"""Rows of tables in files: JSON lines, CSV and Parquet.

`rows_of` yields the rows of a file in order, as mappings from column names to values. JSON lines
and CSV may be compressed by gzip; pyarrow is needed for Parquet only.

Design: rows are read one after another, so a file need not fit into memory.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from curricle.errors import DataError, reason
from curricle.extras import imported
from curricle.yaml_specs import from_json

Cell = Any
"""Value of a column: a text, a number, or lists and mappings of them."""
Row = Mapping[str, Cell]
"""Values by the names of their columns."""
LONGEST_FIELD = 2**26
"""Maximum number of characters of a field of a CSV file."""
SEPARATORS = MappingProxyType({".csv": ",", ".tsv": "\t"})
AT_ONCE = 1000
"""Rows of a Parquet file per call."""


def form_of(path: Path) -> str:
    """Return the suffix that names the format of a file, without `.gz`."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return suffixes[-1] if suffixes else ""


def tables_in(folder: Path) -> list[Path]:
    """Return the files of a folder that `rows_of` reads, in the order of their names.

    Args:
        folder: The folder; those inside it are not searched.
    """
    return sorted(path for path in folder.iterdir() if path.is_file() and form_of(path) in READERS)


def rows_of(path: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    Args:
        path: A file whose name ends as in `READERS`, with or without `.gz`.

    Raises:
        DataError: If the format is unknown, or the file cannot be read as one of it.
    """
    form = form_of(path)
    if form not in READERS:
        raise DataError(
            f"{str(path)!r} must be a table, {', '.join(READERS)}, also with .gz; got {form!r}"
        )
    try:
        yield from READERS[form](path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} must be UTF-8 text; got byte 0x{error.object[error.start]:02x}"
        ) from None


def _lines(path: Path) -> Iterator[str]:
    # A byte order mark is not text; "utf-8-sig" drops it.
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from file
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file


def _json_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of JSON lines.

    Raises:
        DataError: If a line holds none.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{str(path)!r} must hold one JSON object a line: line {number}"
        try:
            row = from_json(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}, column {error.colno}: {error.msg}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {line.strip()[:60]!r}")
        yield row


def _separated(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file below its line of names.

    Raises:
        DataError: If a row has another number of fields than there are names.
    """
    # Of the whole process: a document is longer than the default of 131,072 characters.
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(_lines(path), delimiter=SEPARATORS[form_of(path)], strict=True)
    try:
        names = next(reader, [])
        for fields in reader:
            if fields and len(fields) != len(names):
                raise DataError(
                    f"{str(path)!r} must have the {len(names)} fields of its first line in every "
                    f"row; got {len(fields)} in line {reader.line_num}"
                )
            if fields:
                yield dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{str(path)!r} must be a CSV file: line {reader.line_num}: {error}"
        ) from None


def _parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: If it is none.
    """
    parquet = imported("pyarrow.parquet", package="pyarrow", extra="datasets", use="a Parquet file")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(AT_ONCE):
                yield from batch.to_pylist()
    except ValueError as error:
        raise DataError(
            f"{str(path)!r} must be a Parquet file: {' '.join(str(error).split())}"
        ) from None


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = MappingProxyType(
    {".jsonl": _json_lines, ".csv": _separated, ".tsv": _separated, ".parquet": _parquet}
)
"""Formats of tables by the suffixes of their files."""
