"""The file with the metrics of a comparison's teacher."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from curricle import seeding
from curricle.errors import CheckpointError
from curricle.runs.assemble import open_task
from curricle.runs.spec import RunSpec
from curricle.runs.teacher_file import (
    TEACHER_METRICS,
    read_teacher_metrics,
    write_teacher_metrics,
)
from curricle.runs.train import measure_teacher
from curricle.values import parse

WIDTHS: dict[str, Any] = {"n_embd": 8, "n_layer": 1, "n_head": 2}


def test_a_pretrained_teacher_is_measured_on_the_data_of_its_students(tmp_path: Path) -> None:
    """Against the loss that transformers computes on the same rows."""
    with seeding.scoped(0, "teacher"):
        module = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=16, **WIDTHS))
    module.save_pretrained(tmp_path / "teacher")
    fields: dict[str, Any] = {
        "task": {
            "kind": "text",
            "corpus": "sample",
            "objective": "next_token",
            "vocabulary_size": 300,
            "window": 8,
            "batch_size": 4,
            "evaluation_batches": 1,
        },
        "teacher": {
            "model": {
                "kind": "pretrained",
                "path": str(tmp_path / "teacher"),
                "head": "causal_lm",
            }
        },
        "student": {"kind": "hf", "model_type": "gpt2", "head": "causal_lm", "config": WIDTHS},
        "strategies": {
            "from_labels": {"curriculum": {"kind": "from_labels"}},
            "one_shot": {"curriculum": {"kind": "one_shot"}},
        },
        "budget": "2 steps",
        "optimizer": {"kind": "adamw", "learning_rate": 0.001},
        "output_dir": str(tmp_path / "run"),
        "cache_dir": str(tmp_path / "cache"),
    }
    spec: RunSpec = parse(RunSpec, fields)
    measure_teacher(spec)
    (batch,) = open_task(spec, 0, "student").evaluation
    rows = batch.leading
    with torch.no_grad():
        loss = float(module.eval()(input_ids=rows, labels=rows).loss)
    metrics = read_teacher_metrics(spec.folder)
    assert metrics["nll"] == pytest.approx(loss, rel=1e-4)
    assert math.isfinite(metrics["accuracy"])


def test_metrics_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_teacher_metrics(tmp_path, {"accuracy": 0.75, "nll": 0.5})
    assert read_teacher_metrics(tmp_path) == {"accuracy": 0.75, "nll": 0.5}


def test_a_teacher_that_was_not_measured_leaves_no_file(tmp_path: Path) -> None:
    write_teacher_metrics(tmp_path, {})
    assert not (tmp_path / TEACHER_METRICS).exists()
    assert read_teacher_metrics(tmp_path) == {}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_teacher_metrics(tmp_path, {"accuracy": 0.75})
    path = tmp_path / TEACHER_METRICS
    path.write_text(path.read_text().replace("0.75", "0.85"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"teacher\.json' must be the file that a comparison"):
        read_teacher_metrics(tmp_path)
