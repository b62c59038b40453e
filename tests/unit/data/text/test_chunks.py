"""Text files read in chunks: what is read, how much at once, and that it is what was opened."""

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.data.text import chunks, progress
from curricle.data.text.chunks import between, count_lines, lines, open_text
from curricle.errors import DataError

TEXT = "the cat sat on the mat\n" * 40


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64)


def written(path: Path, text: str = TEXT) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_file_is_read_in_parts_of_bounded_length(tmp_path: Path, name: str) -> None:
    parts = list(open_text(written(tmp_path / name)).chunks())
    assert "".join(parts) == TEXT
    assert max(map(len, parts)) <= 65


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "\ufeffa\nb\nc\n"])
def test_line_ends_are_line_feeds_and_a_byte_order_mark_is_left_out(
    tmp_path: Path, text: str
) -> None:
    assert "".join(open_text(written(tmp_path / "a.txt", text)).chunks()) == "a\nb\nc\n"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("change", ["shrinks", "grows", "is replaced"])
def test_a_file_that_changed_since_it_was_opened_is_refused(
    tmp_path: Path, name: str, change: str
) -> None:
    path = written(tmp_path / name)
    opened = open_text(path)
    other = {"shrinks": TEXT[:100], "grows": TEXT + "x", "is replaced": TEXT.replace("cat", "dog")}
    written(path, other[change])
    with pytest.raises(DataError, match=rf"{name}' must not change while it is read; it did"):
        list(opened.chunks())


def test_a_file_that_shrinks_while_it_is_read_is_refused_though_it_is_restored(
    tmp_path: Path,
) -> None:
    # Longer than what the system reads ahead.
    path = written(tmp_path / "a.txt", TEXT * 300)
    opened = open_text(path)
    with (
        progress.reported_progress(lambda *_: os.truncate(path, 80)),
        progress.job("reading"),
        pytest.raises(DataError, match="must not change while it is read"),
    ):
        list(opened.chunks())
    written(path, TEXT * 300)
    assert "".join(opened.chunks()) == TEXT * 300


def test_a_byte_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode() + b"M\xfcller\n")
    with pytest.raises(DataError, match=r"a.txt' must be UTF-8 text: line 41 has byte 0xfc"):
        list(open_text(tmp_path / "a.txt").chunks())


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.txt' cannot be read: No such file"):
        open_text(tmp_path / "a.txt")


def test_an_endless_line_is_refused_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LONGEST_LINE", 10)
    with pytest.raises(DataError, match=r"'b.jsonl' must hold lines of at most 10 .*line 2 is"):
        list(lines(["abc\n", "abcdef", "ghijkl"], "b.jsonl"))


@given(
    text=st.text("ab\n", max_size=40),
    size=st.integers(1, 7),
    first=st.integers(0, 9),
    count=st.integers(0, 9),
)
def test_lines_are_counted_and_picked_as_in_the_whole_text(
    text: str, size: int, first: int, count: int
) -> None:
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    whole = text.splitlines(keepends=True)
    assert count_lines(parts) == len(whole)
    assert "".join(between(parts, first, first + count)) == "".join(whole[first : first + count])
    assert list(lines(parts, "")) == text.splitlines()
