"""Runs of the task `paired_text`: a loaded teacher with a tokenizer of its own."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from curricle import seeding
from curricle.data.text import open_corpus, train_tokenizer
from curricle.errors import BindError, SpecError
from curricle.runs.assemble import load_teacher, open_task
from curricle.runs.spec import RunSpec
from curricle.runs.train import planned_student, single_run, train_student
from curricle.values import override, parse

WIDTHS: dict[str, Any] = {"n_embd": 8, "n_layer": 2, "n_head": 2}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Return the folder of a teacher with 300 tokens, whose logits are padded to 320."""
    folder = tmp_path / "teacher"
    config = GPT2Config(vocab_size=320, n_positions=40, **WIDTHS)
    with seeding.scoped(0, "teacher"):
        GPT2LMHeadModel(config).save_pretrained(folder)
    train_tokenizer(open_corpus("sample", "valid"), 300).save(str(folder / "tokenizer.json"))
    return folder


def spec_of(teacher: Path, *changes: str) -> RunSpec:
    final = {"kind": "paired_logits", "label_weight": 1.0}
    fields: dict[str, Any] = {
        "task": {
            "kind": "paired_text",
            "teacher_tokenizer": str(teacher),
            "vocabulary_size": 400,
            "window": 8,
            "batch_size": 4,
            "evaluation_batches": 2,
        },
        "teacher": {"model": {"kind": "pretrained", "path": str(teacher), "head": "causal_lm"}},
        "student": {"kind": "hf", "model_type": "gpt2", "head": "causal_lm", "config": WIDTHS},
        "curriculum": {"kind": "extraction", "final_objective": final},
        "budget": "6 steps",
        "goal": {"metric": "nll", "number": 1.0},
        "optimizer": {"kind": "adamw", "learning_rate": 0.001},
        "output_dir": str(teacher.parent / "run"),
        "cache_dir": str(teacher.parent / "cache"),
    }
    return parse(RunSpec, override(fields, changes))


def test_a_student_learns_from_hidden_states_and_logits_of_another_tokenizer(teacher: Path) -> None:
    spec = spec_of(teacher)
    plan = planned_student(spec, single_run(spec))
    assert any("of the student's tokens end at the same character" in note for note in plan.notes)
    train_student(spec, single_run(spec))
    assert (spec.folder / "model" / "tokenizer.json").is_file()


def test_a_teacher_of_this_task_is_loaded(teacher: Path) -> None:
    with pytest.raises(SpecError, match=r"^'teacher.total' must be left out with the task"):
        spec_of(
            teacher,
            "teacher={model: {kind: hf, model_type: gpt2, head: causal_lm}, total: 4 steps}",
        )
    with pytest.raises(SpecError, match=r"head' must be 'causal_lm' to predict the next token"):
        spec_of(teacher, "student.head=masked_lm")


def test_a_teacher_without_tokenizer_is_refused(teacher: Path) -> None:
    (teacher / "tokenizer.json").write_text("{")
    with pytest.raises(BindError, match=r"tokenizer.json' must be the tokenizer.json of a fast"):
        open_task(spec_of(teacher), 0, "student")


def test_a_teacher_whose_ids_are_not_those_of_a_text_task_is_refused(teacher: Path) -> None:
    task = "task={kind: text, objective: next_token, vocabulary_size: 300, window: 8}"
    spec = spec_of(teacher, task, "curriculum={kind: one_shot}")
    with pytest.raises(BindError, match=r"must give equal tokens equal ids to compare logits by"):
        load_teacher(spec, open_task(spec, 0, "student"))
