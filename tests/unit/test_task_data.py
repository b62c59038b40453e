"""Objectives that a task sets where a curriculum leaves them out."""

import pytest

from curricle.example_tasks import ExamplesTask
from curricle.metrics import METRICS
from curricle.task_data import BaseTask, with_objectives
from curricle.tasks import ParityTask, TextTask
from curricle.values import Plain

VALUES = {"kind": "logits", "divergence": {"kind": "squared_error"}}


TASKS: dict[str, BaseTask] = {
    kind: ExamplesTask(kind=kind, data="rows.csv", batch_size=12)
    for kind in (
        "regression",
        "several_labels",
        "embedding",
        "classification",
        "similarity",
        "sentences",
        "triplets",
    )
}
SIMILARITIES, MARGINS = {"kind": "similarities"}, {"kind": "margins"}


@pytest.mark.parametrize(
    ("task", "objective"),
    [
        ("regression", VALUES),
        ("several_labels", VALUES),
        ("embedding", VALUES),
        ("similarity", SIMILARITIES),
        ("sentences", SIMILARITIES),
        ("triplets", MARGINS),
    ],
)
@pytest.mark.parametrize(
    ("kind", "name"),
    [("one_shot", "objective"), ("progressive", "objective"), ("extraction", "final_objective")],
)
def test_outputs_that_are_values_are_matched_by_the_objective_of_the_task(
    kind: str, name: str, task: str, objective: Plain
) -> None:
    assert with_objectives({"kind": kind}, TASKS[task]) == {"kind": kind, name: objective}
    stated = {"kind": kind, name: {"kind": "labels"}}
    assert with_objectives(stated, TASKS[task]) == stated


@pytest.mark.parametrize(
    ("call", "task"),
    [
        ({"kind": "one_shot"}, "classification"),
        ({"kind": "from_labels"}, "classification"),
        ({"kind": "staged", "stages": []}, "regression"),
        ({"kind": "from_labels", "loss": "cosine"}, "several_labels"),
    ],
)
def test_other_calls_stay_as_they_are(call: Plain, task: str) -> None:
    assert with_objectives(call, TASKS[task]) == call


def test_labels_are_fitted_by_the_loss_of_the_task() -> None:
    call = with_objectives({"kind": "from_labels"}, TASKS["similarity"])
    assert call == {"kind": "from_labels", "loss": "similarity"}
    assert [task.is_labeled for task in TASKS.values()] == [True] * 5 + [False] * 2


def test_tasks_on_tokens_predict_classes() -> None:
    for task in (ParityTask(), TextTask()):
        assert METRICS[task.metric].reads == "classes"
        assert (task.label_loss, task.heads) == ("cross_entropy", ("masked_lm", "causal_lm"))
