"""Reading corpora and training tokenizers."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.data.text import (
    MASK,
    PAD,
    SPECIAL,
    START,
    UNKNOWN,
    Split,
    encode,
    open_or_build,
    open_tokenizer,
    read_corpus,
    train_tokenizer,
    vocabulary_of,
)
from curricle.errors import CheckpointError, DataError, SpecError

TEXT = "the cat sat on the mat, and the dog sat on the log.\n"


def write_numbered_lines(path: Path, count: int) -> None:
    path.write_text("".join(f"line {number}\n" for number in range(count)), encoding="utf-8")


def encoded(tokenizer_text: str, text: str) -> list[int]:
    return train_tokenizer([tokenizer_text], 300).encode(text).ids


def corpus_folder(folder: Path) -> Path:
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"{split}: {TEXT * 20}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_folder_of_text_files_gives_one_document_for_each_split(
    tmp_path: Path, split: Split
) -> None:
    corpus_folder(tmp_path)
    assert read_corpus(tmp_path, split) == [f"{split}: {TEXT * 20}"]


def test_a_compressed_text_file_reads_as_its_content(tmp_path: Path) -> None:
    (tmp_path / "valid.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert read_corpus(str(tmp_path), "valid") == [TEXT]


def test_each_json_line_is_one_document(tmp_path: Path) -> None:
    records = [{"book": "a", "text": "one\ntwo"}, {"book": "b", "text": "three"}]
    content = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    assert read_corpus(tmp_path, "test") == ["one\ntwo", "three"]


def test_a_single_file_is_cut_by_lines_into_90_5_and_5_percent(tmp_path: Path) -> None:
    write_numbered_lines(tmp_path / "all.txt", 40)
    splits: tuple[Split, ...] = ("train", "valid", "test")
    documents = [read_corpus(tmp_path / "all.txt", split)[0] for split in splits]
    assert [text.count("\n") for text in documents] == [36, 2, 2]
    assert "".join(documents) == (tmp_path / "all.txt").read_text(encoding="utf-8")


def test_a_single_file_of_json_lines_is_cut_by_documents(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number}"}) + "\n" for number in range(20)]
    (tmp_path / "all.jsonl").write_text("".join(lines), encoding="utf-8")
    assert read_corpus(tmp_path / "all.jsonl", "valid") == ["document 18"]


def test_the_sample_is_shakespeare_and_its_splits_do_not_overlap() -> None:
    train = read_corpus("sample", "train")[0]
    valid = read_corpus("sample", "valid")[0]
    assert train.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n")
    # 90 % and 5 % of the 17,743 lines that the sample's README states.
    assert (train.count("\n"), valid.count("\n")) == (15_968, 887)


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read_corpus(tmp_path, "train") == [TEXT]


def test_a_missing_corpus_is_named() -> None:
    with pytest.raises(DataError, match="corpus 'nowhere' must be a folder or a text file; there"):
        read_corpus("nowhere", "train")


def test_a_missing_split_is_named_with_the_files_it_could_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"exactly one file for split 'valid' \(valid.txt, .*none"):
        read_corpus(tmp_path, "valid")


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    with pytest.raises(DataError, match=r"exactly one file .* got train.txt and train.txt.gz"):
        read_corpus(tmp_path, "train")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(DataError, match=r"train.txt' must be UTF-8 text: .*0xfc"):
        read_corpus(tmp_path, "train")


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(TEXT.encode() * 99)[:-12]], ids=["no gzip", "cut short"]
)
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.txt.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train.txt.gz' cannot be read: "):
        read_corpus(tmp_path, "train")


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_a_split_without_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"split 'train' of .* must hold text; it is empty"):
        read_corpus(tmp_path, "train")


def test_a_file_too_short_for_a_split_is_refused(tmp_path: Path) -> None:
    write_numbered_lines(tmp_path / "all.txt", 5)
    with pytest.raises(DataError, match=r"split 'valid' of .* must hold text; it is empty"):
        read_corpus(tmp_path / "all.txt", "valid")


def test_a_line_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{oops\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train.jsonl' must hold one JSON object a line"):
        read_corpus(tmp_path, "train")


@pytest.mark.parametrize("line", ['{"body": "x"}', '{"text": 3}', "[1]"])
def test_a_record_without_text_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="must hold a field 'text' in every line; got '"):
        read_corpus(tmp_path, "train")


def test_special_tokens_take_the_first_ids() -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    assert [tokenizer.token_to_id(name) for name in SPECIAL] == [PAD, UNKNOWN, MASK, START]


def test_training_twice_gives_the_same_tokenizer() -> None:
    texts = [TEXT, "a stitch in time saves nine\n" * 3]
    assert train_tokenizer(texts, 320).to_str() == train_tokenizer(texts, 320).to_str()


def test_a_short_text_gives_a_smaller_vocabulary() -> None:
    tokenizer = train_tokenizer(["ab ab"], 5000)
    # Every byte, the special tokens, and the merges "ab" and " ab".
    assert tokenizer.get_vocab_size() == 256 + 4 + 2


def test_a_vocabulary_without_room_for_every_byte_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'vocabulary_size' must be at least 260, .*got 259"):
        train_tokenizer([TEXT], 259)


def test_the_literal_unknown_word_is_one_id_together_with_the_blank_before_it() -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    assert tokenizer.encode("the <unk> sat").ids == [
        *tokenizer.encode("the").ids,
        UNKNOWN,
        *tokenizer.encode(" sat").ids,
    ]


def test_the_letters_of_the_unknown_word_are_not_learned() -> None:
    assert (
        train_tokenizer(["<unk> " * 50 + TEXT], 400).to_str()
        == train_tokenizer([" " * 50 + TEXT], 400).to_str()
    )


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_decoding_gives_the_text_back(text: str) -> None:
    tokenizer = train_tokenizer([TEXT], 280)
    if not any(name in text for name in SPECIAL):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_each_document_begins_with_the_start_token() -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    tokens = np.concatenate(list(encode(tokenizer, ["cat", "dog\ncat"]))).tolist()
    cat, dog = tokenizer.encode("cat").ids, tokenizer.encode("dog\n").ids
    assert tokens == [START, *cat, START, *dog, *cat]


def test_the_vocabulary_names_the_special_tokens() -> None:
    vocabulary = vocabulary_of(train_tokenizer([TEXT], 300))
    assert (vocabulary.special, vocabulary.mask) == ((0, 1, 2, 3), 2)


def test_the_store_holds_the_tokens_of_the_split(tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path)
    cache = tmp_path / "cache"
    store = open_or_build(corpus, "valid", vocabulary_size=300, cache_dir=cache)
    tokenizer = open_tokenizer(corpus, vocabulary_size=300, cache_dir=cache)
    assert tokenizer.decode(store.tokens.tolist()) == f"valid: {TEXT * 20}"


def test_the_store_is_built_once(tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path)
    first = open_or_build(corpus, "train", vocabulary_size=300, cache_dir=tmp_path / "cache")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    again = open_or_build(corpus, "train", vocabulary_size=300, cache_dir=tmp_path / "cache")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert first.fingerprint == again.fingerprint


def test_all_splits_share_the_tokenizer_of_the_training_split(tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path)
    for split in ("train", "valid", "test"):
        open_or_build(corpus, split, vocabulary_size=300, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("tokenizer-*"))) == 1


def test_a_changed_text_never_meets_an_old_store(tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path)
    before = open_or_build(corpus, "valid", vocabulary_size=300, cache_dir=tmp_path / "cache")
    (corpus / "valid.txt").write_text("the log\n", encoding="utf-8")
    after = open_or_build(corpus, "valid", vocabulary_size=300, cache_dir=tmp_path / "cache")
    assert len(after.tokens) < len(before.tokens)


def test_another_vocabulary_size_gives_another_store(tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path)
    stores = [
        open_or_build(corpus, "train", vocabulary_size=size, cache_dir=tmp_path / "cache")
        for size in (270, 280)
    ]
    assert [store.vocabulary.size for store in stores] == [270, 280]


def test_a_damaged_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    corpus = corpus_folder(tmp_path)
    open_tokenizer(corpus, vocabulary_size=300, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("tokenizer-*/tokenizer.json")
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer.json' is damaged: its SHA-256"):
        open_tokenizer(corpus, vocabulary_size=300, cache_dir=tmp_path / "cache")


def test_a_corpus_that_cannot_be_read_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="it is empty"):
        open_tokenizer(tmp_path, vocabulary_size=300, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
