"""Rows of JSON lines, CSV and Parquet files, and such files as a corpus."""

import gzip
import importlib
from pathlib import Path

import pytest

from curricle.data.table_files import Row, rows_of
from curricle.data.text.corpora import open_corpus
from curricle.errors import DataError

ROWS: list[Row] = [{"text": f"line {number},\nnext", "label": number} for number in range(40)]


def csv_text(rows: list[Row], separator: str = ",") -> str:
    lines = [f'"{row["text"]}"{separator}{row["label"]}' for row in rows]
    return "\n".join([f"text{separator}label", *lines, ""])


def json_text(rows: list[Row]) -> str:
    escaped = [(row["text"].replace("\n", "\\n"), row["label"]) for row in rows]
    return "".join(f'{{"text": "{text}", "label": {label}}}\n\n' for text, label in escaped)


def written(folder: Path, name: str, rows: list[Row] = ROWS) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        table = importlib.import_module("pyarrow").Table.from_pylist(rows)
        importlib.import_module("pyarrow.parquet").write_table(table, path)
        return path
    separator = "\t" if ".tsv" in name else ","
    content = json_text(rows) if ".jsonl" in name else csv_text(rows, separator)
    data = content.encode("utf-8-sig")
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


every_format = pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"]
)


@every_format
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = list(rows_of(written(tmp_path, name)))
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [int(row["label"]) for row in rows] == [row["label"] for row in ROWS]


@every_format
def test_the_column_text_of_every_format_is_a_corpus(tmp_path: Path, name: str) -> None:
    file = str(written(tmp_path, name))
    texts = {split: list(open_corpus(file, split)) for split in ("train", "valid", "test")}
    assert {split: len(documents) for split, documents in texts.items()} == {
        "train": 36, "valid": 2, "test": 2,
    }  # fmt: skip
    assert texts["valid"] == ["line 36,\nnext", "line 37,\nnext"]


def test_a_folder_may_hold_a_table_for_each_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        written(tmp_path, f"{split}.csv", ROWS[: 3 if split == "train" else 1])
    assert len(list(open_corpus(str(tmp_path), "train"))) == 3
    assert len(list(open_corpus(str(tmp_path), "valid"))) == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"a,b\n1,2\n3\n", "must have the 2 fields of its first line .* got 1 in line 3"),
        ("a.csv", b'a,b\n1,"2\n', "must be a CSV file: line 2: unexpected end of data"),
        ("a.csv", b"a\n\xff\n", "must be UTF-8 text; got byte 0xff"),
        ("a.csv.gz", b"a,b\n", "cannot be read: Not a gzipped file"),
        ("a.parquet", b"a,b\n", "must be a Parquet file: "),
        ("a.jsonl", b"[1]\n", "must hold one JSON object a line: line 1 holds '"),
        ("a.jsonl", b"{}\n{\n", "must hold one JSON object a line: line 2, column"),
        ("a.xlsx", b"", r"must be a table, \.jsonl, \.csv, \.tsv, \.parquet, .* got '\.xlsx'"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}' {sentence}"):
        list(rows_of(tmp_path / name))


def test_a_table_without_the_column_text_names_its_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("review,label\ngood,1\n")
    sentence = "a text in column 'text' of every row; got None in row 1 with columns review, label"
    with pytest.raises(DataError, match=sentence):
        list(open_corpus(str(tmp_path), "train"))


def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "train.csv")
    documents = open_corpus(str(tmp_path), "train")
    path.write_text(csv_text(ROWS[:5]))
    with pytest.raises(DataError, match="must not change while it is read"):
        list(documents)
