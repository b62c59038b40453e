"""Objectives that a task sets where a curriculum leaves them out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from curricle.data.encoding import TextKind
from curricle.example_tasks import ExamplesTask, TensorsTask
from curricle.metrics import METRICS
from curricle.objectives.labels import LabelLossName
from curricle.task_data import BaseTask, with_objectives
from curricle.tasks import ParityTask, TextTask
from curricle.values import Plain

TASKS: dict[LabelLossName, BaseTask] = {
    "cross_entropy": TensorsTask(),
    "squared_error": TensorsTask(labels="values"),
    "binary": TensorsTask(labels="several"),
    "cosine": TensorsTask(labels="embedding"),
}
VALUES = {"kind": "logits", "divergence": {"kind": "squared_error"}}


@pytest.mark.parametrize("loss", ["squared_error", "binary", "cosine"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("one_shot", "objective"), ("progressive", "objective"), ("extraction", "final_objective")],
)
def test_values_are_matched_by_their_squared_error(
    kind: str, name: str, loss: LabelLossName
) -> None:
    assert with_objectives({"kind": kind}, TASKS[loss]) == {"kind": kind, name: VALUES}
    stated = {"kind": kind, name: {"kind": "labels"}}
    assert with_objectives(stated, TASKS[loss]) == stated


@pytest.mark.parametrize(
    ("call", "loss"),
    [
        ({"kind": "one_shot"}, "cross_entropy"),
        ({"kind": "from_labels"}, "cross_entropy"),
        ({"kind": "staged", "stages": []}, "squared_error"),
        ({"kind": "from_labels", "loss": "cosine"}, "binary"),
    ],
)
def test_other_calls_stay_as_they_are(call: Plain, loss: LabelLossName) -> None:
    assert with_objectives(call, TASKS[loss]) == call


def test_tasks_on_tokens_predict_classes() -> None:
    for task in (ParityTask(), TextTask()):
        assert METRICS[task.metric].reads == "classes"
        assert (task.label_loss, task.heads) == ("cross_entropy", ("masked_lm", "causal_lm"))


def test_auto_matches_values_and_has_the_loss_of_the_labels() -> None:
    expected = {"kind": "auto", "objective": VALUES, "labels": {"loss": "binary"}}
    assert with_objectives({"kind": "auto"}, TASKS["binary"]) == expected
    assert with_objectives({"kind": "auto", "labels": None}, TASKS["binary"])["labels"] is None
    assert with_objectives({"kind": "auto"}, TASKS["cross_entropy"]) == {"kind": "auto"}


def test_the_labels_of_hintons_loss_are_fitted_as_the_task_has_them() -> None:
    call = {"kind": "one_shot", "label_weight": 0.5}
    assert with_objectives(call, TASKS["binary"]) == {
        **call,
        "objective": VALUES,
        "label_loss": "binary",
    }
    assert with_objectives(call, TASKS["cross_entropy"]) == call


def test_the_numbers_of_rows_and_classes_are_a_sentence(tmp_path: Path) -> None:
    digits = TensorsTask(batch_size=32).open(seed=0, cache_dir=tmp_path)
    assert digits.facts == "data: 1,438 examples to train on and 359 held out, 10 classes"
    names = tuple("abcdefgh")
    assert replace(digits, class_names=names, num_classes=8).facts.endswith(
        "8 classes (a, b, c, d, e, f, 2 more)"
    )
    parity = ParityTask().open(seed=0, cache_dir=tmp_path)
    assert parity.facts.startswith("data: new examples at every step to train on and ")
    assert parity.facts.endswith("2 classes")
    assert replace(digits, num_inputs=10).facts.endswith("a vocabulary of 10 tokens")
    batch = replace(digits.evaluation[0], labels=torch.zeros(32, 10))
    assert replace(digits, evaluation=(batch,)).facts.endswith("32 held out, 10 values each")


@pytest.mark.parametrize(
    ("task", "objective"),
    [("similarity", "similarities"), ("sentences", "similarities"), ("triplets", "margins")],
)
def test_embeddings_are_matched_by_the_objective_of_the_task(
    task: TextKind, objective: str
) -> None:
    texts = ExamplesTask(kind=task, data="rows.csv", batch_size=12)
    call = with_objectives({"kind": "one_shot"}, texts)
    assert call == {"kind": "one_shot", "objective": {"kind": objective}}
    assert texts.is_labeled == (task == "similarity")
