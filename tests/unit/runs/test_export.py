"""Exported folders are loaded by others; a run leaves one of each Hugging Face model."""

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from torch import nn
from transformers import BertConfig, BertModel

import curricle
from curricle import seeding
from curricle.errors import BindError, CheckpointError
from curricle.metrics import METRICS
from curricle.models.sentence_encoder import SentenceEncoder
from curricle.models.weights import weights_digest
from curricle.records import RunRecord
from curricle.runs import export as export_module
from curricle.runs.export import (
    EXPORT,
    MEANINGS,
    base_name,
    check_layout,
    loading_code,
    output_name,
    write_model,
)
from curricle.runs.onnx_files import OnnxCheck
from curricle.runs.run_match import finished_records
from tests.parts import mlp, parity


class Exportable(nn.Module):
    """Stands for a Hugging Face model."""

    def save_pretrained(self, save_directory: str) -> None:
        (Path(save_directory) / "config.json").write_text("{}")


def test_a_hugging_face_model_is_written_below_its_run_folder(tmp_path: Path) -> None:
    write_model(Exportable(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [EXPORT]


def test_an_export_on_a_full_disk_leaves_nothing_and_is_told(tmp_path: Path) -> None:
    class Full(Exportable):
        def save_pretrained(self, save_directory: str) -> None:
            super().save_pretrained(save_directory)
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"model' cannot be written: .*No space left"):
        write_model(Full(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_an_earlier_one_but_no_link(tmp_path: Path) -> None:
    write_model(Exportable(), tmp_path)
    write_model(Exportable(), tmp_path)
    (tmp_path / EXPORT).rename(tmp_path / "precious")
    (tmp_path / EXPORT).symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"must be a folder to be replaced; it is a symbol"):
        write_model(Exportable(), tmp_path)
    assert (tmp_path / "precious" / "config.json").is_file()


def test_any_other_model_is_left_alone(tmp_path: Path) -> None:
    write_model(nn.Identity(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_written() -> None:
    write_model(Exportable(), None)


def test_the_tokenizer_is_written_beside_the_model(tmp_path: Path) -> None:
    write_model(Exportable(), tmp_path, lambda folder: (folder / "tokenizer.json").touch())
    assert (tmp_path / EXPORT / "tokenizer.json").is_file()


# --- export from Python ---------------------------------------------------------------------------


def trained(folder: Path) -> curricle.Result:
    return curricle.distill(
        mlp(5),
        mlp(16, seed=1),
        curricle.one_shot(total="4 steps"),
        parity(),
        evaluation=[parity(purpose="evaluation").batch(0)],
        settings=curricle.TrainingSettings(device="cpu"),
        seed=3,
        output_dir=folder,
    )


def linear() -> nn.Module:
    with seeding.scoped(0, "test model"):
        return nn.Linear(2, 2)


def language_model(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11,
        "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **sizes)
    auto = {"bert": transformers.AutoModelForMaskedLM, "gpt2": transformers.AutoModelForCausalLM}
    with seeding.scoped(0, "test model"):
        return auto[kind].from_config(config).eval()


def test_a_plain_module_is_exported_with_weights_and_card(tmp_path: Path) -> None:
    result = trained(tmp_path / "run")
    exported = curricle.export(
        result.student, tmp_path / "out", run=tmp_path / "run", teacher="a wide one"
    )
    assert exported.files == ("README.md", "model.safetensors")
    assert (exported.merged, exported.onnx) == (False, None)
    again = mlp(5, seed=7).module
    load_model(again, tmp_path / "out" / "model.safetensors")
    inputs = torch.eye(6)
    assert torch.equal(again(inputs), result.student(inputs))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Student of one\\_shot" in card
    assert "| seeds | run 3 |" in card
    assert "a wide one" in card
    assert "library_name: pytorch" in card
    assert f"| `accuracy` | {result.metrics['accuracy']:.6g} |" in card


def test_the_code_of_a_card_loads_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model("bert")
    curricle.export(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert weights_digest(names["model"]) == weights_digest(model)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_hugging_face_model_is_loaded_by_its_auto_class(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = language_model(kind)
    curricle.export(curricle.tapped(model), tmp_path / "out")
    auto = {"bert": transformers.AutoModelForMaskedLM, "gpt2": transformers.AutoModelForCausalLM}
    again = auto[kind].from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(8).view(1, 8)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= files
    assert ("generation_config.json" in files) == (kind == "gpt2")


def test_a_pipeline_answers_with_the_names_of_classes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = language_model("bert").config
    config.num_labels = 3
    with seeding.scoped(0, "test model"):
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    curricle.export(model, tmp_path / "out", class_names=["no", "maybe", "yes"])
    again = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert again.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert again.label2id == {"no": 0, "maybe": 1, "yes": 2}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| class | name |" in card
    assert "| 1 | maybe |" in card
    # Those of a teacher, by number.
    curricle.export(model, tmp_path / "teacher", class_names=again.id2label)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "teacher").id2label == again.id2label
    # The model is not changed.
    assert set(model.config.id2label.values()) == {"LABEL_0", "LABEL_1", "LABEL_2"}
    named = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    curricle.export(named, tmp_path / "names")
    assert "| 2 | yes |" in (tmp_path / "names" / "README.md").read_text()
    curricle.export(model, tmp_path / "numbers")
    assert "LABEL" not in (tmp_path / "numbers" / "README.md").read_text()


@pytest.mark.parametrize(
    "names",
    [
        {number: f"class {number}" for number in range(12)},
        {str(number): f"class {number}" for number in range(12)},
        {1: "neg", 2: "pos"},
        {0: "same", 1: "same"},
    ],
    ids=["twelve", "texts", "from 1", "equal names"],
)
def test_names_of_a_configuration_stay_as_they_are(
    tmp_path: Path, names: dict[int | str, str]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = language_model("bert").config
    config.num_labels = len(names)
    with seeding.scoped(0, "test model"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    # Set afterwards, since a configuration turns texts into numbers when it is built.
    model.config.id2label = names
    model.config.label2id = {name: int(number) for number, name in names.items()}
    model.save_pretrained(tmp_path / "transformers")
    curricle.export(model, tmp_path / "out")
    texts = [(tmp_path / name / "config.json").read_text() for name in ("transformers", "out")]
    assert texts[0] == texts[1]
    card = (tmp_path / "out" / "README.md").read_text()
    rows = [f"| {number} | {name} |" for number, name in names.items()]
    assert [line for line in card.splitlines() if line in rows] == rows
    if len(names) == 12:
        stated = [f"kind {number}" for number in range(12)]
        curricle.export(model, tmp_path / "stated", class_names=stated)
        again = transformers.AutoConfig.from_pretrained(tmp_path / "stated")
        assert again.id2label == dict(enumerate(stated))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["no"], r"'class_names' must hold one name for each of the 2 classes of Bert.*; got 1"),
        (["no", "no"], r"'class_names' must be different names; got \['no', 'no'\]"),
        ("no", r"'class_names' must be a list of texts; got 'no'"),
        ({0: "no", 2: "so"}, r"'class_names' must number the classes .* got \[0, 2\]"),
        ([0, 1], r"'class_names' must be a list of texts; got \[0, 1\]"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, names: Any, sentence: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(BindError, match=sentence):
        inspect.unwrap(curricle.export)(language_model("bert"), tmp_path / "out", class_names=names)
    assert not list(tmp_path.iterdir())


def test_names_of_a_plain_module_stand_in_its_card(tmp_path: Path) -> None:
    curricle.export(linear(), tmp_path / "out", class_names=["cat", "dog"])
    assert "| 0 | cat |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("file", "spec", "home"),
    [
        ("/x/train.py", None, "train"),
        ("/x/my-script.py", None, "your_module"),
        (None, None, "your_module"),
        ("/x/pkg/__main__.py", SimpleNamespace(name="pkg.__main__"), "pkg.__main__"),
    ],
)
def test_a_class_of_a_script_is_imported_from_its_file(
    monkeypatch: pytest.MonkeyPatch, file: str | None, spec: Any, home: str
) -> None:
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = file, spec
    monkeypatch.setitem(sys.modules, "__main__", main)
    kind = type("Net", (nn.Linear,), {"__module__": "__main__"})
    with seeding.scoped(0, "test model"):
        code = loading_code(kind(2, 2), "out")
    assert f"from {home} import Net" in code
    assert "from __main__" not in code


def test_an_object_with_save_pretrained_is_written_as_the_tokenizer(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, save_directory: str) -> None:
            (Path(save_directory) / "tokenizer.json").touch()

    exported = curricle.export(linear(), tmp_path / "out", tokenizer=Tokenizer())
    assert "tokenizer.json" in exported.files
    with pytest.raises(BindError, match=r"'tokenizer' must have 'save_pretrained'.*got 'object'"):
        curricle.export(linear(), tmp_path / "other", tokenizer=object())


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(CheckpointError, match=r"'to' must be a folder that .* holds 'precious'"):
        curricle.export(linear(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    (empty := tmp_path / "empty").mkdir()
    assert curricle.export(linear(), empty).folder == empty


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    lines = (tmp_path / "run" / "records.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "records.jsonl").write_bytes(b"".join(lines[:-1]))
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="must hold a finished run to be exported"):
        curricle.export(linear(), tmp_path / "out", run=tmp_path / "run")


def test_adapters_are_merged_in_a_copy(tmp_path: Path) -> None:
    class Adapted(nn.Module):
        """Stands for a model of PEFT: what it holds is merged into a plain model."""

        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(2, 2)

        def get_base_model(self) -> nn.Module:
            return self.base

        def merge_and_unload(self) -> nn.Module:
            with torch.no_grad():
                self.base.weight.fill_(7)
            return self.base

    with seeding.scoped(0, "test model"):
        model = Adapted()
    before = model.base.weight.clone()
    exported = curricle.export(model, tmp_path / "out")
    assert exported.merged
    assert torch.equal(model.base.weight, before)
    assert load_file(tmp_path / "out" / "model.safetensors")["weight"].eq(7).all()


@pytest.mark.parametrize("has_merge", [True, False])
def test_adapters_that_cannot_be_merged_are_refused(tmp_path: Path, has_merge: bool) -> None:
    class Prompted(nn.Module):
        def get_base_model(self) -> nn.Module:
            return nn.Identity()

    class Broken(Prompted):
        def merge_and_unload(self) -> nn.Module:
            raise ValueError("quantized weights cannot be merged")

    rule = "PEFT failed with: quantized" if has_merge else "without 'merge_and_unload'"
    with pytest.raises(BindError, match=f"'student' must .*{rule}"):
        curricle.export(Broken() if has_merge else Prompted(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_model_is_named_only_if_it_is_one_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "model").mkdir(parents=True)
    names = {"owner/model": "owner/model", "local/model": None, "/models/teacher": None, "": None}
    for name, expected in names.items():
        model = nn.Identity()
        model.config = SimpleNamespace(name_or_path=name)  # type: ignore[assignment]
        assert base_name(model) == expected
    assert base_name(nn.Identity()) is None
    curricle.export(linear(), tmp_path / "out", base_model="owner/model")
    assert "base_model: owner/model" in (tmp_path / "out" / "README.md").read_text()


def test_a_refused_onnx_file_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", ModuleType("onnx"))
    monkeypatch.setitem(sys.modules, "onnxscript", ModuleType("onnxscript"))
    with pytest.raises(BindError, match=r"'onnxruntime' must be installed .*curricle\[onnx\]"):
        curricle.export(linear(), tmp_path / "out", onnx=torch.zeros(2, 2))

    def refuse(*arguments: object, **options: object) -> None:
        raise BindError("'tolerance' of ONNX must not be exceeded")

    monkeypatch.setattr(export_module, "check_onnx_packages", lambda: None)
    monkeypatch.setattr(export_module, "write_onnx", refuse)
    with pytest.raises(BindError, match="must not be exceeded"):
        curricle.export(linear(), tmp_path / "out", onnx=torch.zeros(2, 2))
    assert not list(tmp_path.iterdir())


def test_onnx_gets_the_first_examples_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[Any] = []

    def write(module: nn.Module, sample: Any, path: Path, **options: Any) -> OnnxCheck:
        samples.append(sample)
        path.touch()
        return OnnxCheck(
            inputs={}, difference=2e-7, tolerance=options["tolerance"], shapes=((4, 2),)
        )

    monkeypatch.setattr(export_module, "check_onnx_packages", lambda: None)
    monkeypatch.setattr(export_module, "write_onnx", write)
    batch = curricle.Batch(inputs={"x": torch.arange(12).view(6, 2)})
    exported = curricle.export(linear(), tmp_path / "out", onnx=batch, tolerance=1e-3)
    assert samples[0]["x"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert "model.onnx" in exported.files
    card = (tmp_path / "out" / "README.md").read_text()
    assert "logits of shape 4x2 differ from torch by at most 2.0e-07 (allowed: 1.0e-03)" in card


@pytest.mark.integration
@pytest.mark.parametrize("output", ["", "shape"])
def test_the_onnx_file_has_the_output_that_a_tapped_model_names(
    tmp_path: Path, output: str
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.color, self.shape = nn.Linear(3, 5), nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"color": self.color(inputs), "shape": self.shape(inputs)}

    with seeding.scoped(0, "test model"):
        model = curricle.tapped(Heads(), output=output)
    exported = curricle.export(model, tmp_path / "out", onnx=torch.ones(4, 3))
    assert exported.onnx is not None
    assert exported.onnx.outputs == ((output,) if output else ("color", "shape"))


def test_a_single_tensor_is_named_by_the_metric_of_the_run(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    opening = next(iter(finished_records(tmp_path / "run")))
    assert isinstance(opening, RunRecord)
    names = [
        output_name([replace(opening, metric=metric)])
        for metric in ("accuracy", "pearson", "teacher_cosine")
    ]
    assert names == ["logits", "values", "embeddings"]
    assert output_name([]) == "logits"
    assert MEANINGS.keys() <= METRICS.keys()


def sentence_encoder(**fields: Any) -> SentenceEncoder:
    with seeding.scoped(0, "encoder"):
        config = BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
        )
        return SentenceEncoder(BertModel(config), **fields)


def test_an_encoder_of_sentences_has_the_layout_of_sentence_transformers(tmp_path: Path) -> None:
    exported = curricle.export(
        sentence_encoder(pooling="cls", width=4), tmp_path / "own", layout="sentence-transformers"
    )
    assert {
        "1_Pooling",
        "2_Dense",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
    } < {*exported.files}
    card = (exported.folder / "README.md").read_text()
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity\n" in card
    assert "model = SentenceTransformer('own')" in card


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        (
            "sentence-transformers",
            r"'student' must be an encoder with a pooling .*; got Exportable",
        ),
        ("onnx", r"'layout' must be 'sentence-transformers' or left out; got 'onnx'"),
    ],
)
def test_a_model_of_another_layout_is_refused(layout: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BindError, match=sentence):
        check_layout(Exportable(), layout)
    assert not list(tmp_path.iterdir())
