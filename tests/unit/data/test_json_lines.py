"""Lines are read one by one, and a wrong one is named by its number."""

import gzip
from pathlib import Path

import pytest

from curricle.data.json_lines import read_json_lines
from curricle.errors import DataError


def test_lines_keep_their_numbers_and_compression_is_seen_by_content(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    for content in (
        b'{"a": 1}\n\n{"b": "\xc3\xa9"}',
        gzip.compress(b'{"a": 1}\n\n{"b": "\xc3\xa9"}'),
    ):
        path.write_bytes(content)
        assert list(read_json_lines(path)) == [(1, {"a": 1}), (3, {"b": "é"})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\nno json\n', "line 2 of .* must be a JSON object; got Expecting value"),
        (b"[1]\n", "line 1 of .* must be a JSON object; got 'list'"),
        (b'"\xff"\n', "line 1 of .* must be a JSON object; got Not UTF-8"),
        (gzip.compress(b'{"a": 1}\n' * 99)[:-9], "must be a readable file of JSON lines; got"),
    ],
)
def test_something_else_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(read_json_lines(tmp_path / "rows"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a readable file of JSON lines; got No such file"):
        list(read_json_lines(tmp_path / "rows"))
