"""Checks of files that are written once and read again.

Three forms, by the kind of file. A *sealed document* is a JSON object with a hash of its fields as
its last field, `check`. A *chain of lines* gives each line of a JSON Lines file a `check` that
covers the line and all lines before it. A *folder seal* is a sealed document `manifest.json` with
the size and SHA-256 of other files of the folder, weights for example.

Design: documents are compared byte for byte with their canonical text, so that a changed blank is
detected as well. Files of version 0.1 have no checks; they are read as they are where a report
needs them. The checks detect damage and mix-ups, not forgery, since hashes can be rewritten too.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, final

from curricle.errors import CheckpointError, reason
from curricle.files import content_digest, inside, write_text
from curricle.yaml_specs import Document, from_json, kind_of

CHECK: Final = "check"
SEAL: Final = "manifest.json"
FORMAT: Final = 1
DIGITS: Final = 16
"""Hexadecimal digits of a check."""
UNSEALED: Final = "remove this file: the files it lists are then checked by the records alone"
"""Remedy for the damaged manifest of a finished run."""
_END = re.compile(rb', "check": "([0-9a-f]{16})"\}')


def sealed(document: Mapping[str, object]) -> str:
    """Return the text of a document with its check."""
    body = json.dumps(document, indent=1)
    check = hashlib.sha256(body.encode()).hexdigest()[:DIGITS]
    return json.dumps({**document, CHECK: check}, indent=1) + "\n"


def write_sealed(path: Path, document: Mapping[str, object]) -> None:
    """Write a document with its check in one step."""
    write_text(path, sealed(document))


def read_sealed(path: Path, *, needs_check: bool = True) -> Document:
    """Return a document without its check.

    Args:
        path: The file.
        needs_check: Whether a document without a check is refused; version 0.1 wrote none.

    Raises:
        ValueError: If it is no JSON object, has no check, or does not match it.
        OSError: If it cannot be read.
    """
    content = path.read_bytes()
    document = from_json(content)
    if not isinstance(document, dict):
        # A single kind of error for every fault of a file.
        raise ValueError(f"it must hold named fields; got {kind_of(document)}")  # noqa: TRY004
    if CHECK not in document:
        if needs_check:
            raise ValueError("it has no 'check'; it is damaged, or of version 0.1")
        return document
    del document[CHECK]
    if sealed(document).encode() != content:
        raise ValueError("it is damaged: its content does not match its 'check'")
    return document


@final
class LineChain:
    """Checks of consecutive lines, each of which covers the lines before it."""

    def __init__(self, *, start: str = "") -> None:
        """Start a chain.

        Args:
            start: Text that all checks cover too.
        """
        self.head, self._start = "", start

    def line(self, document: Mapping[str, object]) -> bytes:
        """Return the next line, with its check and line break."""
        body = json.dumps(document, allow_nan=False).encode()
        self.head = self._check(body)
        return body[:-1] + f', "{CHECK}": "{self.head}"}}\n'.encode()

    def read(self, line: bytes) -> Document:
        """Return the document in the next line.

        Raises:
            ValueError: If the line is no JSON object or does not match its check.
        """
        match = _END.search(line.rstrip(b"\n"), max(len(line) - 40, 0))
        if match is not None:
            self._follow(line[: match.start()] + b"}", match, line)
        elif self.head:
            raise ValueError("it has no 'check', which the lines before it have")
        document = from_json(line)
        if not isinstance(document, dict):
            raise ValueError(  # noqa: TRY004 - as in `read_sealed`
                f"it must hold named fields; got {kind_of(document)}"
            )
        if match is not None:
            del document[CHECK]
        return document

    def _follow(self, body: bytes, match: "re.Match[bytes]", line: bytes) -> None:
        head = self._check(body)
        if head.encode() != match.group(1) or line[match.end() :] not in {b"\n", b""}:
            raise ValueError(
                "its content does not match its 'check': the line, or one before it, is damaged, "
                "missing or of another file"
            )
        self.head = head

    def _check(self, body: bytes) -> str:
        return hashlib.sha256((self.head or self._start).encode() + body).hexdigest()[:DIGITS]


def sealed_lines(documents: Iterable[Mapping[str, object]]) -> bytes:
    """Return a whole file of JSON lines with checks that also cover the number of lines."""
    listed = list(documents)
    chain = LineChain(start=str(len(listed)))
    return b"".join(map(chain.line, listed))


def read_lines(content: bytes) -> Iterator[Document]:
    """Yield the documents of a file that `sealed_lines` made, or version 0.1 without checks."""
    lines = content.splitlines(keepends=True)
    chain = LineChain(start=str(len(lines)))
    yield from map(chain.read, lines)


def is_cut(line: bytes) -> bool:
    """Return whether a last line without a line break is the beginning of one.

    A crash while a line is written leaves its beginning. After a whole line nothing but the line
    break can follow, so anything else is damage.
    """
    match = _END.search(line)
    return match is None or match.end() == len(line)


def seal_folder(folder: Path, names: Iterable[str]) -> None:
    """Write size and SHA-256 of files into the manifest of their folder, in one step.

    Args:
        folder: The folder.
        names: Names of files in it.
    """
    write_text(folder / SEAL, folder_seal(folder, names))


def folder_seal(folder: Path, names: Iterable[str]) -> str:
    """Return the text of a folder's manifest.

    Args:
        folder: The folder.
        names: Names of files in it.
    """
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": content_digest(folder / name)}
        for name in sorted(names)
    }
    return sealed({"format": FORMAT, "files": files})


def sealed_names(folder: Path, *, remedy: str = "") -> tuple[str, ...]:
    """Return the names of files that a folder's manifest lists; none if it has no manifest.

    Args:
        folder: The folder.
        remedy: Remedy for a damaged manifest, for the end of the error.
    """
    return tuple(_entries(folder, remedy)) if (folder / SEAL).is_file() else ()


def check_sealed(folder: Path, names: Iterable[str], *, remedy: str = "") -> None:
    """Check files against the manifest of their folder.

    Args:
        folder: The folder.
        names: Names of files in it that are about to be read.
        remedy: Remedy for a damaged file or manifest, for the end of the error.

    Raises:
        CheckpointError: If a file is missing, damaged or of another run; it is named.
    """
    entries, seal = _entries(folder, remedy), str(folder / SEAL)
    # A manifest that was swapped is whole, so either file may be the wrong one.
    end = f"; one of the two is damaged or of another run{f'; {remedy}' if remedy else ''}"
    for name in names:
        path = inside(folder, name)
        if name not in entries:
            raise CheckpointError(
                f"{str(path)!r} must be listed in {seal!r} to be read; it is not{end}"
            )
        size, sha256 = entries[name]
        actual = path.stat().st_size if path.is_file() else None
        if actual is None:
            raise CheckpointError(
                f"{str(path)!r} must exist, as {seal!r} lists it; it does not{end}"
            )
        if actual != size:
            raise CheckpointError(
                f"{str(path)!r} must hold {size} bytes as in {seal!r}; got {actual}{end}"
            )
        if (digest := content_digest(path)) != sha256:
            raise CheckpointError(
                f"{str(path)!r} must have the SHA-256 {sha256[:DIGITS]}... as in {seal!r}; got "
                f"{digest[:DIGITS]}...{end}"
            )


def _entries(folder: Path, remedy: str) -> dict[str, tuple[int, str]]:
    path, end = folder / SEAL, f"; {remedy}" if remedy else ""
    try:
        document = read_sealed(path)
        return {
            name: (int(entry["size"]), str(entry["sha256"]))
            for name, entry in document["files"].items()
        }
    except FileNotFoundError:
        raise CheckpointError(
            f"{str(folder)!r} must hold {SEAL!r} with the hashes of its files; there is none: it "
            f"was removed, or version 0.1 wrote the folder{end}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{str(path)!r} must hold the hashes of the files beside it: {reason(error)}{end}"
        ) from None
