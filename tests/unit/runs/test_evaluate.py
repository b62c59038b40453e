"""A student is evaluated beside its teacher, and nothing changes."""

import json
import math
from typing import Any

import pytest
import torch

import curricle
from curricle import seeding
from curricle.errors import BindError, SpecError
from curricle.metrics import METRICS
from tests.parts import drawn, mlp, parity


class Constant(torch.nn.Module):
    """Gives the same logits for every example."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(inputs), -1)


HELD_OUT = [
    curricle.Batch(inputs=drawn(3, 6), labels=torch.tensor([0, 1, 1])),
    curricle.Batch(inputs=drawn(1, 6), labels=torch.tensor([1])),
]


def test_metrics_are_those_of_all_positions_for_both_models() -> None:
    student, teacher = Constant(0.0, 2.0), Constant(math.log(3.0), 0.0)
    evaluation = curricle.evaluate(
        student, HELD_OUT, teacher=teacher, metrics=("accuracy", "nll", "kl"), repetitions=1
    )
    assert evaluation.teacher is not None
    numbers = evaluation.student.metrics
    assert numbers["accuracy"] == 0.75
    # The student's odds are 1 : e^2, the teacher's 3 : 1.
    log_sum = math.log(1 + math.exp(2))
    assert numbers["nll"] == pytest.approx((log_sum + 3 * (log_sum - 2)) / 4)
    kl = 0.75 * (math.log(0.75) + log_sum) + 0.25 * (math.log(0.25) + log_sum - 2)
    assert numbers["kl"] == pytest.approx(kl)
    assert evaluation.teacher.metrics["accuracy"] == 0.25
    assert set(evaluation.teacher.metrics) == {"accuracy", "nll"}
    assert (evaluation.num_examples, evaluation.timed_examples) == (4, 3)


def test_models_stay_as_they_are_and_the_teacher_may_be_missing() -> None:
    student = mlp(5)
    before = {name: weight.clone() for name, weight in student.module.state_dict().items()}
    student.module.train()
    batch = parity(purpose="evaluation").batch(0)
    evaluation = curricle.evaluate(student, [batch], repetitions=2)
    assert evaluation.teacher is None
    assert set(evaluation.student.metrics) == {"accuracy", "nll"}
    assert evaluation.student.cost.parameters == 6 * 5 + 5 + 5 * 2 + 2
    assert student.module.training
    after = student.module.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_float_labels_are_judged_by_their_squared_error() -> None:
    batch = curricle.Batch(inputs=drawn(2, 6), labels=torch.tensor([1.0, 3.0]))
    evaluation = curricle.evaluate(Constant(2.0), [batch], repetitions=1)
    assert evaluation.student.metrics == {"mean_squared_error": 1.0}


def test_a_teacher_with_inputs_of_its_own_is_timed_only() -> None:
    batch = curricle.Batch(
        inputs=drawn(2, 6), labels=torch.tensor([0, 1]), teacher_inputs=drawn(2, 9)
    )
    with seeding.scoped(0, "teacher"):
        teacher = torch.nn.Linear(9, 2)
    evaluation = curricle.evaluate(Constant(1.0, 0.0), [batch], teacher=teacher, repetitions=1)
    assert evaluation.teacher is not None
    assert evaluation.teacher.metrics == {}
    assert evaluation.teacher.cost.parameters == 20
    assert evaluation.notes == ("the teacher reads inputs of its own, so its metrics are left out",)
    assert evaluation.notes[0] in str(evaluation)
    assert "| accuracy | 50.00 % | - |  |" in str(evaluation).replace("–", "-").replace("—", "-")


def test_the_table_and_the_json_hold_the_numbers() -> None:
    evaluation = curricle.evaluate(
        Constant(0.0, 1.0), HELD_OUT, teacher=mlp(16), repetitions=1, task="signs"
    )
    lines = str(evaluation).splitlines()
    assert lines[0] == "|  | student | teacher | teacher : student |"
    assert lines[2].startswith("| accuracy | 75.00 % |")
    assert "| parameters | 2 | 146 | 73 |" in lines
    facts: dict[str, Any] = json.loads(json.dumps(evaluation.plain()))
    assert facts["student"]["metrics"]["accuracy"] == 0.75
    assert facts["student"]["bytes"] == 8
    assert facts["timing"]["repetitions"] == 1
    assert facts["task"] == "signs"


def test_no_batches_are_refused() -> None:
    with pytest.raises(
        BindError,
        match=r"'evaluation' must be a DataLoader, a stream or a sequence of curricle\.Batch",
    ):
        curricle.evaluate(Constant(0.0, 1.0), [])


def test_a_metric_that_does_not_exist_and_one_without_teacher_are_refused() -> None:
    with pytest.raises(SpecError, match="'metric' 'acuracy' is not built in; did you mean"):
        curricle.evaluate(Constant(0.0, 1.0), HELD_OUT, metrics=("acuracy",))
    with pytest.raises(BindError, match="'teacher' must be given for the metric 'kl'"):
        curricle.evaluate(Constant(0.0, 1.0), HELD_OUT, metrics=("kl",))


@pytest.mark.parametrize("metric", ["accuracy", METRICS["accuracy"]])
def test_a_single_metric_needs_no_sequence(metric: Any) -> None:
    evaluation = curricle.evaluate(Constant(0.0, 2.0), HELD_OUT, metrics=metric, repetitions=1)
    assert evaluation.student.metrics == {"accuracy": 0.75}


def test_an_unknown_argument_is_a_sentence() -> None:
    with pytest.raises(BindError, match=r"'metric' is not an argument of 'evaluate'; did you mean"):
        curricle.evaluate(Constant(0.0, 1.0), HELD_OUT, metric="kl")  # type: ignore[call-arg]
