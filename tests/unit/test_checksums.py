"""Every changed byte of a sealed file is noticed, and unchanged ones are read back."""

import json
from pathlib import Path

import pytest

from curricle.checksums import (
    SEAL,
    LineChain,
    check_sealed,
    folder_seal,
    is_cut,
    read_lines,
    read_sealed,
    seal_folder,
    sealed,
    sealed_lines,
    sealed_names,
    write_sealed,
)
from curricle.errors import CheckpointError
from curricle.yaml_specs import Document

DOCUMENT: Document = {"steps": [1, 2], "name": "größer", "loss": 0.1, "nested": {"a": None}}
LINES: list[Document] = [{"a": 1}, {"b": [2.5]}, {"c": 'text, "check": '}]


def flips(content: bytes) -> list[bytes]:
    """Return every version of a content in which one bit of one byte is changed."""
    return [
        content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
        for place in range(len(content))
        for bit in range(8)
    ]


def test_a_document_comes_back_as_it_was(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a", DOCUMENT)
    assert read_sealed(tmp_path / "a") == DOCUMENT


def test_every_flipped_bit_of_a_document_is_noticed(tmp_path: Path) -> None:
    for content in flips(sealed(DOCUMENT).encode()):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            read_sealed(tmp_path / "a", needs_check=True)


def test_every_flipped_bit_is_noticed_where_a_check_may_be_missing(tmp_path: Path) -> None:
    unnoticed = []
    for content in flips(sealed({"a": 1}).encode()):
        (tmp_path / "a").write_bytes(content)
        try:
            unnoticed.append(read_sealed(tmp_path / "a", needs_check=False))
        except ValueError:
            continue
    # The name of the check itself: who reads refuses the field that nobody knows.
    assert all(set(document) - {"a"} for document in unnoticed)


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_a_cut_document_is_noticed(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a").write_bytes(sealed(DOCUMENT).encode()[:-cut])
    with pytest.raises(ValueError, match=r"."):
        read_sealed(tmp_path / "a")


def test_a_document_without_a_check_is_read_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps(DOCUMENT))
    assert read_sealed(tmp_path / "a", needs_check=False) == DOCUMENT
    with pytest.raises(ValueError, match=r"it has no 'check'; it is damaged, or of version 0\.1"):
        read_sealed(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "kind"), [(b"[]", "a list"), (b"3", "a number"), (b"null", "nothing")]
)
def test_what_is_no_document_is_told_in_the_words_of_a_file(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^it must hold named fields; got {kind}$"):
        read_sealed(tmp_path / "a")
    with pytest.raises(ValueError, match=rf"^it must hold named fields; got {kind}$"):
        LineChain().read(content)


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff", b""])
def test_what_is_no_document_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_sealed(tmp_path / "a", needs_check=False)


def chained() -> list[bytes]:
    chain = LineChain()
    return [chain.line(document) for document in LINES]


def read(lines: list[bytes]) -> list[Document]:
    chain = LineChain()
    return [chain.read(line) for line in lines]


def test_lines_come_back_as_they_were() -> None:
    assert read(chained()) == LINES


def test_every_flipped_bit_of_a_line_is_noticed() -> None:
    first, second, third = chained()
    for flipped in flips(second[:-1]):
        with pytest.raises(ValueError, match=r"."):
            read([first, flipped + b"\n", third])


@pytest.mark.parametrize("order", [(1, 2), (0, 2), (0, 0, 1, 2), (1, 0, 2)])
def test_missing_doubled_and_swapped_lines_are_noticed(order: tuple[int, ...]) -> None:
    lines = chained()
    with pytest.raises(ValueError, match=r"the line, or one before it, is damaged, missing or of"):
        read([lines[number] for number in order])


def test_a_line_without_a_check_must_not_follow_one_that_has_it() -> None:
    with pytest.raises(ValueError, match=r"it has no 'check', which the lines before it have"):
        read([*chained(), b'{"d": 4}\n'])


def test_lines_of_an_earlier_version_are_read_and_may_be_gone_on_with() -> None:
    old = b'{"d": 4}\n'
    assert read([old, old, *chained()]) == [{"d": 4}, {"d": 4}, *LINES]


def test_the_end_of_a_file_is_cut_or_damaged() -> None:
    line = chained()[0]
    assert all(is_cut(line[:length]) for length in range(len(line)))
    assert not is_cut(line[:-1] + b"\x0b")


def test_a_whole_file_of_lines_comes_back() -> None:
    assert list(read_lines(sealed_lines(LINES))) == LINES
    assert list(read_lines(sealed_lines([]))) == []


@pytest.mark.parametrize("kept", [1, 2])
def test_lines_that_are_missing_at_the_end_are_noticed(kept: int) -> None:
    lines = sealed_lines(LINES).splitlines(keepends=True)
    with pytest.raises(ValueError, match=r"missing"):
        list(read_lines(b"".join(lines[:kept])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"other")
    seal_folder(tmp_path, ["b", "a"])
    return tmp_path


def test_unchanged_files_agree_with_their_manifest(folder: Path) -> None:
    assert sealed_names(folder) == ("a", "b")
    check_sealed(folder, ["a", "b"])
    assert (folder / SEAL).read_text() == folder_seal(folder, ["a", "b"])


@pytest.mark.parametrize("content", [b"First", b"fir", b"", b"other"])
def test_a_changed_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "a").write_bytes(content)
    told = rf"/a' must .* as in '{folder}/manifest.json'; .*; one of the two is .*; do this$"
    with pytest.raises(CheckpointError, match=told):
        check_sealed(folder, ["a"], remedy="do this")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "a").unlink()
    with pytest.raises(CheckpointError, match=r"must exist, as .*manifest.json' lists it; it does"):
        check_sealed(folder, ["a"])


def test_a_file_that_is_not_listed_is_not_read(folder: Path) -> None:
    (folder / "c").touch()
    with pytest.raises(CheckpointError, match=r"/c' must be listed in '.*manifest.json'"):
        check_sealed(folder, ["c"])


def test_a_folder_without_a_manifest_is_told(tmp_path: Path) -> None:
    assert sealed_names(tmp_path) == ()
    with pytest.raises(CheckpointError, match=r"must hold 'manifest.json' .*version 0\.1 wrote"):
        check_sealed(tmp_path, ["a"])


@pytest.mark.parametrize("document", [{}, {"files": 3}, {"files": {"a": {"size": 1}}}])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, document: dict[str, object]) -> None:
    write_sealed(tmp_path / SEAL, document)
    with pytest.raises(CheckpointError, match=r"manifest.json' must hold the hashes of the files"):
        check_sealed(tmp_path, ["a"])
