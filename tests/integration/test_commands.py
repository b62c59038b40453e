"""The commands from end to end: what they train, write, reuse and make again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM

from curricle import seeding
from curricle.records import EndRecord, RunRecord, read_records
from curricle.training.setup.observers import ProgressBar
from tests.runs import contents

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]
CopyRun = Callable[..., Path]
REPORT = ("summary.json", "report.html", "learning-curves.png", "learning-curves.svg")
# FLOPs of one step at 8 inputs, 16 examples, 8 hidden units, 2 classes, and a teacher of 16 units:
# forward, and gradients of all weights and of the hidden state.
LABELS_STEP = 2 * 16 * (8 * 8 + 8 * 2) + 2 * 16 * (8 * 8 + 8 * 2 + 8 * 2)
LOGITS_STEP = LABELS_STEP + 2 * 16 * (8 * 16 + 16 * 2)
# Student layer forward and backward, teacher layer, projection from 16 to 8.
LAYER_STEP = 2 * 2 * 16 * 8 * 8 + 2 * 16 * 8 * 16 + 2 * 16 * 16 * 8


def planned_steps(folder: Path) -> list[int]:
    opening = next(iter(read_records(folder / "records.jsonl")))
    assert isinstance(opening, RunRecord)
    return [stage.steps for stage in opening.stages]


def end(folder: Path) -> EndRecord:
    last = list(read_records(folder / "records.jsonl"))[-1]
    assert isinstance(last, EndRecord)
    return last


def interrupt_student(monkeypatch: pytest.MonkeyPatch, *, number: int, at: int) -> None:
    """Interrupt the student with that number, counted from 0, after some steps, as a key would."""
    begun: list[object] = []

    def told(self: object, record: Any) -> None:
        # The first that begins is the teacher.
        begun.extend([self] if record.kind == "run" else [])
        if len(begun) == number + 2 and record.kind == "step" and record.usage.steps >= at:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "__call__", told)


def test_plan_prints_the_curriculum_and_every_strategy_and_writes_nothing(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    code, shown, _ = command("plan", parity)
    assert code == 0
    assert shown.count("whole run") == 3
    assert "layer 1" in shown
    assert "one_shot" in shown
    assert "checkpoint 20" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["parity.yaml"]


def test_plan_says_that_the_checkpoint_in_the_transition_is_not_known_yet(
    command: Command, parity: Path
) -> None:
    code, shown, _ = command(
        "plan", parity, "--set", "strategies.progressive.curriculum.select=transition"
    )
    assert code == 0
    assert shown.count("provisional") == 1


@pytest.mark.parametrize(
    ("sets", "plans"), [(["curriculum=null"], 2), (["strategies={}", "seeds=null"], 1)]
)
def test_plan_prints_what_a_spec_has(
    command: Command, parity: Path, sets: list[str], plans: int
) -> None:
    code, shown, _ = command("plan", parity, *(part for one in sets for part in ("--set", one)))
    assert code == 0
    assert shown.count("whole run") == plans


def test_teach_leaves_a_teacher_with_its_checkpoints(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    code, shown, _ = command("teach", parity)
    assert code == 0
    assert "teacher in run/teacher" in shown
    assert end(tmp_path / "run" / "teacher").usage.steps == 20
    assert len(list((tmp_path / "run/teacher/trajectory").glob("*.safetensors"))) == 2


def test_distill_uses_the_teacher_that_teach_left(
    command: Command, parity: Path, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("teach")
    before = contents(tmp_path / "run" / "teacher")
    code, shown, _ = command("distill", parity)
    assert code == 0
    assert "extraction: accuracy" in shown
    assert contents(tmp_path / "run" / "teacher") == before
    assert end(tmp_path / "run").usage.steps == 12


def test_distill_gives_the_same_with_a_teacher_of_its_own(
    command: Command, parity: Path, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("teach")
    command("distill", parity)
    copy_run("distill", "other")
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_compare_trains_every_strategy_on_every_seed_and_reports(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    code, shown, _ = command("compare", parity)
    assert code == 0
    assert "report: run/report.html" in shown
    runs = sorted(path.parent for path in (tmp_path / "run/students").rglob("records.jsonl"))
    assert len(runs) == 4
    assert {end(run).usage.steps for run in runs} == {12}
    assert all((tmp_path / "run" / name).stat().st_size for name in REPORT)


def test_the_learning_curves_of_a_comparison_are_drawn(copy_run: CopyRun) -> None:
    folder = copy_run("compare")
    png, svg = ((folder / name).read_bytes() for name in REPORT[2:])
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert b"one_shot" in svg


def test_several_processes_give_the_same_students_as_one(
    command: Command, parity: Path, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    code, _, _ = command("compare", parity, "--jobs", "2", "--set", "output_dir=other")
    assert code == 0
    one, two = (
        contents(tmp_path / name / "students", "*.safetensors") for name in ("run", "other")
    )
    # Each of four students at its end, and at its last two checkpoints with its optimizer's state.
    assert len(one) == 4 * (1 + 2 * 2)
    assert one == two


def test_an_interrupted_comparison_goes_on_and_ends_as_an_uninterrupted_one(
    command: Command,
    parity: Path,
    copy_run: CopyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_run("compare", "whole")
    with monkeypatch.context() as patch:
        interrupt_student(patch, number=1, at=9)
        code, _, told = command("compare", parity)
    assert code == 130
    assert told == "curricle: stopped; 'curricle resume run' resumes from the newest checkpoint\n"
    students = tmp_path / "run" / "students"
    finished = contents(students / "one_shot" / "seed-0")
    assert not (students / "one_shot" / "seed-1").exists()

    assert command("resume", "run")[0] == 0
    assert contents(students / "one_shot" / "seed-0") == finished
    weights = contents(students, "model.safetensors")
    assert weights == contents(tmp_path / "whole" / "students", "model.safetensors")
    assert all((tmp_path / "run" / name).is_file() for name in REPORT)


def test_an_interrupted_student_goes_on_from_its_checkpoint(
    command: Command,
    parity: Path,
    copy_run: CopyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_run("distill", "whole")
    with monkeypatch.context() as patch:
        interrupt_student(patch, number=0, at=9)
        assert command("distill", parity)[0] == 130
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(kept) == ["step-000000004", "step-000000008"]
    assert command("resume", "run")[0] == 0
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert end(tmp_path / "run").metrics == end(tmp_path / "whole").metrics


def test_an_interrupted_teacher_goes_on(
    command: Command,
    parity: Path,
    copy_run: CopyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_run("teach", "whole")
    with monkeypatch.context() as patch:
        interrupt_student(patch, number=-1, at=9)
        assert command("teach", parity)[0] == 130
    assert command("resume", "run")[0] == 0
    pattern = "*.safetensors"
    one, two = (contents(tmp_path / name / "teacher", pattern) for name in ("run", "whole"))
    assert {name: one[name] for name in one if "checkpoints" not in name} == {
        name: two[name] for name in two if "checkpoints" not in name
    }


def test_a_finished_run_is_not_changed_by_resuming_it(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("distill")
    before = contents(tmp_path / "run")
    code, shown, _ = command("resume", "run")
    assert code == 0
    # One line with the result, and no bar of what is not run again.
    assert [line.split(":")[0] for line in shown.split("\n") if line.strip()] == ["extraction"]
    assert contents(tmp_path / "run") == before


def test_a_stored_spec_can_be_run_again_as_it_is(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    command("distill", parity, "--set", "seed=3")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert command("distill", "moved/spec.yaml")[0] == 0
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "moved" / name).read_bytes()
    stored = [
        yaml.safe_load((tmp_path / one / "spec.yaml").read_text()) for one in ("run", "moved")
    ]
    assert stored[0] == stored[1]


def test_flops_buy_exactly_the_steps_they_pay_for(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    strategies = (
        "strategies={labels: {curriculum: {kind: from_labels}}, "
        "logits: {curriculum: {kind: one_shot}}, "
        "layer: {curriculum: {kind: extraction, durations: [4 steps], "
        "pairs: [{student: 1, teacher: 1}]}}}"
    )
    limit = 10 * LOGITS_STEP
    arguments = ("--set", strategies, "--set", f"budget={limit} flops", "--set", "seeds=[0]")
    assert command("compare", parity, *arguments)[0] == 0
    students = tmp_path / "run" / "students"
    assert planned_steps(students / "logits" / "seed-0") == [10]
    assert planned_steps(students / "labels" / "seed-0") == [limit // LABELS_STEP]
    rest = (limit - 4 * LAYER_STEP) // LOGITS_STEP
    assert planned_steps(students / "layer" / "seed-0") == [4, rest]
    usage = end(students / "layer" / "seed-0").usage
    assert usage.total_flops == 4 * LAYER_STEP + rest * LOGITS_STEP


def test_seconds_buy_steps(command: Command, parity: Path, tmp_path: Path) -> None:
    arguments = ("--set", "budget=0.2 seconds", "--set", "teacher.model.widths=[400]")
    assert command("distill", parity, *arguments)[0] == 0
    assert sum(planned_steps(tmp_path / "run")) == end(tmp_path / "run").usage.steps > 2


def test_a_student_is_exported_for_plain_transformers(
    command: Command, text: Path, tmp_path: Path
) -> None:
    code, _, told = command("distill", text)
    assert (code, told) == (0, "")
    with seeding.scoped(0, "loading"):
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    assert model.config.hidden_size == 8
    window = torch.arange(16).unsqueeze(0)
    with torch.no_grad():
        assert model(input_ids=window).logits.shape == (1, 16, model.config.vocab_size)


def test_an_exported_model_teaches_with_its_checkpoints(
    command: Command, text: Path, tmp_path: Path
) -> None:
    command("teach", text)
    for step in (100, 200):
        shutil.copytree(tmp_path / "run/teacher/model", tmp_path / f"checkpoint-{step}")
    teacher = (
        "teacher={model: {kind: pretrained, path: checkpoint-200}, "
        "folders: [checkpoint-100, checkpoint-200]}"
    )
    arguments = ("--set", teacher, "--set", "output_dir=other")
    curriculum = "curriculum={kind: progressive}"
    assert command("distill", text, *arguments, "--set", curriculum)[0] == 0
    opening = next(iter(read_records(tmp_path / "other" / "records.jsonl")))
    assert isinstance(opening, RunRecord)
    assert [stage.teacher for stage in opening.stages] == ["step 100", "step 200"]


SMALL_PARITY = (
    "task={num_inputs: 8, degree: 2, batch_size: 16, evaluation_examples: 64, kind: parity}",
    "teacher={model: {kind: mlp, widths: [16]}, total: 20 steps, checkpoints: 2}",
    "student.widths=[8]",
    "strategies.progressive.curriculum={kind: progressive, refresh: 6}",
    "strategies.extraction.curriculum.durations=[4 steps]",
    "budget=12 steps",
    "seeds=[0]",
    "engine.eval_every=6",
    "engine.log_every=3",
)
SMALL_TEXT = (
    "task={kind: text, corpus: corpus, vocabulary_size: 300, window: 16, batch_size: 2}",
    "task.evaluation_batches=1",
    "cache_dir=cache",
    "teacher.total=4 steps",
    "teacher.checkpoints=2",
    *(
        f"{model}.config.{field}"
        for model, width in (("teacher.model", 16), ("student", 8))
        for field in (
            f"hidden_size={width}",
            f"intermediate_size={2 * width}",
            "num_hidden_layers=2",
            "num_attention_heads=2",
        )
    ),
    "budget=4 steps",
    "engine.eval_every=2",
    "engine.log_every=2",
)


@pytest.mark.parametrize(("name", "small"), [("parity", SMALL_PARITY), ("text", SMALL_TEXT)])
def test_a_demo_runs_and_reports_without_a_file_of_the_users(
    command: Command, text: Path, tmp_path: Path, name: str, small: tuple[str, ...]
) -> None:
    sets = [part for one in small for part in ("--set", one)]
    code, shown, told = command("demo", name, "--jobs", "1", *sets)
    assert (code, told) == (0, "")
    folder = tmp_path / "runs" / ("demo" if name == "parity" else "demo-text")
    assert all((folder / one).stat().st_size for one in REPORT)
    summary = json.loads((folder / "summary.json").read_text())
    usual = ["extraction", "from_labels", "one_shot", "progressive"]
    assert list(summary["methods"]) == (["auto", *usual] if name == "parity" else usual)
    assert f"<title>curricle demo: {name}</title>" in (folder / "report.html").read_text()
    assert "report: " in shown
