"""Data sets as corpora, loaded for real from local folders."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from curricle.data.text.corpora import Split, open_corpus
from curricle.data.text.tokenizing import open_or_build
from curricle.errors import BindError, DataError

TEXT = "the cat sat on the mat, and the dog sat on the log.\n"
MakeSet = Callable[..., str]


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep `datasets` from the network and from the cache of whoever runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Return a function from the documents of each split to the name of a data set."""

    def make(name: str = "stories", **splits: list[str]) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for split, texts in splits.items():
            lines = [json.dumps({"title": "a", "text": text}) + "\n" for text in texts]
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        return f"datasets:{folder}"

    return make


def write_parquet(path: Path, **columns: list[str | None]) -> None:
    datasets.Dataset.from_dict(columns).to_parquet(path)


def numbered(count: int) -> list[str]:
    return [f"document {number}" for number in range(count)]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_each_row_of_a_split_is_one_document(make_set: MakeSet, split: Split) -> None:
    name = make_set(train=["train", "one\ntwo"], validation=["valid"], test=["test"])
    assert next(iter(open_corpus(name, split))) == split


def test_rows_are_read_in_order_beyond_what_is_read_at_once(make_set: MakeSet) -> None:
    name = make_set(train=numbered(2500), validation=["valid"])
    assert list(open_corpus(name, "train")) == numbered(2500)


def test_rows_without_text_are_left_out(make_set: MakeSet) -> None:
    name = make_set(train=["", "one", " \n", "two"], validation=["valid"])
    assert list(open_corpus(name, "train")) == ["one", "two"]


def test_a_data_set_with_a_training_split_alone_is_cut_by_documents(make_set: MakeSet) -> None:
    name = make_set(train=numbered(40))
    parts = [list(open_corpus(name, split)) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [36, 2, 2]
    assert [text for part in parts for text in part] == numbered(40)


def test_the_parts_of_a_cut_data_set_have_different_digests(make_set: MakeSet) -> None:
    name = make_set(train=numbered(40))
    digests = {open_corpus(name, split).digest for split in ("train", "valid", "test")}
    assert len(digests) == 3


def test_a_data_set_that_gets_a_validation_split_has_another_digest(make_set: MakeSet) -> None:
    before = open_corpus(make_set(train=numbered(40)), "train").digest
    after = open_corpus(make_set(train=numbered(40), validation=["valid"]), "train")
    assert after.digest != before
    assert list(after) == numbered(40)


def test_the_digest_does_not_depend_on_where_a_data_set_lies(make_set: MakeSet) -> None:
    here, there = (make_set(place, train=numbered(40)) for place in ("here", "there"))
    assert open_corpus(here, "train").digest == open_corpus(there, "train").digest


def test_a_changed_data_set_never_meets_an_old_tokenizer_or_store(
    make_set: MakeSet, tmp_path: Path
) -> None:
    stores = [
        open_or_build(
            make_set(train=[text * 20], validation=[TEXT]),
            "valid",
            vocabulary_size=300,
            cache_dir=tmp_path / "cache",
        )
        for text in (TEXT, "a stitch in time saves nine\n")
    ]
    # The validation text is the same; what changed is the tokenizer.
    assert stores[0].fingerprint != stores[1].fingerprint
    assert len(list((tmp_path / "cache").glob("tokenizer-*"))) == 2


def test_a_data_set_that_changes_while_it_is_open_is_read_as_it_was(make_set: MakeSet) -> None:
    opened = open_corpus(make_set(train=numbered(40)), "valid")
    changed = open_corpus(make_set(train=[f"new {text}" for text in numbered(40)]), "valid")
    assert list(opened) == numbered(40)[36:38]
    assert list(changed) == ["new document 36", "new document 37"]
    assert opened.digest != changed.digest


def test_a_data_set_follows_a_file(make_set: MakeSet, tmp_path: Path) -> None:
    name = make_set(train=["from a data set"], validation=["valid"])
    (tmp_path / "train.txt").write_text(TEXT, encoding="utf-8")
    assert list(open_corpus([tmp_path, name], "train")) == [TEXT, "from a data set"]


def test_text_files_give_a_document_for_each_line(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert list(open_corpus(f"datasets:{tmp_path}", "valid")) == ["one", "two"]


def test_a_configuration_is_named_after_a_second_colon(tmp_path: Path) -> None:
    for config in ("raw", "clean"):
        (tmp_path / config).mkdir()
        texts: list[str | None] = [f"{config} {number}" for number in range(20)]
        write_parquet(tmp_path / config / "train.parquet", text=texts)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: raw\n  data_files: raw/*\n"
        "- config_name: clean\n  data_files: clean/*\n---\n"
    )
    assert list(open_corpus(f"datasets:{tmp_path}:clean", "valid")) == ["clean 18"]


def test_an_unknown_configuration_is_told_with_those_there_are(make_set: MakeSet) -> None:
    with pytest.raises(DataError, match=r"stories:raw' cannot be loaded: .*'raw' not found.*defau"):
        open_corpus(make_set(train=["one"]) + ":raw", "train")


def test_a_data_set_out_of_reach_is_told_with_the_reason() -> None:
    with pytest.raises(
        DataError, match=r"'datasets:some/stories' cannot be loaded: Couldn't reach"
    ):
        open_corpus("datasets:some/stories", "train")


def test_a_data_set_that_does_not_exist_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/no' cannot be loaded: Couldn't find any data file"):
        open_corpus(f"datasets:{tmp_path}/no", "train")


def test_a_data_set_without_a_name_is_refused() -> None:
    with pytest.raises(DataError, match="corpus 'datasets:' must name a data set after the colon"):
        open_corpus("datasets:", "train")


def test_a_damaged_file_of_a_data_set_is_told_with_the_reason(
    make_set: MakeSet, tmp_path: Path
) -> None:
    name = make_set(train=["one"])
    (tmp_path / "stories" / "train.jsonl").write_text("{oops\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"stories' cannot be loaded: JSON parse error"):
        open_corpus(name, "train")


def test_a_split_that_is_not_there_is_told_with_those_there_are(make_set: MakeSet) -> None:
    with pytest.raises(DataError, match=r"must have a split 'validation'; .*'train', 'test'"):
        open_corpus(make_set(train=["one"], test=["two"]), "valid")


def test_a_data_set_without_text_is_told_with_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", texts=["one"], title=["a"])
    with pytest.raises(DataError, match="must have a column 'text'; did you mean 'texts'"):
        open_corpus(f"datasets:{tmp_path}", "train")


def test_a_row_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", text=["one", None, *numbered(20)])
    with pytest.raises(DataError, match="must hold a text in every row; got None"):
        list(open_corpus(f"datasets:{tmp_path}", "train"))


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BindError, match=r"'datasets' must be installed .*curricle\[datasets\]"):
        open_corpus("datasets:some/stories", "train")
