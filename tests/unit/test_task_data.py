"""Objectives that a task sets where a curriculum leaves them out."""

import pytest

from curricle.metrics import METRICS
from curricle.objectives.labels import LabelLossName
from curricle.task_data import with_objectives
from curricle.tasks import ParityTask, TextTask
from curricle.values import Plain

VALUES = {"kind": "logits", "divergence": {"kind": "squared_error"}}


@pytest.mark.parametrize("loss", ["squared_error", "binary", "cosine"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("one_shot", "objective"), ("progressive", "objective"), ("extraction", "final_objective")],
)
def test_values_are_matched_by_their_squared_error(
    kind: str, name: str, loss: LabelLossName
) -> None:
    assert with_objectives({"kind": kind}, loss) == {"kind": kind, name: VALUES}
    stated = {"kind": kind, name: {"kind": "labels"}}
    assert with_objectives(stated, loss) == stated


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
    assert with_objectives(call, loss) == call


def test_tasks_on_tokens_predict_classes() -> None:
    for task in (ParityTask(), TextTask()):
        assert METRICS[task.metric].reads == "classes"
        assert (task.label_loss, task.heads) == ("cross_entropy", ("masked_lm", "causal_lm"))
