"""Every mistake of a user: one sentence, exit code 2, nothing overwritten."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from curricle.locks import COMMAND_LOCK, locked
from curricle.training.setup.observers import ProgressBar
from tests.runs import contents

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]
CopyRun = Callable[..., Path]

DECLARED = {
    "unknown field": ("task.batch_sice=5", "'task': 'batch_sice' is not a field; did you mean 'ba"),
    "unknown top field": ("optimize={}", "'optimize' is not a field; did you mean 'optimizer'?"),
    "wrong type": ("task.batch_size=many", "'task.batch_size' must be an integer"),
    "wrong sign": ("task.batch_size=-1", "'task.batch_size' must be greater than 0; got"),
    "not finite": ("optimizer.learning_rate=.nan", "'optimizer.learning_rate' must be a"),
    "unknown kind": (
        "optimizer.kind=adm",
        "'optimizer': 'adm' is not a kind; did you mean 'adamw'?",
    ),
    "unknown strategy": (
        "curriculum.kind=extracton",
        "did you mean 'extraction'? available: 'extr",
    ),
    "unknown argument": ("curriculum.pears=3", "'pears' is not an argument of extraction; did you"),
    "zero duration": ("teacher.total=0 steps", "'teacher.total': a duration must be a positive"),
    "zero budget": ("budget=0 steps", "'budget' must be greater than 0; got 0"),
    "short budget": ("budget=1 steps", "'total' 1 steps must be longer than the stages before the"),
    "dear budget": ("budget=1 flops", "'budget' 1 flops must pay for every stage"),
    "no budget": ("budget=null", "'budget' must be in the spec for 'curricle distill'"),
    "no student": ("student=null", "'student' must be in the spec for 'curricle distill'"),
    "no such tap": (
        "curriculum.pairs=[{student: 7, teacher: 1}]",
        "student's tap 7 must lie between",
    ),
    "no such path": (
        "curriculum.pairs=[{student: block.0, teacher: 1}]",
        "student's tap 'block.0' must be a module path of MLP; did you mean 'blocks.0'",
    ),
    "widths": (
        "curriculum.projection={kind: identity}",
        "must pair equal widths; got student width 8 and teacher width 16",
    ),
    "stages and layers": ("curriculum.pairs=3", "0.25 and 0.5 of its 1 blocks are both tap 1"),
    "no such checkpoint": (
        "curriculum={kind: progressive, trajectory: [10, 17]}",
        "'teacher' checkpoint must be one of [10, 20]; got 17",
    ),
    "model of another task": ("student={kind: hf, model_type: bert}", "must be 'mlp' for the task"),
    "no device": ("engine.device=tpu", "'engine.device' must be 'auto', 'cpu' or 'cuda'"),
    "parity": ("task.degree=9", "'degree' must lie between 1 and 'num_inputs' 8; got 9"),
    "gradient_accumulation_steps": (
        "engine.gradient_accumulation_steps=3",
        "'gradient_accumulation_steps' must divide the 16 examples",
    ),
    "seeds of one student": (
        "strategies={}",
        "'seeds' must come with 'strategies' for 'curricle compare'; got [0, 1] without",
    ),
    "floor": (
        "optimizer.schedule={floor: 0.1}",
        "'optimizer.schedule': 'floor' has no effect with decay='constant'; choose",
    ),
    "empty folder name": ("output_dir=", "'output_dir' must have at least 1 character"),
    "override without value": ("budget", "'budget' must have the form path=value"),
    "override of no YAML": ("seeds=[0", "'seeds' must be set to a value in YAML; got '[0'"),
    "override below a field": ("seed.x=1", "'seed' must be an integer; got {'x': 1}"),
    "override past the end": ("seeds.9=1", "'seeds.9' must number one of 2 items; got '9'"),
    "override below a number": ("task.degree.x=1", "'task.degree.x' cannot be set: its parent has"),
}
TEXTS = {
    "vocabularies": (
        "student.config.vocab_size=310",
        "'logits' of student and teacher must have the same classes, or values, to be",
    ),
    "small vocabulary": ("student.config.vocab_size=99", "'vocab_size' of the model must be at le"),
    "few positions": (
        "student.config.max_position_embeddings=4",
        "'max_position_embeddings' of the model must be at least the task's 16; got 4",
    ),
    "heads": (
        "student.config.num_attention_heads=3",
        "hidden size (8) is not a multiple of the nu",
    ),
    "family": (
        "student.model_type=brt",
        "'model_type' must be a family of transformers; got 'brt'",
    ),
    "field of the family": ("student.config.hiden_size=8", "did you mean 'hidden_size'"),
    "no corpus": ("task.corpus=nowhere", "'--set task.corpus=sample' takes the shipped text"),
    "no corpus in the list": ("task.corpus=[]", "'corpus' must name at least one text; got ()"),
    "corpus of fields": ("task.corpus={a: 1}", "'task.corpus' must be a string"),
    "empty text": (
        "task.corpus=empty.txt",
        "split 'train' of 'empty.txt' must hold text; it is em",
    ),
    "not text": ("task.corpus=binary.txt", "'binary.txt' must be UTF-8 text"),
    "shorter than a window": (
        "task.corpus=short.txt",
        "split 'valid' of corpus 'short.txt': the text must hold at least one window of 16 tokens",
    ),
    "no room for bytes": ("task.vocabulary_size=100", "'vocabulary_size' must be at least 260"),
    "one token": ("task.window=1", "'task.window' must be greater than 1; got 1"),
    "masking": ("task.masking.rate=2", "'task.masking.rate' must be less than or equal"),
    "cache": ("cache_dir=empty.txt", "cannot be written: File exists ('empty.txt')"),
    "no pretrained model": (
        "student={kind: pretrained, path: nowhere}",
        "'path' must be a folder with a config.json; got 'nowhere'",
    ),
    "mlp": ("student={kind: mlp, widths: [8]}", "'student.kind' must be 'hf' or 'pretrained' for"),
}


def sentence(outcome: tuple[object, str, str]) -> str:
    """Return the one line that a mistake is told in."""
    code, _, told = outcome
    assert code == 2
    assert told.startswith("curricle: ")
    assert told.count("\n") == 1, told
    assert "Traceback" not in told
    return told


def interrupt(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Interrupt every student after some steps, as a key would."""

    def call(self: object, record: object) -> None:
        if getattr(record, "stage", "labels") != "labels" and record.usage.steps >= at:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "__call__", call)


@pytest.mark.parametrize("case", DECLARED)
def test_a_mistake_in_a_spec_is_told_before_anything_is_written(
    command: Command, parity: Path, tmp_path: Path, case: str
) -> None:
    assignment, rule = DECLARED[case]
    told = sentence(command("distill", parity, "--set", assignment))
    assert rule in told
    assert [path.name for path in tmp_path.iterdir()] == ["parity.yaml"]


@pytest.mark.parametrize("case", TEXTS)
def test_a_mistake_about_text_is_told_before_a_run_begins(
    command: Command, text: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x80" * 50)
    (tmp_path / "short.txt").write_text("hello again\n" * 30)
    assignment, rule = TEXTS[case]
    assert rule in sentence(command("distill", text, "--set", assignment))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["teach", "compare", "plan"])
def test_every_verb_refuses_an_empty_text(
    command: Command, text: Path, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    strategies = "strategies={one: {curriculum: {kind: one_shot}}}"
    arguments = ("--set", "task.corpus=empty.txt", "--set", strategies)
    assert "must hold text; it is empty" in sentence(command(verb, text, *arguments))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "spec.yaml' cannot be read: No such file or directory\n"),
        ("a: [1", "spec.yaml' is not YAML"),
        ("- 1", "spec.yaml' must hold named fields, which docs/spec.md lists; got a list"),
        ("", "spec.yaml' is empty; it must hold named fields, which docs/spec.md lists"),
        ("seed: 1", "'output_dir' must be given"),
    ],
)
def test_a_file_that_is_no_spec_is_told(
    command: Command, tmp_path: Path, content: str | None, rule: str
) -> None:
    if content is not None:
        (tmp_path / "spec.yaml").write_text(content)
    assert rule in sentence(command("plan", tmp_path / "spec.yaml"))


@pytest.mark.parametrize("first", ["distill", "compare"])
def test_a_folder_that_holds_a_run_is_left_as_it_is(
    command: Command, parity: Path, tmp_path: Path, first: str
) -> None:
    assert command(first, parity)[0] == 0
    before = contents(tmp_path)
    for second in ("teach", "distill", "compare"):
        told = sentence(command(second, parity, "--set", "seed=3"))
        assert "'output_dir' 'run' must not hold a run already; use 'curricle resume run'" in told
    assert contents(tmp_path) == before


def test_a_demo_does_not_write_into_a_folder_that_holds_a_run(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("distill")
    before = contents(tmp_path)
    assert "must not hold a run" in sentence(command("demo", "--output-dir", "run"))
    assert contents(tmp_path) == before


def test_the_teacher_of_another_spec_is_left_as_it_is(
    command: Command, parity: Path, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("teach")
    before = contents(tmp_path)
    told = sentence(command("distill", parity, "--set", "teacher.model.widths=[17]"))
    assert "'run/teacher' must hold the teacher of this spec; it was trained by another" in told
    assert "'--set output_dir=...' takes another folder" in told
    assert contents(tmp_path) == before


def test_the_weights_of_another_model_are_told_and_left(
    command: Command, parity: Path, copy_run: CopyRun, tmp_path: Path
) -> None:
    command("teach", parity, "--set", "output_dir=other", "--set", "teacher.model.widths=[17]")
    copy_run("teach")
    name = "teacher/model.safetensors"
    shutil.copy(tmp_path / "other" / name, tmp_path / "run" / name)
    before = contents(tmp_path)
    told = sentence(command("distill", parity))
    assert "'run/teacher/model.safetensors' is damaged or of another run" in told
    assert contents(tmp_path) == before


def test_a_missing_checkpoint_of_the_teacher_is_told_before_training(
    command: Command, parity: Path, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("teach")
    (tmp_path / "run/teacher/trajectory/step-000000010.safetensors").unlink()
    before = contents(tmp_path)
    told = sentence(command("distill", parity, "--set", "curriculum={kind: progressive}"))
    assert "step-000000010.safetensors' is listed as a checkpoint and must exist" in told
    assert contents(tmp_path) == before


def test_a_run_is_not_gone_on_with_by_another_spec(
    command: Command, parity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at=6)
        assert command("distill", parity)[0] == 130
    spec = tmp_path / "run" / "spec.yaml"
    spec.write_text(spec.read_text().replace("layer_fraction: 0.25", "").replace("- 8\n", "- 9\n"))
    before = contents(tmp_path)
    told = sentence(command("resume", "run"))
    assert "run/spec.yaml' must be the spec with which the run was started" in told
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["nowhere", "cache"])
def test_only_a_run_can_be_resumed(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "cache").mkdir()
    assert f"'{name}' must be a run folder with a 'run.json'" in sentence(command("resume", name))


@pytest.mark.parametrize("verb", ["resume", "probe"])
def test_what_goes_on_with_other_folders_is_told(
    command: Command, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").touch()
    told = sentence(command(verb, "run"))
    assert "a run made in Python is resumed by 'curricle.distill(..., resume=True)'" in told
    (tmp_path / "run" / "recipe.json").touch()
    assert "it is a recipe's folder, with no runs" in sentence(command(verb, "run"))
    (tmp_path / "run" / "panels" / "parity").mkdir(parents=True)
    told = sentence(command(verb, "run"))
    assert "it is a recipe's folder, with runs in 'run/panels/parity'" in told


def test_a_run_without_its_spec_cannot_be_resumed(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("teach")
    (tmp_path / "run" / "spec.yaml").unlink()
    assert "'run/spec.yaml' cannot be read" in sentence(command("resume", "run"))


def test_only_runs_can_be_reported(command: Command, copy_run: CopyRun, tmp_path: Path) -> None:
    assert "must hold 'records.jsonl' or 'students'" in sentence(command("report", "nowhere"))
    copy_run("teach")
    assert "must hold 'records.jsonl' or 'students'" in sentence(command("report", "run"))
    assert not (tmp_path / "run" / "report.html").exists()


def test_damaged_records_are_told(command: Command, copy_run: CopyRun, tmp_path: Path) -> None:
    copy_run("distill")
    (tmp_path / "run" / "records.jsonl").write_text('{"kind": "rum"}\n')
    assert "records.jsonl' must hold" in sentence(command("report", "run"))
    assert "records.jsonl' must hold" in sentence(command("resume", "run"))
    (tmp_path / "run" / "manifest.json").unlink()
    assert "records.jsonl' line 1 is not a record" in sentence(command("report", "run"))
    assert "records.jsonl' line 1 is not a record" in sentence(command("resume", "run"))


def test_a_second_command_in_a_folder_is_told(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("teach")
    with locked(tmp_path / "run", name=COMMAND_LOCK):
        told = sentence(command("resume", "run"))
    assert "'run' must have one writer at a time; process " in told
    assert command("resume", "run")[0] == 0


def test_the_damaged_weights_of_a_finished_run_are_told(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("distill")
    path = tmp_path / "run" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "model.safetensors' is damaged or of another run" in sentence(command("resume", "run"))


def test_another_demo_is_refused_with_near_names(command: Command) -> None:
    told = sentence(command("demo", "parety"))
    assert "'parety' is not a demo; did you mean 'parity'? available: 'parity', 'text'" in told


def test_a_run_folder_that_is_a_file_is_told(command: Command, parity: Path) -> None:
    told = sentence(command("teach", parity, "--set", "output_dir=parity.yaml"))
    assert "'output_dir' must be a folder that can be written; got 'parity.yaml', where" in told


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    objectives = "objectives: [{kind: labels}]"
    stages = [
        f"{{name: calm, duration: 4 steps, {objectives}}}",
        f"{{name: wild, duration: 8 steps, {objectives}, learning_rate_scale: 1.0e+30}}",
    ]
    curriculum = f"curriculum={{kind: staged, stages: [{', '.join(stages)}]}}"
    told = sentence(command("distill", parity, "--set", curriculum, "--set", "seed=5"))
    assert "'loss' must be finite; got nan in stage 'wild' at step 5 with seed 5" in told
    kept = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-000000004"]
    weights = load_file(kept[0] / "student.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert json.loads((kept[0] / "state.json").read_text())["usage"]["steps"] == 4


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        ("model.safetensors", "must hold a model with head 'masked_lm'; transformers says:"),
        ("config.json", "must hold a model with head 'masked_lm'; transformers says:"),
    ],
)
def test_a_damaged_pretrained_model_is_told(
    command: Command, text: Path, tmp_path: Path, damage: str, rule: str
) -> None:
    assert command("teach", text)[0] == 0
    (tmp_path / "run" / "teacher" / "model" / damage).write_text("{")
    before = contents(tmp_path)
    teacher = "teacher={model: {kind: pretrained, path: run/teacher/model}}"
    arguments = ("--set", teacher, "--set", "output_dir=other", "--set", "curriculum.kind=one_shot")
    assert rule in sentence(command("distill", text, *arguments))
    assert contents(tmp_path) == before


def test_a_trajectory_of_another_model_is_told_before_training(
    command: Command, text: Path, tmp_path: Path
) -> None:
    assert command("distill", text)[0] == 0
    teacher = "teacher={model: {kind: pretrained, path: run/teacher/model}, folders: [run/model]}"
    arguments = ("--set", teacher, "--set", "output_dir=other")
    curriculum = "curriculum={kind: progressive}"
    told = sentence(command("distill", text, *arguments, "--set", curriculum))
    assert "'run/model/model.safetensors' must hold this model's weights" in told
    assert not (tmp_path / "other").exists()
