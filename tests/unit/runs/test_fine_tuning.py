"""A folder is fine-tuned on texts, and judged by texts that were not trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from curricle import seeding
from curricle.errors import BindError, CheckpointError, DataError, SpecError
from curricle.models.huggingface import language_head, open_classifier, open_language_model
from curricle.runs.fine_tuning import FineTuned, FineTuning, fine_tune, read_texts
from curricle.runs.minimal_pairs import Pair, pair_accuracy
from curricle.runs.run_evaluation import fine_tune_run, score_run

transformers = pytest.importorskip("transformers")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "play", "a")
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a tiny masked model with its tokenizer."""
    path = tmp_path / "bert"
    path.mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with seeding.scoped(0, "model"):
        transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(path)
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(path)
    return path


def write_texts(path: Path, labels: Sequence[object]) -> Path:
    rows = [
        {"text": f"a {'good' if label in {'pos', 1} else 'bad'} {noun}", "label": label}
        for noun in ("film", "play")
        for label in labels
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_model_learns_the_texts_and_seeds_differ(folder: Path, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "train.jsonl", ["pos", "neg"] * 8)
    test = write_texts(tmp_path / "test.jsonl", ["pos", "neg", "neg"])
    before = (folder / "model.safetensors").read_bytes()
    tuning = FineTuning(epochs=20, learning_rate=5e-3, batch_size=8)
    result = fine_tune_run(folder, train, test, seeds=(0, 1), tuning=tuning)
    perfect = {"accuracy": 1.0, "f1_macro": 1.0}
    assert result.by_seed == {0: perfect, 1: perfect}
    assert result.means == perfect
    assert (result.train_texts, result.test_texts, result.steps) == (32, 6, 80)
    assert result.classes == ("neg", "pos")
    assert {"classifier.weight", "classifier.bias"} <= set(result.new_weights)
    assert "bert.embeddings.word_embeddings.weight" not in result.new_weights
    assert (folder / "model.safetensors").read_bytes() == before


def test_without_a_step_of_use_scores_are_those_of_a_fresh_head(
    folder: Path, tmp_path: Path
) -> None:
    train = write_texts(tmp_path / "train.jsonl", [0, 1] * 4)
    tuning = FineTuning(epochs=1, learning_rate=1e-12, batch_size=8)
    result = fine_tune(folder, train, train, seeds=(0,), tuning=tuning)
    # Both classes are equally frequent, and the fresh head gives all texts one class.
    assert result.by_seed[0]["accuracy"] in {0.0, 0.5, 1.0}
    again = fine_tune(folder, train, train, seeds=(0,), tuning=tuning)
    assert again == result


def test_the_table_ends_with_the_mean() -> None:
    result = FineTuned(
        by_seed={
            0: {"accuracy": 0.5, "f1_macro": 0.25},
            3: {"accuracy": 1.0, "f1_macro": 0.75},
        },
        classes=("a", "b"),
        train_texts=8,
        test_texts=4,
        steps=3,
        new_weights=("head",),
    )
    assert str(result).splitlines() == [
        "| seed | accuracy | macro F1 |",
        "| --- | ---: | ---: |",
        "| 0 | 50.00 % | 25.00 % |",
        "| 3 | 100.00 % | 75.00 % |",
        "| mean | 75.00 % | 50.00 % |",
    ]
    facts = json.loads(json.dumps(result.plain()))
    assert facts["by_seed"]["3"] == {"accuracy": 1.0, "f1_macro": 0.75}
    assert facts["classes"] == 2


def test_wrong_texts_and_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "train.jsonl", ["pos", "neg"] * 8)
    test = write_texts(tmp_path / "test.jsonl", ["pos", "negg"])
    with pytest.raises(DataError, match="classes of the training texts; got 'negg'; did you mean"):
        fine_tune(folder, train, test)
    with pytest.raises(DataError, match="at least 33 texts, those of a batch; got 32"):
        fine_tune(folder, train, train, tuning=FineTuning(batch_size=33))
    with pytest.raises(DataError, match="a text 'text' and a class 'intent'; it has 'text', 'lab"):
        read_texts(train, FineTuning(label_column="intent"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="must hold texts with classes; got none"):
        read_texts(tmp_path / "empty.jsonl")
    with pytest.raises(SpecError, match=r"'seeds' must be different numbers.*\[1, 1\]"):
        fine_tune(folder, train, train, seeds=(1, 1))
    with pytest.raises(SpecError, match="'epochs' must be positive; got 0"):
        FineTuning(epochs=0)


def test_a_folder_is_opened_by_its_head(folder: Path, tmp_path: Path) -> None:
    assert language_head(folder) == "masked_lm"
    with seeding.scoped(0, "head"):
        classifier = open_classifier(folder, ["a", "b", "c"])
    config: Any = classifier.module.config
    assert config.num_labels == 3
    assert (classifier.longest(128), classifier.longest(5)) == (8, 5)
    module: Any = classifier.module
    module.save_pretrained(tmp_path / "classifier")
    with pytest.raises(BindError, match="masked or next tokens; got BertForSequenceClass"):
        language_head(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match="must hold a model and its tokenizer"):
        language_head(tmp_path)


def test_a_decoder_without_padding_is_a_classifier_and_a_language_model(tmp_path: Path) -> None:
    path = tmp_path / "gpt2"
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=8
    )
    with seeding.scoped(0, "model"):
        transformers.GPT2LMHeadModel(config).save_pretrained(path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(
        str(tmp_path / "vocab.txt"), pad_token=None, eos_token="[SEP]"
    )
    tokenizer.save_pretrained(path)
    assert language_head(path) == "causal_lm"
    with seeding.scoped(0, "head"):
        opened = open_classifier(path, ["a", "b"])
    module: Any = opened.module
    assert module.config.pad_token_id == opened.tokenizer.pad_token_id is not None
    train = write_texts(tmp_path / "train.jsonl", ["pos", "neg"] * 4)
    result = fine_tune(path, train, train, seeds=(0,), tuning=FineTuning(batch_size=8))
    assert 0.0 <= result.by_seed[0]["accuracy"] <= 1.0


def test_pairs_of_a_folder_are_scored_by_its_own_model(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"UID": "noun", "sentence_good": "a good film", "sentence_bad": "a bad film"},
        {"UID": "noun", "sentence_good": "a bad film", "sentence_bad": "a good film"},
        {"UID": "tie", "sentence_good": "a Film", "sentence_bad": "a film"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    result = score_run(folder, path)
    # One of two opposite pairs is right, and equal tokens are a tie.
    assert result.by_kind == {"noun": 0.5, "tie": 0.0}
    assert result.ties == 1
    opened = open_language_model(folder)
    pairs = [Pair(kind="noun", good="a good film", bad="a bad film")]
    alone = pair_accuracy(opened.module, opened.tokenizer, pairs, head="masked_lm", batch_size=1)
    assert alone.mean in {0.0, 1.0}
