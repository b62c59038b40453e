"""Run folders are evaluated on their task, or on it with other values."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, SpecError
from curricle.records import EndRecord, read_records
from curricle.runs.folder import Origin, start
from curricle.runs.run_evaluation import evaluate_run, model_folder
from curricle.runs.spec import RunSpec
from curricle.runs.train import single_run, student_runs, teach, train_student

MakeSpec = Callable[..., RunSpec]


def started(spec: RunSpec, command: str) -> RunSpec:
    start(spec, Origin(command=command, title="tiny", line=f"curricle {command} tiny.yaml"))
    return spec


def final_metrics(folder: Path) -> dict[str, float]:
    *_, end = read_records(folder / "records.jsonl")
    assert isinstance(end, EndRecord)
    return end.metrics


def test_metrics_are_those_at_the_end_of_the_runs(make_spec: MakeSpec) -> None:
    spec = started(make_spec(), "distill")
    teach(spec)
    train_student(spec, single_run(spec))
    evaluation = evaluate_run(spec.folder, repetitions=1)
    assert evaluation.student.metrics == final_metrics(spec.folder)
    assert evaluation.teacher is not None
    assert evaluation.teacher.metrics == final_metrics(spec.folder / "teacher")
    assert evaluation.student.name == "one_shot seed 0"
    assert evaluation.student.cost.parameters == 8 * 8 + 8 + 8 * 2 + 2
    assert evaluation.threads == 1
    larger = evaluate_run(
        spec.folder, changes=["evaluation_examples=96"], metrics=["f1"], repetitions=1
    )
    assert (evaluation.num_examples, larger.num_examples) == (64, 96)
    assert set(larger.student.metrics) == {"accuracy", "nll", "f1"}
    with pytest.raises(SpecError, match="'--on' must keep the 8 inputs and 2 classes"):
        evaluate_run(spec.folder, changes=["num_inputs=9"])
    with pytest.raises(SpecError, match=r"^--on: .*'inputs' is not a field"):
        evaluate_run(spec.folder, changes=["inputs=9"])
    with pytest.raises(SpecError, match="'metric' 'f2' is not built in"):
        evaluate_run(spec.folder, metrics=["f2"])
    with pytest.raises(CheckpointError, match=r"in 'model'; got none, since the model is a MLP"):
        model_folder(spec.folder)
    shutil.rmtree(spec.folder / "teacher")
    alone = evaluate_run(spec.folder, repetitions=1)
    assert alone.teacher is None
    assert alone.student.metrics == evaluation.student.metrics
    assert alone.notes[0].startswith("the teacher is left out: ")


def test_metrics_are_added_to_those_of_the_run(make_spec: MakeSpec) -> None:
    spec = started(make_spec(), "distill")
    teach(spec)
    train_student(spec, single_run(spec))
    evaluation = evaluate_run(spec.folder, metrics=["kl"], repetitions=1)
    assert set(evaluation.student.metrics) == {"accuracy", "nll", "kl"}
    assert evaluation.teacher is not None
    assert set(evaluation.teacher.metrics) == {"accuracy", "nll"}
    with pytest.raises(SpecError, match="'pearson' must read the labels that 'accuracy' reads"):
        evaluate_run(spec.folder, metrics=["pearson"])


def test_a_student_of_a_comparison_is_selected(make_spec: MakeSpec) -> None:
    spec = started(make_spec(), "compare")
    teach(spec)
    for run in student_runs(spec):
        train_student(spec, run)
    evaluation = evaluate_run(spec.folder, strategy="progressive", seed=1, repetitions=1)
    folder = spec.folder / "students" / "progressive" / "seed-1"
    assert evaluation.student.metrics == final_metrics(folder)


def test_a_taught_teacher_is_evaluated_alone(make_spec: MakeSpec) -> None:
    spec = started(make_spec("goal.metric=kl"), "teach")
    teach(spec)
    evaluation = evaluate_run(spec.folder, repetitions=1)
    assert (evaluation.student.name, evaluation.teacher, evaluation.notes) == ("teacher", None, ())
    assert set(evaluation.student.metrics) == {"accuracy", "nll"}


def test_a_folder_without_a_run_is_refused_and_a_model_folder_is_itself(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"evaluated by curricle\.evaluate\(student, "):
        evaluate_run(tmp_path)
    with pytest.raises(CheckpointError, match="must be a run folder of the command line"):
        model_folder(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_folder(tmp_path) == (tmp_path / "model", tmp_path.name)
    assert model_folder(tmp_path / "model") == (tmp_path / "model", "model")
