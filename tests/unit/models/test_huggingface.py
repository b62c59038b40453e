"""Building Hugging Face models from scratch and loading them from a folder."""

import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from curricle import seeding
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.models.huggingface import HuggingFaceSpec, PretrainedSpec
from curricle.models.tapped import TappedModel
from curricle.values import parse, plain

TINY: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def build(spec: HuggingFaceSpec | PretrainedSpec, *, num_inputs: int = 20) -> TappedModel:
    with seeding.scoped(0, "test model"):
        return spec.build(num_inputs=num_inputs, num_classes=0, num_positions=6)


def config_of(model: TappedModel) -> Any:
    assert isinstance(model.module, transformers.PreTrainedModel)
    return model.module.config


@pytest.mark.parametrize(
    ("family", "head", "kind"),
    [
        ("bert", "masked_lm", transformers.BertForMaskedLM),
        ("bert", "causal_lm", transformers.BertLMHeadModel),
        ("llama", "causal_lm", transformers.LlamaForCausalLM),
    ],
)
def test_family_and_head_decide_the_class(family: str, head: Any, kind: type) -> None:
    model = build(HuggingFaceSpec(model_type=family, head=head, config=TINY))
    assert isinstance(model.module, kind)
    assert (model.depth, model.is_residual) == (2, True)


def test_the_configuration_follows_the_spec_and_the_task() -> None:
    config = config_of(build(HuggingFaceSpec(model_type="bert", config=TINY), num_inputs=31))
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (8, 2, 31)
    assert config.max_position_embeddings >= 6
    assert config.pad_token_id == 0


def test_the_padding_token_follows_the_task() -> None:
    spec = HuggingFaceSpec(model_type="bert", config=TINY)
    with seeding.scoped(0, "test model"):
        model = spec.build(num_inputs=9, num_classes=0, num_positions=6, padding_token=5)
    # A family that ignores the padding token would never learn to read a token with its id.
    embedding = model.module.get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(embedding, torch.nn.Embedding)
    assert embedding.padding_idx == config_of(model).pad_token_id == 5


def test_a_task_without_padding_leaves_every_embedding_to_be_learned() -> None:
    spec = HuggingFaceSpec(model_type="bert", config=TINY)
    with seeding.scoped(0, "test model"):
        model = spec.build(num_inputs=2, num_classes=0, num_positions=6, padding_token=None)
    embedding = model.module.get_submodule("bert.embeddings.word_embeddings")
    assert isinstance(embedding, torch.nn.Embedding)
    assert embedding.padding_idx is config_of(model).pad_token_id is None


def test_the_spec_has_the_last_word() -> None:
    given = TINY | {"max_position_embeddings": 40, "pad_token_id": 3}
    config = config_of(build(HuggingFaceSpec(model_type="bert", config=given)))
    assert (config.max_position_embeddings, config.pad_token_id) == (40, 3)


def test_fields_may_have_the_names_of_other_families() -> None:
    given = {"hidden_size": 8, "num_hidden_layers": 3, "n_head": 2}
    model = build(HuggingFaceSpec(model_type="gpt2", head="causal_lm", config=given))
    assert model.depth == 3
    assert config_of(model).n_embd == 8


def test_no_special_token_lies_outside_a_small_vocabulary() -> None:
    given = {"n_embd": 8, "n_layer": 1, "n_head": 2}
    config = config_of(build(HuggingFaceSpec(model_type="gpt2", head="causal_lm", config=given)))
    assert (config.bos_token_id, config.eos_token_id) == (None, None)


def test_equal_seeds_draw_equal_weights() -> None:
    spec = HuggingFaceSpec(model_type="bert", config=TINY)
    one, other = build(spec).module.state_dict(), build(spec).module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_specs_survive_plain_data() -> None:
    built = HuggingFaceSpec(model_type="bert", config=TINY)
    loaded = PretrainedSpec(path="somewhere", head="causal_lm")
    assert parse(HuggingFaceSpec, plain(built)) == built
    assert parse(PretrainedSpec, plain(loaded)) == loaded


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"^'model_type' must be a family of transformers; got 'bertt'$"
    ):
        build(HuggingFaceSpec(model_type="bertt"))


def test_an_unknown_field_is_answered_with_the_near_ones() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'hiden_size' is not a field of the bert configuration; did you mean 'hidden_size' "
        r"or .*\? available: .* and \d+ more$",
    ):
        build(HuggingFaceSpec(model_type="bert", config={"hiden_size": 8}))


@pytest.mark.parametrize(
    ("family", "given", "reason"),
    [
        ("bert", {"hidden_size": "big"}, ".*'hidden_size' expected int, got str"),
        ("bert", {"hidden_size": 9, "num_attention_heads": 2}, ".*not a multiple of the number"),
        ("vit", {}, "Unrecognized configuration class"),
    ],
)
def test_what_transformers_refuses_is_told(family: str, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(
        SpecError,
        match=f"^'config' must describe a {family} model with head 'masked_lm'; transformers says: "
        f"{reason}",
    ):
        build(HuggingFaceSpec(model_type=family, config=given))


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'HuggingFaceSpec.head' must be 'masked_lm', "):
        HuggingFaceSpec(model_type="bert", head="classes")  # type: ignore[arg-type]


def saved(folder: Path) -> TappedModel:
    model = build(HuggingFaceSpec(model_type="bert", config=TINY))
    assert isinstance(model.module, transformers.PreTrainedModel)
    model.module.save_pretrained(folder)
    return model


def test_a_saved_model_is_loaded_with_its_weights(tmp_path: Path) -> None:
    expected = saved(tmp_path).module.state_dict()
    loaded = build(PretrainedSpec(path=str(tmp_path)))
    found = loaded.module.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert loaded.depth == 2


def test_a_model_in_half_precision_is_loaded_in_full(tmp_path: Path) -> None:
    module: Any = build(HuggingFaceSpec(model_type="bert", config=TINY)).module
    module.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = build(PretrainedSpec(path=str(tmp_path)))
    assert {one.dtype for one in loaded.module.parameters()} == {torch.float32}


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BindError, match=r"^'path' must be a folder with a config.json; got '.*'$"):
        build(PretrainedSpec(path=str(tmp_path / "nowhere")))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(
        BindError, match=r"^'vocabulary' of '.*' must have the task's 21 entries or more; got 20$"
    ):
        build(PretrainedSpec(path=str(tmp_path)), num_inputs=21)


def test_a_folder_whose_weights_cannot_be_read_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors in here, only words")
    with pytest.raises(
        CheckpointError,
        match=r"^'path' '.*' must hold a model with head 'masked_lm'; transformers says: ",
    ):
        build(PretrainedSpec(path=str(tmp_path)))


def test_a_folder_without_all_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = next(name for name in tensors if name.endswith("layer.1.output.dense.weight"))
    del tensors[name]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=rf"^'path' '.*' must hold all weights of BertForMaskedLM; '{name}' is missing$",
    ):
        build(PretrainedSpec(path=str(tmp_path)))


@pytest.mark.parametrize(("name", "least"), [("vocab_size", 20), ("max_position_embeddings", 6)])
def test_a_model_too_small_for_the_task_is_refused(name: str, least: int) -> None:
    with pytest.raises(
        BindError, match=rf"^'{name}' of the model must be at least the task's {least}; got 5$"
    ):
        build(HuggingFaceSpec(model_type="bert", config=TINY | {name: 5}))


def test_missing_transformers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(
        BindError,
        match=r"^'transformers' must be installed for Hugging Face models: pip install "
        r"'curricle\[hf\]' \(No module named 'transformers'\)$",
    ):
        build(HuggingFaceSpec(model_type="bert"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_refused_with_the_way_to_safetensors(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=rf"'{name}', a pickle, .* 'save_pretrained' of the"):
        build(PretrainedSpec(path=str(tmp_path)))


def with_code(folder: Path, family: str) -> Path:
    """Return a saved model whose configuration names code in the folder, which leaves a mark."""
    saved(folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "code.Config", "AutoModelForMaskedLM": "code.Model"}
    config |= {"model_type": family, "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'mark')!r}, 'w')")
    return folder


def test_a_folder_that_brings_its_own_code_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_code(tmp_path, "homemade")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(CheckpointError, match=r"'homemade' is code in the folder .*never run"):
        build(PretrainedSpec(path=str(folder)))
    assert sys.stdin.read() == "y\n"
    assert not (folder / "mark").exists()


def test_code_beside_a_known_family_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_code(tmp_path, "bert")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    model = build(PretrainedSpec(path=str(folder)))
    assert isinstance(model.module, transformers.BertForMaskedLM)
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{oops"])
def test_a_damaged_configuration_is_one_sentence(tmp_path: Path, content: str) -> None:
    saved(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"must hold a model with head 'masked_lm'; transf"):
        build(PretrainedSpec(path=str(tmp_path)))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_looking_for_the_blocks_leaves_no_hooks(family: str) -> None:
    """A block with a hook inside would not be compiled."""
    head: Any = "masked_lm" if family == "bert" else "causal_lm"
    module = build(HuggingFaceSpec(model_type=family, head=head, config=TINY)).module.eval()
    assert not any(part._forward_hooks for part in module.modules())
    ids = torch.tensor([[1, 2, 3]])
    for _ in range(2):
        output = module(input_ids=ids, output_hidden_states=True)
        assert len(output.hidden_states) == TINY["num_hidden_layers"] + 1
