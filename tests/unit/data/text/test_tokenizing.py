"""Training tokenizers and keeping what was made of a corpus."""

import signal
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from curricle.data.text import progress
from curricle.data.text.pieces import AT_ONCE, LONGEST
from curricle.data.text.pieces import batches as cut_batches
from curricle.data.text.tokenizing import (
    MASK,
    PAD,
    SMALLEST,
    SPECIAL,
    START,
    UNKNOWN,
    encode,
    open_or_build,
    open_tokenizer,
    train_tokenizer,
    vocabulary_of,
    write_tokenizer,
)
from curricle.errors import CheckpointError, DataError, SpecError
from curricle.training.setup.interrupts import Interrupted, interruptible

TEXT = "the cat sat on the mat, and the dog sat on the log.\n"


def encoded(tokenizer_text: str, text: str) -> list[int]:
    return train_tokenizer([tokenizer_text], 300).encode(text).ids


def corpus_folder(folder: Path) -> Path:
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"{split}: {TEXT * 20}", encoding="utf-8")
    return folder


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


def test_no_word_is_longer_than_what_training_takes_in_linear_time() -> None:
    # Forty merges of equal letters would reach 4,096 letters in a word of 5,000.
    tokenizer = train_tokenizer(["a" * 5_000] * 3, SMALLEST + 40)
    assert 256 < max(map(len, tokenizer.get_vocab())) <= LONGEST + 1


def test_the_tokenizer_is_given_a_bounded_number_of_letters_at_once() -> None:
    batches = list(cut_batches(iter(["x" * LONGEST] * 1_000)))
    assert max(sum(map(len, batch)) for batch in batches) <= AT_ONCE + LONGEST
    assert sum(map(len, batches)) == 1_000


def test_a_document_in_parts_has_the_tokens_of_the_whole() -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    whole, parts = (
        np.concatenate(list(encode(tokenizer, [document]))).tolist()
        for document in (TEXT, (TEXT[:9], TEXT[9:11], TEXT[11:]))
    )
    assert parts == whole


def test_a_text_that_shrinks_while_it_is_tokenized_leaves_nothing_in_the_cache(
    tmp_path: Path,
) -> None:
    corpus, cache = corpus_folder(tmp_path), tmp_path / "cache"
    content = (corpus / "train.txt").read_bytes()
    open_tokenizer(corpus, vocabulary_size=300, cache_dir=cache)

    def shrink(job: str, *_: int) -> None:
        if job == "tokenizing train":
            (corpus / "train.txt").write_bytes(content[:10])

    with (
        progress.reported_progress(shrink),
        pytest.raises(DataError, match="must not change while"),
    ):
        open_or_build(corpus, "train", vocabulary_size=300, cache_dir=cache)
    assert not [path for path in cache.iterdir() if "tokens" in path.name]
    (corpus / "train.txt").write_bytes(content)
    store = open_or_build(corpus, "train", vocabulary_size=300, cache_dir=cache)
    tokenizer = open_tokenizer(corpus, vocabulary_size=300, cache_dir=cache)
    assert tokenizer.decode(store.tokens.tolist()) == content.decode()


def test_a_signal_while_a_text_is_tokenized_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    corpus, cache = corpus_folder(tmp_path), tmp_path / "cache"
    signals = iter([signal.SIGTERM])

    def end_once(*_: object) -> None:
        # A second signal may interrupt the removal of what the first left.
        for number in signals:
            signal.raise_signal(number)

    with (
        interruptible(),
        progress.reported_progress(end_once),
        pytest.raises(Interrupted) as end,
    ):
        open_or_build(corpus, "train", vocabulary_size=300, cache_dir=cache)
    assert end.value.signal_number == signal.SIGTERM
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "text", ["one  two\n\n\n three \n", "the <unk> sat\n  on\tit", "äß 一二三"]
)
def test_a_written_tokenizer_is_read_by_transformers_with_the_same_ids(
    tmp_path: Path, text: str
) -> None:
    tokenizer = train_tokenizer([TEXT + "\n\n" * 50], 300)
    write_tokenizer(tokenizer, tmp_path, window=16)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (start, *ids) = np.concatenate(list(encode(tokenizer, [text]))).tolist()
    assert read(text)["input_ids"] == ids
    # The blank before `<unk>` belongs to it and is lost, as in training.
    assert read.decode(ids) == text.replace(" <unk>", "<unk>")
    assert (read.bos_token_id, read.pad_token_id, read.unk_token_id) == (start, PAD, UNKNOWN)
    assert (read.mask_token_id, read.model_max_length, len(read)) == (
        MASK,
        16,
        tokenizer.get_vocab_size(),
    )
