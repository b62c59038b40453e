"""Finished models of run folders are exported with what their specs and records hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from curricle.errors import CheckpointError, SpecError
from curricle.models.huggingface import HuggingFaceSpec, PretrainedSpec
from curricle.runs import export as export_module
from curricle.runs import finished
from curricle.runs.finished import describe_model, export_run
from curricle.runs.folder import Origin, start
from curricle.runs.onnx_files import OnnxCheck
from curricle.runs.spec import RunSpec
from curricle.runs.train import single_run, student_runs, teach, train_student

MakeSpec = Callable[..., RunSpec]


def begun(spec: RunSpec, command: str) -> RunSpec:
    start(spec, Origin(command=command, title="tiny", line=f"curricle {command} tiny.yaml"))
    return spec


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_the_student_of_distill_is_exported(tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = begun(make_spec("seed=4"), "distill")
    teach(spec)
    train_student(spec, single_run(spec))
    exported = export_run(spec.folder, tmp_path / "out")
    assert exported.files == ("README.md", "model.safetensors")
    before = load_file(spec.folder / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    card = card_of(tmp_path / "out")
    assert "# tiny: one\\_shot seed 4" in card
    assert (
        "| model | MLP of widths 8 | MLP of widths 16, trained from labels for 20 steps |" in card
    )
    assert "| seeds | run 4, data 4, teacher 4 |" in card
    assert "| optimizer | kind sgd, learning\\_rate 0.3," in card
    assert "model = MLP(8, (8,), 2)" in card
    assert "curricle distill tiny.yaml" in card


def test_a_student_of_a_comparison_is_selected(tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = begun(make_spec(), "compare")
    teach(spec)
    for run in student_runs(spec):
        train_student(spec, run)
    with pytest.raises(
        SpecError, match=r"'--strategy' must name one .*: 'one_shot', 'progressive'"
    ):
        export_run(spec.folder, tmp_path / "out")
    with pytest.raises(SpecError, match="got 'progressives'; did you mean 'progressive'"):
        export_run(spec.folder, tmp_path / "out", strategy="progressives")
    with pytest.raises(SpecError, match=r"'--seed' must be one of \[0, 1\]; got 2"):
        export_run(spec.folder, tmp_path / "out", strategy="progressive", seed=2)
    export_run(spec.folder, tmp_path / "first", strategy="progressive")
    export_run(spec.folder, tmp_path / "second", strategy="progressive", seed=1)
    for name, seed in (("first", 0), ("second", 1)):
        expected = load_file(
            spec.folder / "students" / "progressive" / f"seed-{seed}" / "model.safetensors"
        )
        weights = load_file(tmp_path / name / "model.safetensors")
        assert torch.equal(weights["head.weight"], expected["head.weight"])
        assert f"| seeds | run {seed}, data {seed}, teacher 0 |" in card_of(tmp_path / name)


def test_a_taught_teacher_is_exported(tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = begun(make_spec(), "teach")
    with pytest.raises(CheckpointError, match=r"records\.jsonl' must be a records file"):
        export_run(spec.folder, tmp_path / "out")
    teach(spec)
    export_run(spec.folder, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["head.weight"].shape == (2, 16)
    assert "trained from labels with curricle" in card_of(tmp_path / "out")


def test_a_run_from_python_is_referred_to_python(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"exported by curricle\.export\(student, "):
        export_run(tmp_path, tmp_path / "out")


def test_onnx_is_compared_on_held_out_examples(
    tmp_path: Path, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = begun(make_spec(), "teach")
    teach(spec)
    samples: list[Any] = []

    def write(_module: object, sample: Any, path: Path, **options: Any) -> OnnxCheck:
        samples.append(sample)
        path.touch()
        return OnnxCheck(
            inputs={}, difference=0.0, tolerance=options["tolerance"], shapes=((4, 2),)
        )

    for module in (finished, export_module):
        monkeypatch.setattr(module, "check_onnx_packages", lambda: None)
    monkeypatch.setattr(export_module, "write_onnx", write)
    exported = export_run(spec.folder, tmp_path / "out", onnx=True, tolerance=1e-3)
    assert samples[0].shape == (4, 8)
    assert exported.onnx is not None
    assert exported.onnx.tolerance == 1e-3


def test_a_language_model_is_exported_with_its_tokenizer(
    tmp_path: Path, make_spec: MakeSpec
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "corpus.txt").write_text("the cat sat on the mat and the dog ran\n\n" * 200)
    tiny = (
        "{kind: hf, model_type: bert, config: {hidden_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 8}}"
    )
    spec = begun(
        make_spec(
            f"task={{kind: text, corpus: {tmp_path / 'corpus.txt'}, vocabulary_size: 270, "
            f"window: 8, batch_size: 4, evaluation_batches: 1}}",
            f"teacher.model={tiny}",
            "teacher.total=2 steps",
            f"student={tiny}",
            "budget=2 steps",
        ),
        "distill",
    )
    teach(spec)
    train_student(spec, single_run(spec))
    export_run(spec.folder, tmp_path / "out")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size >= len(tokenizer)
    _, head, text = card_of(tmp_path / "out").split("---\n", 2)
    facts = yaml.safe_load(head)
    assert (facts["library_name"], facts["pipeline_tag"]) == ("transformers", "fill-mask")
    assert "bert with hidden\\_size 8" in text


def test_models_are_described_without_places_of_this_machine() -> None:
    assert describe_model(PretrainedSpec(path="/home/me/models/large")) == "pretrained large"
    bert = HuggingFaceSpec(model_type="bert")
    assert describe_model(bert) == "bert with its default configuration"


def test_data_sets_of_the_hub_are_named(make_spec: MakeSpec) -> None:
    assert finished._datasets(make_spec()) == ()
    spec = make_spec(
        "task={kind: text, corpus: ['datasets:owner/set:small', 'datasets:other', sample]}",
        "teacher.model={kind: hf, model_type: bert}",
        "student={kind: hf, model_type: bert}",
    )
    assert finished._datasets(spec) == ("owner/set", "other")
