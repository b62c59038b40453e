"""Tasks open to streams, held-out batches and the sizes that a model must have."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from curricle.errors import BindError, CheckpointError, DataError, SpecError
from curricle.models.tapped import Inputs
from curricle.tasks import ParityTask, PcfgTask, Task, TextTask
from curricle.values import override, parse, plain

LINE = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder whose validation text differs from its training text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.txt").write_text(LINE * 40)
    (folder / "valid.txt").write_text(LINE.upper() * 10)
    return folder


def text_task(corpus: Path, **fields: object) -> TextTask:
    given = {"vocabulary_size": 300, "window": 8, "batch_size": 4, "evaluation_batches": 2}
    return TextTask(corpus=str(corpus), **(given | fields))  # type: ignore[arg-type]


def ids(inputs: Inputs) -> torch.Tensor:
    assert not isinstance(inputs, torch.Tensor)
    return inputs["input_ids"]


def test_parity_opens_to_its_sizes(tmp_path: Path) -> None:
    data = ParityTask(num_inputs=8, degree=2, batch_size=16).open(seed=0, cache_dir=tmp_path)
    assert (data.num_inputs, data.num_classes, data.num_positions) == (8, 2, 1)
    assert data.name == "(8,2)-parity"
    assert data.stream.batch_size == 16


def test_parity_counts_an_example_as_a_token(tmp_path: Path) -> None:
    assert ParityTask(batch_size=16).tokens_per_batch == 16


def test_parity_labels_are_the_product_of_the_first_inputs(tmp_path: Path) -> None:
    batch = (
        ParityTask(num_inputs=8, degree=2, batch_size=16)
        .open(seed=0, cache_dir=tmp_path)
        .stream.batch(3)
    )
    assert isinstance(batch.inputs, torch.Tensor)
    assert batch.labels is not None
    products = batch.inputs[:, 0] * batch.inputs[:, 1]
    assert torch.equal(batch.labels, (products < 0).long())


def test_held_out_parity_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    task = ParityTask(num_inputs=8, degree=2, batch_size=16, evaluation_examples=32)
    first, second = (task.open(seed=seed, cache_dir=tmp_path) for seed in (0, 1))
    assert isinstance(first.evaluation[0].inputs, torch.Tensor)
    assert isinstance(second.evaluation[0].inputs, torch.Tensor)
    assert torch.equal(first.evaluation[0].inputs, second.evaluation[0].inputs)
    assert first.stream.fingerprint != second.stream.fingerprint


def test_a_parity_of_more_bits_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'degree' must lie between 1 and 'num_inputs' 8; got 9"):
        ParityTask(num_inputs=8, degree=9).open(seed=0, cache_dir=tmp_path)


def test_text_opens_to_the_size_of_its_vocabulary(corpus: Path, tmp_path: Path) -> None:
    data = text_task(corpus).open(seed=0, cache_dir=tmp_path / "cache")
    # 256 bytes, 4 special tokens and the merges that so short a text gives.
    assert 260 < data.num_inputs <= 300
    assert data.num_classes == data.num_inputs
    assert data.num_positions == 8
    assert data.name == "masked tokens of corpus"


def test_several_texts_are_one_corpus(corpus: Path, tmp_path: Path) -> None:
    alone = text_task(corpus)
    both = replace(alone, corpus=(str(corpus), "sample"))
    data = both.open(seed=0, cache_dir=tmp_path / "cache")
    assert data.name == "masked tokens of corpus + sample"
    assert data.stream.fingerprint != alone.open(seed=0, cache_dir=tmp_path).stream.fingerprint


@pytest.mark.parametrize(
    ("text", "corpus"),
    [
        ("sample", "sample"),
        ("[wikitext-2, books]", ("wikitext-2", "books")),
        ("datasets:owner/name:config", "datasets:owner/name:config"),
        ("[sample,datasets:owner/name]", ("sample", "datasets:owner/name")),
    ],
)
def test_the_command_line_names_a_corpus_or_several(
    text: str, corpus: str | tuple[str, ...]
) -> None:
    task = parse(Task, override({"kind": "text"}, [f"corpus={text}"]))
    assert task.corpus == corpus
    assert parse(Task, plain(task)) == task


def test_a_list_of_no_text_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'corpus' must name at least one text; got \(\)"):
        TextTask(corpus=())


def test_text_counts_window_times_batch_tokens(corpus: Path) -> None:
    assert text_task(corpus).tokens_per_batch == 4 * 8


def test_held_out_text_comes_from_the_validation_split(corpus: Path, tmp_path: Path) -> None:
    data = text_task(corpus, objective="next_token").open(seed=0, cache_dir=tmp_path / "cache")
    assert len(data.evaluation) == 2
    trained = set(ids(data.stream.batch(0).inputs).flatten().tolist())
    held_out = set(ids(data.evaluation[0].inputs).flatten().tolist())
    # Capital letters occur in the validation split only; the blank occurs in both.
    assert len(held_out - trained) > len(held_out & trained)


def test_held_out_text_does_not_depend_on_the_seed(corpus: Path, tmp_path: Path) -> None:
    first, second = (
        text_task(corpus).open(seed=seed, cache_dir=tmp_path / "cache") for seed in (0, 1)
    )
    assert torch.equal(ids(first.evaluation[0].inputs), ids(second.evaluation[0].inputs))
    assert first.stream.fingerprint != second.stream.fingerprint


def test_the_next_token_is_the_label_of_each_position_but_the_last(
    corpus: Path, tmp_path: Path
) -> None:
    data = text_task(corpus, objective="next_token").open(seed=0, cache_dir=tmp_path / "cache")
    batch = data.stream.batch(0)
    assert batch.selected is not None
    assert (batch.selected % 8 != 7).all()


def test_masking_has_no_effect_on_the_next_token_and_is_refused(corpus: Path) -> None:
    with pytest.raises(SpecError, match=r"'masking' must be left out with objective 'next_token'"):
        text_task(corpus, objective="next_token", masking={"rate": 0.3})


def test_masked_tokens_are_hidden_at_the_given_rate(corpus: Path, tmp_path: Path) -> None:
    task = text_task(corpus, masking={"rate": 1.0, "mask_share": 1.0, "random_share": 0.0})
    batch = task.open(seed=0, cache_dir=tmp_path / "cache").stream.batch(0)
    # 2 is the id of the mask, 3 that of the start of a document, which is never hidden.
    assert set(ids(batch.inputs).flatten().tolist()) <= {2, 3}


def test_a_corpus_shorter_than_one_window_is_named_with_its_split(
    corpus: Path, tmp_path: Path
) -> None:
    task = text_task(corpus, window=4000)
    with pytest.raises(
        DataError, match=r"split 'train' of corpus '.*corpus': .* one window of 4000 tokens; got \d"
    ):
        task.open(seed=0, cache_dir=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_told_in_the_words_of_the_disk(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match=r"'.*cache.*' cannot be written: File exists"):
        text_task(corpus).open(seed=0, cache_dir=tmp_path / "cache")


def test_text_without_the_tokenizers_package_says_what_to_install(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> object:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BindError, match=r"'tokenizers' must be installed .*curricle\[hf\]"):
        text_task(corpus).open(seed=0, cache_dir=tmp_path / "cache")


def grammar_task(**fields: object) -> PcfgTask:
    return PcfgTask(**({"start": 13, "batch_size": 4, "evaluation_batches": 2} | fields))  # type: ignore[arg-type]


def test_a_grammar_opens_to_its_sizes(tmp_path: Path) -> None:
    data = grammar_task().open(seed=0, cache_dir=tmp_path)
    assert (data.num_inputs, data.num_classes, data.padding_token) == (8, 8, 5)
    # 13 gives at most 18 terminals, and the begin token comes first.
    assert data.num_positions == 19
    assert data.name == "masked tokens of cfg3b from 13"
    assert not list(tmp_path.iterdir())


def test_a_grammar_counts_its_positions_padding_included(tmp_path: Path) -> None:
    for task in (grammar_task(), grammar_task(pad_to="batch")):
        data = task.open(seed=0, cache_dir=tmp_path)
        assert task.tokens_per_batch == data.stream.tokens_per_batch
    assert grammar_task().tokens_per_batch == 4 * 19


def test_a_grammar_is_read_by_language_models() -> None:
    assert grammar_task().models == ("hf", "pretrained")


@pytest.mark.parametrize("objective", ["masked", "next_token"])
def test_held_out_strings_do_not_depend_on_the_seed(objective: str, tmp_path: Path) -> None:
    task = grammar_task(objective=objective)
    first, second = (task.open(seed=seed, cache_dir=tmp_path) for seed in (0, 1))
    assert len(first.evaluation) == 2
    assert torch.equal(ids(first.evaluation[1].inputs), ids(second.evaluation[1].inputs))
    assert first.stream.fingerprint != second.stream.fingerprint


def test_the_readers_of_a_seed_get_different_strings(tmp_path: Path) -> None:
    one, other = (
        grammar_task().open(seed=0, cache_dir=tmp_path, reader=reader).stream.batch(0)
        for reader in ("train", "student")
    )
    assert not torch.equal(ids(one.inputs), ids(other.inputs))


def test_fields_of_a_grammar_task_reach_its_stream(tmp_path: Path) -> None:
    def fingerprint(**fields: object) -> str:
        return grammar_task(**fields).open(seed=0, cache_dir=tmp_path).stream.fingerprint

    causal: dict[str, object] = {"objective": "next_token"}
    changes: list[dict[str, object]] = [
        {},
        {"grammar": "cfg3f"},
        {"start": 14},
        {"batch_size": 5},
        {"masking": {"rate": 0.2}},
        {"masking_quirk": True},
        {"pad_to": "batch"},
        causal,
        {**causal, "span_level": 1},
        {**causal, "pad_to": "batch"},
    ]
    assert len({fingerprint(**change) for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"start": 23}, r"'start' must be a symbol with rules, one of \[7, .*, 22\]; got 23"),
        ({"start": 3}, "'start' must be a symbol with rules, .*; got 3"),
        ({"span_level": 1}, "'span_level' must be left out with objective 'masked'; got 1"),
        (
            {"objective": "next_token", "span_level": 4},
            "'span_level' must not exceed 3, the level of start symbol 13; got 4",
        ),
        (
            {"objective": "next_token", "masking": {"rate": 0.2}},
            "'masking' must be left out with objective 'next_token'; got Masking",
        ),
        (
            {"objective": "next_token", "masking_quirk": True},
            "'masking_quirk' must be left out with objective 'next_token'; got True",
        ),
    ],
)
def test_a_mistake_in_a_grammar_task_is_told(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        grammar_task(**fields)


def test_a_text_writes_its_tokenizer_and_other_data_none(corpus: Path, tmp_path: Path) -> None:
    text_task(corpus).write_tokenizer(tmp_path / "text", cache_dir=tmp_path / "cache")
    names = sorted(path.name for path in (tmp_path / "text").iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]
    for task in (ParityTask(), PcfgTask()):
        task.write_tokenizer(tmp_path / task.kind, cache_dir=tmp_path / "cache")
        assert not (tmp_path / task.kind).exists()
