"""What a run of a spec needs before it is bound."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curricle.data.synthetic.parity import ParityStream
from curricle.errors import BindError, SpecError
from curricle.models.huggingface import HuggingFaceSpec, PretrainedSpec
from curricle.runs.assemble import build_model, data_seed, is_ready, open_task, open_teacher
from curricle.runs.run_evaluation import check_classes
from curricle.runs.spec import RunSpec
from curricle.runs.target_folder import capture_targets_of
from curricle.runs.train import student_runs, teach
from curricle.task_data import TaskData
from curricle.tasks import TextTask
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.manifest import DataFacts, read_manifest, write_manifest
from curricle.teachers.stored import StoredTeacher

MakeSpec = Callable[..., RunSpec]


def test_students_read_the_data_of_their_seed_unless_there_is_one_for_all(
    make_spec: MakeSpec,
) -> None:
    assert [data_seed(make_spec(), seed) for seed in (3, 4)] == [3, 4]
    assert [data_seed(make_spec("data_seed=7"), seed) for seed in (3, 4)] == [7, 7]


def test_the_teacher_is_asked_itself_or_by_its_stored_targets(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec()
    assert not is_ready(spec)
    teach(spec)
    assert is_ready(spec)
    assert isinstance(open_teacher(spec, open_task(spec, 0, "student")), LiveTeacher)
    told = make_spec(f"targets.folder={tmp_path / 'targets'}")
    capture_targets_of(told)
    found = open_teacher(told, open_task(told, 0, "student"))
    assert isinstance(found, StoredTeacher)
    assert found.trajectory is not None
    assert found.trajectory.steps == spec.trajectory_steps()


def test_targets_of_another_tokenizer_are_refused(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(f"targets.folder={tmp_path / 'targets'}", "data_seed=0")
    teach(spec)
    capture_targets_of(spec)
    data = open_task(spec, 0, "student")
    manifest = read_manifest(tmp_path / "targets")
    write_manifest(tmp_path / "targets", replace(manifest, data=DataFacts(tokenizer="a" * 64)))
    # A task without a tokenizer has nothing to compare.
    open_teacher(spec, data)
    monkeypatch.setattr(type(spec.task), "tokenizer_digest", lambda *_: "b" * 64)
    with pytest.raises(BindError, match="must hold targets of this tokenizer"):
        open_teacher(spec, data)


def test_only_texts_have_a_tokenizer(make_spec: MakeSpec, tmp_path: Path) -> None:
    assert not make_spec().task.tokenizer_digest(tmp_path)
    assert len(student_runs(make_spec())) == 4
    text = TextTask(vocabulary_size=300)
    assert text.tokenizer_digest(tmp_path) == text.tokenizer_digest(tmp_path) != ""
    assert text.tokenizer_digest(tmp_path) != TextTask(vocabulary_size=301).tokenizer_digest(
        tmp_path
    )


def test_classes_have_the_names_and_numbers_of_the_data(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    new = HuggingFaceSpec(model_type="bert", head="sequence_classification", config=sizes)
    data = TaskData(
        stream=ParityStream(num_inputs=4, degree=2, batch_size=2, seed=0),
        evaluation=(),
        num_inputs=20,
        num_classes=3,
        num_positions=4,
        name="classification",
        class_names=("contradiction", "entailment", "neutral"),
    )
    module: Any = build_model(new, data, 0, "student").module
    assert module.config.id2label == {0: "contradiction", 1: "entailment", 2: "neutral"}
    assert module.config.label2id["neutral"] == 2
    module.save_pretrained(tmp_path / "same")
    loaded = PretrainedSpec(path=str(tmp_path / "same"), head="sequence_classification")
    build_model(loaded, data, 0, "teacher")
    module.config.id2label = {0: "entailment", 1: "neutral", 2: "contradiction"}
    module.save_pretrained(tmp_path / "other")
    loaded = PretrainedSpec(path=str(tmp_path / "other"), head="sequence_classification")
    with pytest.raises(BindError, match=r"got 2 for 'contradiction', which is 0 in the data"):
        build_model(loaded, data, 0, "teacher")
    with pytest.raises(SpecError, match="'--on' must keep the classes of the run, contradiction, "):
        check_classes(data, replace(data, class_names=("a", "b", "c")))
