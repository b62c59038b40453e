"""Hugging Face folders of every form give a module the weights that transformers would give it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.errors import CheckpointError
from curricle.teachers.pretrained import (
    ADAPTER,
    INDEX,
    SINGLE,
    check_pretrained,
    load_pretrained,
    needs_own_loader,
    pretrained_files,
)
from curricle.teachers.trajectory import hugging_face_trajectory
from tests.parts import mlp

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 8,
}
FAMILIES = {
    "qwen3_moe": {
        "moe_intermediate_size": 4,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "head_dim": 4,
    },
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "llama": {},
}


def made(family: str, seed: int, **sizes: Any) -> Any:
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **sizes})
    with seeding.scoped(seed, "model"):
        return transformers.AutoModelForCausalLM.from_config(config)


def logits(module: nn.Module) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        shown: torch.Tensor = module(torch.arange(6).view(1, 6)).logits
    return shown


@pytest.mark.parametrize("size", ["5GB", "1KB"], ids=["one file", "several files"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_of_a_family_teach_as_they_were(tmp_path: Path, family: str, size: str) -> None:
    folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    for seed, folder in enumerate(folders):
        made(family, seed).save_pretrained(folder, max_shard_size=size)
    module, trajectory = made(family, 9), hugging_face_trajectory(folders)
    trajectory.check(module, (1, 2))
    for seed, step in ((1, 2), (0, 1)):
        trajectory.load(module, step)
        assert torch.equal(logits(module), logits(made(family, seed)))


def test_a_file_of_the_modules_names_is_read_directly(tmp_path: Path) -> None:
    made("llama", 0).save_pretrained(tmp_path)
    assert not needs_own_loader(made("llama", 1), tmp_path)
    assert not needs_own_loader(made("llama", 1), tmp_path / SINGLE)
    assert not needs_own_loader(mlp(4).module, tmp_path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors"])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"must list plain names of files beside it; got"):
        pretrained_files(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_an_index_without_files_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=r"index.json' must "):
        pretrained_files(tmp_path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"model-1.safetensors' is listed in .*it does not$"):
        pretrained_files(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickle_is_refused_with_the_way_to_safetensors(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"a pickle, which is not read .*'save_pretrained'"):
        hugging_face_trajectory([tmp_path])


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    made("llama", 0, hidden_size=16).save_pretrained(tmp_path, max_shard_size="1KB")
    with pytest.raises(
        CheckpointError, match=r"must hold weights of LlamaForCausalLM; loading failed"
    ):
        check_pretrained(made("llama", 0), tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    made("llama", 0).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"must hold this model's weights; 'model.layers.1"):
        check_pretrained(made("llama", 0, num_hidden_layers=2), tmp_path)


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    made("mixtral", 0).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    load_pretrained(made("mixtral", 1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapter_alone_is_refused_with_the_way_to_a_whole_model(tmp_path: Path) -> None:
    (tmp_path / ADAPTER).touch()
    with pytest.raises(CheckpointError, match=r"got an adapter of PEFT alone; .*merge_and_unload"):
        hugging_face_trajectory([tmp_path])


class Wrapped(nn.Module):
    """A wrapper, as PEFT's, whose `from_pretrained` wants the model inside."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.config = base, SIZES

    @classmethod
    def from_pretrained(cls, model: nn.Module, model_id: str) -> "Wrapped":
        raise AssertionError(model, model_id)

    def get_base_model(self) -> nn.Module:
        return self.base


def test_a_whole_model_for_a_wrapper_is_refused_by_its_names(tmp_path: Path) -> None:
    base = made("llama", 0)
    base.save_pretrained(tmp_path)
    trajectory = hugging_face_trajectory([tmp_path])
    with pytest.raises(CheckpointError, match=r"this model's weights; 'base.model.* is missing"):
        trajectory.check(Wrapped(base), trajectory.steps)
