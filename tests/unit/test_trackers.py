"""Runs reported to trackers are the same runs, and the tracker gets every number of the records."""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import curricle
from curricle import trackers
from curricle.curriculum.strategies import extraction, one_shot
from curricle.errors import BindError, SpecError
from curricle.records import EvaluationRecord, Record, RunRecord, StepRecord, read_records
from curricle.runs.spec import RunSpec
from curricle.runs.train import (
    rehearse,
    single_run,
    student_runs,
    teach,
    train_class,
    train_student,
)
from curricle.trackers import tracker_names, tracking
from curricle.training.distill import distill
from curricle.training.setup.settings import TrainingSettings
from tests.parts import mlp, parity

MakeSpec = Callable[..., RunSpec]
STEPS = 6
NEEDED = "'report_to' {0!r}: pip install 'curricle\\[{0}\\]'"


def run(folder: Path | None, **options: Any) -> curricle.Result:
    return distill(
        mlp(5, 4),
        mlp(16, 12, seed=1),
        extraction(total=f"{STEPS} steps"),
        parity(),
        evaluation=[parity(purpose="evaluation").batch(0)],
        settings=TrainingSettings(device="cpu", log_every=2, eval_every=3),
        output_dir=folder,
        **options,
    )


class Recorder(ModuleType):
    """Stands for a tracker's package: every call of its functions and objects is noted."""

    def __init__(self, name: str, broken: str = "") -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.broken = broken
        self.entities = SimpleNamespace(Metric=lambda *fields: fields)

    def note(self, name: str, answer: object) -> Callable[..., object]:
        def call(*arguments: Any, **keywords: Any) -> object:
            if name == self.broken:
                raise ConnectionError("no server")
            self.calls.append((name, arguments, keywords))
            return answer

        return call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        answers: Mapping[str, object] = {
            "init": self,
            "MlflowClient": self,
            "get_experiment_by_name": None,
            "create_experiment": "7",
            "create_run": SimpleNamespace(info=SimpleNamespace(run_id="r1")),
        }
        return self.note(name, answers.get(name))

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, keywords) for call, arguments, keywords in self.calls if call == name]


def recorder(monkeypatch: pytest.MonkeyPatch, name: str, broken: str = "") -> Recorder:
    module = Recorder(name, broken)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def logged(records: list[Record]) -> dict[tuple[str, int], float]:
    """Return losses and metrics of records by name and step."""
    numbers: dict[tuple[str, int], float] = {}
    for record in records:
        if isinstance(record, StepRecord):
            numbers["train/loss", record.usage.steps] = record.loss
        elif isinstance(record, EvaluationRecord):
            numbers |= {
                (f"eval/{name}", record.usage.steps): number
                for name, number in record.metrics.items()
            }
    return numbers


def lines(folder: Path) -> list[Record]:
    """Return the records of a run without its seconds, which no two runs share."""
    from dataclasses import replace

    return [
        record
        if isinstance(record, RunRecord)
        else replace(record, usage=replace(record.usage, seconds=0.0))
        for record in read_records(folder / "records.jsonl")
    ]


# --- each tracker ---------------------------------------------------------------------------------


def test_tensorboard_holds_every_loss_and_metric_of_the_records(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records: list[Record] = []
    run(tmp_path / "run", report_to="tensorboard", observers=[records.append])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    expected = logged(records)
    assert len(expected) == 3 + 2 * 2
    for name, number in expected.items():
        assert scalars[name] == pytest.approx(number, rel=1e-6)
    assert scalars["train/examples", STEPS] == STEPS * 8
    assert {step for tag, step in scalars if tag == "train/stage"} == {0, 2}
    assert "run/text_summary" in events.Tags()["tensors"]


def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path / "run", report_to=["wandb"])
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    assert b"train/loss" in file.read_bytes()


def test_mlflow_keeps_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    records: list[Record] = []
    run(None, report_to=["mlflow"], observers=[records.append])
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("curricle")
    (entry,) = client.search_runs([experiment.experiment_id])
    assert entry.info.status == "FINISHED"
    assert entry.data.params["method"] == "extraction"
    history = client.get_metric_history(entry.info.run_id, "train/loss")
    expected = {step: loss for (name, step), loss in logged(records).items() if "loss" in name}
    assert {metric.step: metric.value for metric in history} == expected


def test_trackio_keeps_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run(None, report_to=["trackio"])
    assert any(path.suffix == ".db" for path in (tmp_path / "trackio").rglob("*"))


def test_wandb_and_trackio_get_the_numbers_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[Record] = []
    modules = {name: recorder(monkeypatch, name) for name in ("wandb", "trackio")}
    run(tmp_path / "run", report_to=["wandb", "trackio"], observers=[records.append])
    for name, module in modules.items():
        ((_, opened),) = module.named("init")
        assert opened["project"] == "curricle"
        assert opened["name"] == "extraction seed 0"
        assert opened["config"]["method"] == "extraction"
        numbers = {
            (key, keywords["step"]): number
            for (entries,), keywords in module.named("log")
            for key, number in entries.items()
        }
        assert logged(records).items() <= numbers.items(), name
        assert len(module.named("finish")) == 1
    ((_, opened),) = modules["wandb"].named("init")
    assert opened["dir"] == str(tmp_path / "run")
    assert modules["wandb"].named("finish") == [((), {"exit_code": 0})]


def test_mlflow_gets_allowed_names_and_the_end_of_a_failed_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = recorder(monkeypatch, "mlflow")

    def fail(record: Record) -> None:
        if isinstance(record, EvaluationRecord):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(None, report_to="mlflow", observers=[fail])
    assert module.named("create_run") == [(("7",), {"run_name": "extraction seed 0"})]
    names = [
        metric[0] for _, keywords in module.named("log_batch") for metric in keywords["metrics"]
    ]
    assert any(name.startswith("train/terms/") for name in names)
    assert not any(set(name) & set("<>#'") for name in names)
    assert module.named("set_terminated") == [(("r1", "FAILED"), {})]


# --- the run is the same --------------------------------------------------------------------------


def test_a_reported_run_is_bit_equal_to_a_silent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "trackio", "mlflow"):
        recorder(monkeypatch, name)
    silent = run(tmp_path / "silent")
    reported = run(tmp_path / "reported", report_to=("wandb", "trackio", "mlflow"))
    assert lines(tmp_path / "silent") == lines(tmp_path / "reported")
    assert silent.metrics == reported.metrics
    weights = reported.student.state_dict()
    assert all(torch.equal(item, weights[key]) for key, item in silent.student.state_dict().items())


def test_a_resumed_run_that_is_finished_opens_no_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "run")
    module = recorder(monkeypatch, "wandb")
    run(tmp_path / "run", report_to="wandb", resume=True)
    assert module.calls == []


@pytest.mark.parametrize(("broken", "logs"), [("init", 0), ("log", 0), ("finish", 10)])
def test_a_tracker_that_fails_ends_its_reports_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str, logs: int
) -> None:
    module = recorder(monkeypatch, "wandb", broken)
    with caplog.at_level(logging.WARNING):
        result = run(None, report_to="wandb")
    assert result.usage.steps == STEPS
    reports = [message for message in caplog.messages if "teacher" not in message]
    assert reports == ["curricle: reports to 'wandb' end here, the run goes on: no server"]
    assert (len(module.named("log")) > 0) == (logs > 0)


# --- refusals and specs ---------------------------------------------------------------------------


def test_names_are_those_of_the_trackers() -> None:
    assert tracker_names(None) == tracker_names("none") == tracker_names([]) == ()
    assert tracker_names("wandb") == ("wandb",)
    assert tracker_names(["mlflow", "tensorboard", "mlflow"]) == ("mlflow", "tensorboard")
    with pytest.raises(SpecError, match="'report_to' must name trackers; got 'tensorbord'; did"):
        tracker_names("tensorbord")
    with pytest.raises(SpecError, match="'report_to' must be a list of names; got 3"):
        tracker_names(3)


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_refused_with_the_name_of_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec, name: str
) -> None:
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[name][0], None)  # type: ignore[index]
    with pytest.raises(BindError, match=NEEDED.format(name)):
        run(tmp_path / "run", report_to=name)
    assert not (tmp_path / "run").exists()
    spec = make_spec(f"report_to=[{name}]")
    with pytest.raises(BindError, match=NEEDED.format(name)):
        rehearse(spec)


def test_a_run_that_opens_no_stage_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = recorder(monkeypatch, "wandb")
    with tracking(("wandb",), None) as observers:
        assert len(observers) == 1
    assert module.calls == []


def test_runs_of_a_spec_are_reported_by_their_names(
    monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec
) -> None:
    module = recorder(monkeypatch, "wandb")
    spec = make_spec("report_to=wandb", "share_teacher=true", "data_seed=0")
    assert spec.report_to == ("wandb",)
    teach(spec)
    train_student(spec, single_run(spec))
    train_class(spec, student_runs(spec), lambda _run, _record: None)
    names = [keywords["name"] for _, keywords in module.named("init")]
    shared = sorted(f"{strategy} seed {seed}" for strategy in ("one_shot", "progressive")
                    for seed in (0, 1))  # fmt: skip
    assert names[:2] == ["teacher", "one_shot seed 0"]
    assert sorted(names[2:]) == shared
    assert len(module.named("finish")) == len(names)


def test_strategies_of_one_stage_report_that_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    module = recorder(monkeypatch, "wandb")
    distill(
        mlp(5, 4), mlp(16, 12, seed=1), one_shot(total="2 steps"), parity(),
        evaluation=[parity(purpose="evaluation").batch(0)],
        settings=TrainingSettings(device="cpu"), report_to="wandb",
    )  # fmt: skip
    (first, *_), _ = module.named("log")[0]
    assert first == {"train/stage": 1.0}


@pytest.mark.parametrize("shares", [False, True])
def test_a_comparison_reports_each_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, shares: bool
) -> None:
    module = recorder(monkeypatch, "wandb")
    comparison = curricle.compare(
        lambda _: mlp(5, 4).module,
        mlp(16, 12, seed=1).module,
        parity(),
        evaluation=[parity(purpose="evaluation").batch(0)],
        budget="6 steps",
        strategies=["one_shot", "from_labels"],
        seeds=(0, 1),
        settings=TrainingSettings(device="cpu", log_every=2, eval_every=3),
        share_teacher=shares,
        output_dir=tmp_path,
        report_to="wandb",
    )
    opened = [keywords for _, keywords in module.named("init")]
    names = {f"{name} seed {seed}" for name, seed in comparison.students}
    assert {keywords["name"] for keywords in opened} == names
    assert len(opened) == 4
    assert all(Path(keywords["dir"]).is_relative_to(tmp_path) for keywords in opened)
    assert module.named("finish") == [((), {"exit_code": 0})] * 4


def test_a_comparison_without_a_folder_reports_to_the_places_of_the_tracker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = recorder(monkeypatch, "wandb")
    arguments: dict[str, Any] = {
        "evaluation": [parity(purpose="evaluation").batch(0)],
        "budget": "4 steps",
        "strategies": ["from_labels"],
        "seeds": (0,),
        "settings": TrainingSettings(device="cpu", log_every=2),
    }
    curricle.compare(lambda _: mlp(5, 4).module, None, parity(), report_to="wandb", **arguments)
    assert [keywords["dir"] for _, keywords in module.named("init")] == [None]
    with pytest.raises(SpecError, match="'report_to' must name trackers; got 'wandbb'"):
        curricle.compare(
            lambda _: mlp(5, 4).module, None, parity(), report_to="wandbb", **arguments
        )
