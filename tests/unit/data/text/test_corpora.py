"""Reading corpora: files, folders, and several of them as one."""

import gzip
import json
from pathlib import Path

import pytest

from curricle.data.text.chunks import CHUNK_BYTES
from curricle.data.text.corpora import Corpus, Split, open_corpus
from curricle.errors import DataError, SpecError

TEXT = "the cat sat on the mat, and the dog sat on the log.\n"


def documents(corpus: Corpus, split: Split) -> list[str]:
    return list(open_corpus(corpus, split))


def write_numbered_lines(path: Path, count: int) -> None:
    path.write_text("".join(f"line {number}\n" for number in range(count)), encoding="utf-8")


def corpus_folder(folder: Path, text: str = TEXT) -> Path:
    folder.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"{split}: {text * 20}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_folder_of_text_files_gives_one_document_for_each_split(
    tmp_path: Path, split: Split
) -> None:
    corpus_folder(tmp_path)
    assert documents(tmp_path, split) == [f"{split}: {TEXT * 20}"]


def test_a_compressed_text_file_reads_as_its_content(tmp_path: Path) -> None:
    (tmp_path / "valid.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert documents(str(tmp_path), "valid") == [TEXT]


def test_each_json_line_is_one_document(tmp_path: Path) -> None:
    records = [{"book": "a", "text": "one\ntwo"}, {"book": "b", "text": "three"}]
    content = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    assert documents(tmp_path, "test") == ["one\ntwo", "three"]


def test_a_single_file_is_cut_by_lines_into_90_5_and_5_percent(tmp_path: Path) -> None:
    write_numbered_lines(tmp_path / "all.txt", 40)
    splits: tuple[Split, ...] = ("train", "valid", "test")
    parts = [documents(tmp_path / "all.txt", split)[0] for split in splits]
    assert [text.count("\n") for text in parts] == [36, 2, 2]
    assert "".join(parts) == (tmp_path / "all.txt").read_text(encoding="utf-8")


def test_a_single_file_of_json_lines_is_cut_by_documents(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number}"}) + "\n" for number in range(20)]
    (tmp_path / "all.jsonl").write_text("".join(lines), encoding="utf-8")
    assert documents(tmp_path / "all.jsonl", "valid") == ["document 18"]


def test_the_sample_is_shakespeare_and_its_splits_do_not_overlap() -> None:
    train = documents("sample", "train")[0]
    valid = documents("sample", "valid")[0]
    assert train.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    # 90 % and 5 % of the 17,743 lines that the sample's README states.
    assert (train.count("\n"), valid.count("\n")) == (15_968, 887)


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert documents(tmp_path, "train") == [TEXT]


def test_a_missing_corpus_is_named() -> None:
    with pytest.raises(DataError, match="corpus 'nowhere' must be a folder or a text file; there"):
        documents("nowhere", "train")


def test_a_missing_split_is_named_with_the_files_it_could_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"exactly one file for split 'valid' \(valid.txt, .*none"):
        documents(tmp_path, "valid")


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    with pytest.raises(DataError, match=r"exactly one file .* got train.txt and train.txt.gz"):
        documents(tmp_path, "train")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(DataError, match=r"train.txt' must be UTF-8 text: .*0xfc"):
        documents(tmp_path, "train")


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(TEXT.encode() * 99)[:-12]], ids=["no gzip", "cut short"]
)
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.txt.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train.txt.gz' cannot be read: "):
        documents(tmp_path, "train")


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_a_split_without_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"split 'train' of .* must hold text; it is empty"):
        documents(tmp_path, "train")


def test_a_file_too_short_for_a_split_is_refused(tmp_path: Path) -> None:
    write_numbered_lines(tmp_path / "all.txt", 5)
    with pytest.raises(DataError, match=r"split 'valid' of .* must hold text; it is empty"):
        documents(tmp_path / "all.txt", "valid")


def test_a_line_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{oops\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train.jsonl' must hold one JSON object a line"):
        documents(tmp_path, "train")


@pytest.mark.parametrize("line", ['{"body": "x"}', '{"text": 3}', "[1]"])
def test_a_record_without_text_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="must hold a field 'text' in every line; got '"):
        documents(tmp_path, "train")


def test_documents_without_text_are_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in ("one", "", " \n", "two")]
    (tmp_path / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    assert documents(tmp_path, "train") == ["one", "two"]


def test_documents_can_be_read_again(tmp_path: Path) -> None:
    opened = open_corpus(corpus_folder(tmp_path), "train")
    assert list(opened) == list(opened) == [f"train: {TEXT * 20}"]


def test_documents_are_read_one_by_one(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "one"}) + "\n", "{oops\n"]
    (tmp_path / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    assert next(iter(open_corpus(tmp_path, "train"))) == "one"


def test_several_texts_are_read_one_after_another(tmp_path: Path) -> None:
    first, second = corpus_folder(tmp_path / "a", "one\n"), corpus_folder(tmp_path / "b", "two\n")
    expected = ["valid: " + "two\n" * 20, "valid: " + "one\n" * 20]
    assert documents([second, str(first)], "valid") == expected


def test_a_list_of_no_text_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'corpus' must name at least one text; got \(\)"):
        open_corpus((), "train")


def test_each_of_several_texts_must_hold_text(tmp_path: Path) -> None:
    full, empty = corpus_folder(tmp_path / "full"), corpus_folder(tmp_path / "empty")
    (empty / "train.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"split 'train' of '.*empty' must hold text"):
        documents([full, empty], "train")


def test_the_digest_is_that_of_the_documents_and_not_of_their_place(tmp_path: Path) -> None:
    first, second = corpus_folder(tmp_path / "a"), corpus_folder(tmp_path / "b")
    assert open_corpus(first, "train").digest == open_corpus(second, "train").digest
    assert open_corpus(first, "train").digest != open_corpus(first, "valid").digest


def test_a_list_of_one_text_has_the_digest_of_the_text(tmp_path: Path) -> None:
    folder = corpus_folder(tmp_path)
    assert open_corpus([folder], "train").digest == open_corpus(folder, "train").digest


def test_the_digest_of_several_texts_depends_on_each_and_on_their_order(tmp_path: Path) -> None:
    first, second = corpus_folder(tmp_path / "a", "one\n"), corpus_folder(tmp_path / "b", "two\n")
    corpora: list[Corpus] = [first, second, [first, second], [second, first], [first, first]]
    assert len({open_corpus(corpus, "train").digest for corpus in corpora}) == len(corpora)


def test_a_file_read_whole_and_one_cut_have_different_digests(tmp_path: Path) -> None:
    write_numbered_lines(tmp_path / "train.txt", 40)
    opened = [open_corpus(tmp_path / name, "train") for name in ("", "train.txt")]
    assert opened[0].digest != opened[1].digest


def test_lines_read_as_text_and_as_json_have_different_digests(tmp_path: Path) -> None:
    for name in ("all.txt", "all.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": TEXT}) + "\n", encoding="utf-8")
    opened = [open_corpus(tmp_path / name, "test") for name in ("all.txt", "all.jsonl")]
    assert opened[0].digest != opened[1].digest


@pytest.mark.parametrize(
    "content", ["\0" * 1_000, "\0\n \x1b\x07\n", "\ufeff \ufeff", "\u200a\u2003"]
)
def test_blanks_and_control_characters_are_no_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="must hold text; it is empty, or holds nothing but blanks"):
        documents(tmp_path, "train")


@pytest.mark.parametrize("text", [r"a \ud800 b", r"\udc00", r"\ud83d"])
def test_half_a_character_is_refused_with_its_document(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"text": "one"}}\n{{"text": "x{text}"}}\n')
    with pytest.raises(DataError, match="hold whole characters; document 2 has a lone"):
        documents(tmp_path, "train")


def test_a_whole_character_written_in_two_halves_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(r'{"text": "\ud83d\ude00"}' + "\n")
    assert documents(tmp_path, "train") == ["\U0001f600"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": ' + "[" * 100_000, "line 2, column 1: Nested too deeply"),
        ('{"text": "a", "id": ' + "1" * 5_000 + "}", "line 2, column 1: Number with too many"),
        ('{"text": "a"', "line 2, column 13: Expecting"),
        ("not json", "line 2, column 1: Expecting value"),
    ],
)
def test_a_json_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"text": "one"}}\n{line}\n')
    with pytest.raises(
        DataError, match=rf"train.jsonl' must hold one JSON object a line: {reason}"
    ):
        documents(tmp_path, "train")


@pytest.mark.parametrize("content", ["x" * 5_000, '{"text": "a"}\n' * 9])
def test_a_single_file_of_too_few_lines_says_how_it_is_cut(tmp_path: Path, content: str) -> None:
    path = tmp_path / ("all.jsonl" if content[0] == "{" else "all.txt")
    path.write_text(content)
    with pytest.raises(DataError, match=r"is cut 90/5/5 by lines, in order, and this has [19];"):
        documents(path, "valid")


def test_a_text_file_is_one_document_in_parts(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a" * (2 * CHUNK_BYTES + 1))
    (document,) = (list(map(len, parts)) for parts in open_corpus(tmp_path, "train").read())
    assert document == [CHUNK_BYTES, CHUNK_BYTES, 1]
