"""Encoders of sentences: poolings by hand, taps of the inner model, and folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LayoutLMConfig,
    LayoutLMModel,
)

import curricle
from curricle import seeding
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.models.sentence_encoder import (
    Pooling,
    SentenceEncoder,
    SentenceEncoderSpec,
    pooled_states,
)
from curricle.models.weights import weights_digest

SIZES = {"num_inputs": 30, "num_classes": 1, "num_positions": 12}
TINY: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
STATES = torch.arange(24.0).reshape(2, 4, 3)
MASKS = {
    "right": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
    "left": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
}
BY_HAND: dict[tuple[Pooling, str], tuple[int, ...] | str] = {
    ("cls", "right"): (0, 0),
    ("cls", "left"): (2, 0),
    ("lasttoken", "right"): (1, 3),
    ("lasttoken", "left"): (3, 3),
    ("max", "right"): (1, 3),
    ("max", "left"): (3, 3),
}


def encoder(seed: int = 0, **fields: Any) -> SentenceEncoder:
    with seeding.scoped(seed, "encoder"):
        config = BertConfig(vocab_size=30, max_position_embeddings=20, **TINY)
        return SentenceEncoder(BertModel(config), **fields).eval()


def tokens() -> dict[str, Tensor]:
    ids = torch.arange(10).reshape(2, 5) + 1
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}


def embeddings(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**tokens())["sentence_embedding"]
    return output


@pytest.mark.parametrize(("key", "places"), BY_HAND.items())
def test_a_pooling_takes_the_state_of_one_token(
    key: tuple[Pooling, str], places: tuple[int, ...]
) -> None:
    pooling, side = key
    # States grow with the position, so that the largest one is the last one.
    expected = torch.stack([STATES[row, place] for row, place in enumerate(places)])
    assert torch.equal(pooled_states(STATES, MASKS[side], pooling), expected)


@pytest.mark.parametrize("side", MASKS)
def test_the_mean_leaves_padding_out(side: str) -> None:
    actual = pooled_states(STATES, MASKS[side], "mean")
    rows = [states[mask.bool()] for states, mask in zip(STATES, MASKS[side], strict=True)]
    assert torch.allclose(actual, torch.stack([row.mean(0) for row in rows]))


def test_padding_changes_no_embedding() -> None:
    for pooling in ("mean", "cls", "max", "lasttoken"):
        model = encoder(pooling=pooling)
        longer = embeddings(model)
        with torch.no_grad():
            shorter = model(tokens()["input_ids"][1:, :3])["sentence_embedding"]
        assert torch.allclose(longer[1:], shorter, atol=1e-6), pooling


def test_embeddings_have_length_one_and_the_width_of_the_map() -> None:
    assert torch.allclose(embeddings(encoder(width=5)).norm(dim=-1), torch.ones(2))
    assert encoder(width=5).width == embeddings(encoder(width=5)).shape[-1] == 5
    assert encoder().width == embeddings(encoder()).shape[-1] == 8
    plain = embeddings(encoder(normalize=False))
    assert torch.allclose(nn.functional.normalize(plain, dim=-1), embeddings(encoder()))
    assert not torch.allclose(plain.norm(dim=-1), torch.ones(2))


def test_numbered_taps_are_the_hidden_states_of_the_inner_model() -> None:
    model = encoder()
    tapped = curricle.tapped(model)
    places = [tapped.place(number) for number in range(4)]
    assert tapped.depth == 3
    assert tapped.is_residual
    with torch.no_grad(), tapped.open_taps(places, logits=True) as forward:
        activations = forward(tokens())
        expected = model.encoder(**tokens(), output_hidden_states=True).hidden_states
    for place, states in zip(places, expected, strict=True):
        assert torch.equal(activations.hidden[place], states)
    assert activations.logits is not None
    assert torch.equal(activations.logits, embeddings(model))


def test_a_module_of_two_encoders_has_no_numbered_taps() -> None:
    module = nn.ModuleList([encoder(), encoder(1)])
    tapped = curricle.tapped(module)
    assert not tapped.is_residual
    with pytest.raises(BindError, match=r"needs a model with numbered blocks"):
        tapped.place(1)


def test_an_encoder_without_a_width_is_refused() -> None:
    with pytest.raises(BindError, match=r"^'encoder' must be a model of transformers .*'Identity'"):
        SentenceEncoder(nn.Identity())


@pytest.mark.parametrize(
    "fields",
    [{}, {"pooling": "cls", "normalize": False}, {"pooling": "lasttoken", "width": 4}],
)
def test_a_folder_gives_the_same_embeddings(fields: dict[str, Any], tmp_path: Path) -> None:
    model = encoder(**fields)
    model.save_pretrained(tmp_path)
    with seeding.scoped(0, "opened"):
        opened = SentenceEncoderSpec(path=str(tmp_path)).build(**SIZES).module.eval()
    assert torch.equal(embeddings(opened), embeddings(model))
    modules = [
        entry["type"].rpartition(".")[2]
        for entry in json.loads((tmp_path / "modules.json").read_text())
    ]
    expected = ["Transformer", "Pooling", *(["Dense"] if "width" in fields else [])]
    assert modules == [*expected, *([] if fields.get("normalize") is False else ["Normalize"])]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert [name for name, flag in pooling.items() if flag is True] == [
        {
            "mean": "pooling_mode_mean_tokens",
            "cls": "pooling_mode_cls_token",
            "lasttoken": "pooling_mode_lasttoken",
        }[fields.get("pooling", "mean")]
    ]


def test_fields_of_a_spec_come_before_those_of_the_folder(tmp_path: Path) -> None:
    encoder(width=4).save_pretrained(tmp_path)
    spec = SentenceEncoderSpec(path=str(tmp_path), pooling="max", width=6, normalize=False)
    with seeding.scoped(0, "map"):
        opened: Any = spec.build(**SIZES).module
    assert (opened.pooling, opened.width, opened.normalize) == ("max", 6, False)


def test_a_plain_folder_of_transformers_is_pooled_by_the_mean(tmp_path: Path) -> None:
    model = encoder()
    model.encoder.save_pretrained(tmp_path)  # type: ignore[operator]
    opened = SentenceEncoderSpec(path=str(tmp_path)).build(**SIZES).module.eval()
    assert torch.equal(embeddings(opened), embeddings(model))


@pytest.mark.parametrize("family", [BertModel, LayoutLMModel])
def test_a_folder_without_a_pooler_has_no_random_weights(family: Any, tmp_path: Path) -> None:
    config = {BertModel: BertConfig, LayoutLMModel: LayoutLMConfig}[family]
    with seeding.scoped(0, "encoder"):
        model = family(config(vocab_size=30, max_position_embeddings=20, **TINY))
    # A pooler without weights, as in a folder of a language model.
    model.pooler = nn.Identity()
    model.save_pretrained(tmp_path / "source")
    digests = set()
    for seed in (0, 1):
        with seeding.scoped(seed, "opened"):
            opened = SentenceEncoderSpec(path=str(tmp_path / "source")).build(**SIZES).module
        digests.add(weights_digest(opened))
    assert len(digests) == 1
    assert torch.equal(embeddings(opened.eval()), embeddings(SentenceEncoder(model).eval()))
    opened.save_pretrained(tmp_path / "copy")  # type: ignore[operator]
    names = load_file(tmp_path / "copy" / "model.safetensors")
    assert names
    assert not [name for name in names if "pooler" in name]


def test_settings_of_a_folder_are_written_again(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "q: "}, "similarity_fn_name": "dot", "model_type": "Encoder"}
    source = encoder(lower_case=True, max_length=9, settings=settings)
    source.save_pretrained(tmp_path / "source")
    _change("config_sentence_transformers.json", __version__={"torch": "1"})(tmp_path / "source")
    opened: Any = SentenceEncoderSpec(path=str(tmp_path / "source")).build(**SIZES).module
    opened.save_pretrained(tmp_path / "copy")
    written, limits = (
        json.loads((tmp_path / "copy" / name).read_text())
        for name in ("config_sentence_transformers.json", "sentence_bert_config.json")
    )
    assert written == settings | {"default_prompt_name": None}
    assert limits == {"max_seq_length": 9, "do_lower_case": True}


def test_a_decoder_is_an_encoder_of_sentences_by_its_last_token() -> None:
    with seeding.scoped(0, "decoder"):
        inner = GPT2Model(GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=20))
        model = SentenceEncoder(inner, pooling="lasttoken").eval()
    with torch.no_grad():
        states = inner(**tokens()).last_hidden_state
    expected = nn.functional.normalize(torch.stack([states[0, 4], states[1, 2]]), dim=-1)
    assert torch.allclose(embeddings(model), expected)


def _modules(*kinds: str) -> Callable[[Path], object]:
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
    return lambda folder: (folder / "modules.json").write_text(json.dumps(listed))


def _change(name: str, **fields: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(
        json.dumps(json.loads((folder / name).read_text()) | fields)
    )


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_modules("Transformer", "LSTM", "Pooling"), r"got Transformer, LSTM, Pooling; in Python"),
        (lambda folder: (folder / "modules.json").write_text("[3]"), r"must list modules as"),
        (
            _change("1_Pooling/config.json", pooling_mode_max_tokens=True),
            r"must have one pooling of .*; got mean, max",
        ),
        (
            _change("1_Pooling/config.json", pooling_mode="weightedmean"),
            r"must have one pooling of .*; got weightedmean",
        ),
        (lambda folder: (folder / "1_Pooling/config.json").unlink(), r"must be a configuration"),
        (
            lambda folder: (folder / "1_Pooling/config.json").write_text("[]"),
            r"must be a configuration; got no mapping",
        ),
        (
            _change("2_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh"),
            r"must be a linear map with a bias and no activation; got .*Tanh",
        ),
        (
            _change(
                "config_sentence_transformers.json",
                prompts={"query": "q: "},
                default_prompt_name="query",
            ),
            r"must be a folder without a default prompt, .*; got 'q: ' under 'query'; .*TextColl",
        ),
        (
            lambda folder: save_file({"w": torch.zeros(1)}, folder / "2_Dense/model.safetensors"),
            r"must hold 'linear.weight' and 'linear.bias'",
        ),
    ],
)
def test_another_folder_is_refused(
    damage: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    encoder(width=4).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        SentenceEncoderSpec(path=str(tmp_path)).build(**SIZES)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, r"'model_type' or 'path' must be given, and not both"),
        ({"model_type": "bert", "path": "x"}, r"'model_type' or 'path' must be given"),
        ({"path": "x", "config": {"hidden_size": 8}}, r"'config' has no effect with 'path'"),
    ],
)
def test_a_spec_is_of_a_new_encoder_or_of_a_folder(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        SentenceEncoderSpec(**fields)


def test_a_new_encoder_has_the_sizes_of_the_task() -> None:
    spec = SentenceEncoderSpec(model_type="bert", config=TINY, width=5)
    with seeding.scoped(0, "new"):
        module: Any = spec.build(**SIZES, padding_token=3).module
    config = module.encoder.config
    assert (config.vocab_size, config.pad_token_id, module.max_length) == (30, 3, 12)
    assert (module.pooling, module.width, module.normalize) == ("mean", 5, True)
    with pytest.raises(SpecError, match=r"'hiden_size' is not a field of the bert configuration"):
        SentenceEncoderSpec(model_type="bert", config={"hiden_size": 8}).build(**SIZES)
