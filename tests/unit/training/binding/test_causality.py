"""Models of paired texts must be decoders, and their targets are not stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import curricle
from curricle import seeding
from curricle.data.text import open_corpus, train_tokenizer
from curricle.data.text.paired import PairedTexts
from curricle.errors import BindError
from curricle.models.families import tapped
from curricle.training.binding.causality import check_causal

hf = pytest.importorskip("transformers")
WINDOW = 16
Maker = Callable[[int], nn.Module]


@pytest.fixture(scope="module")
def data() -> PairedTexts:
    (text,) = open_corpus("sample", "valid")
    texts = [line + "\n" for line in "".join(text).split("\n")[:200]]
    own, other = train_tokenizer(texts, 300), train_tokenizer(texts, 400)
    return curricle.paired_texts(texts, own, other, window=WINDOW, batch_size=2)


def made(kind: str, size: int, head: str, **sizes: Any) -> nn.Module:
    config = hf.AutoConfig.for_model(
        kind, vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, **sizes,
    )  # fmt: skip
    with seeding.scoped(0, "model"):
        return getattr(hf, f"AutoModelFor{head}").from_config(config)


def decoder(size: int) -> nn.Module:
    return made("llama", size, "CausalLM")


def experts(size: int) -> nn.Module:
    return made("mixtral", size, "CausalLM", num_key_value_heads=2, num_local_experts=4)


def encoder(size: int) -> nn.Module:
    return made("bert", size, "MaskedLM")


def taught(student: nn.Module, teacher: nn.Module, data: PairedTexts) -> None:
    final = curricle.MatchPairedLogits(label_weight=1.0)
    curriculum = curricle.extraction(total="4 steps", pairs=1, final_objective=final)
    curricle.distill(
        student, teacher, curriculum, data,
        evaluation=lambda model: {"accuracy": 0.0},
        settings=curricle.TrainingSettings(device="cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("make", [decoder, experts])
def test_decoders_learn_from_paired_texts(make: Maker, data: PairedTexts) -> None:
    taught(make(300), make(400), data)


def test_masked_language_models_are_refused(data: PairedTexts) -> None:
    refusal = "of paired texts must predict each token from those before it"
    with pytest.raises(BindError, match=f"'student' {refusal}"):
        taught(encoder(300), decoder(400), data)
    with pytest.raises(BindError, match=f"'teacher' {refusal}"):
        taught(decoder(300), encoder(400), data)


def test_padding_does_not_hide_later_tokens(data: PairedTexts) -> None:
    inputs = data.batch(0).for_teacher.inputs
    check_causal(tapped(decoder(400)), inputs, "teacher")
    with pytest.raises(BindError, match="'teacher' of paired texts"):
        check_causal(tapped(encoder(400)), inputs, "teacher")


def test_targets_of_paired_logits_are_not_stored(data: PairedTexts, tmp_path: Path) -> None:
    curriculum = curricle.one_shot(
        total="4 steps", objective=curricle.MatchPairedLogits(label_weight=1.0)
    )
    with pytest.raises(BindError, match="targets of 'paired_logits' cannot be stored"):
        curricle.capture_targets(
            decoder(300), decoder(400), curriculum, data, folder=tmp_path / "targets"
        )
    assert not (tmp_path / "targets").exists()
