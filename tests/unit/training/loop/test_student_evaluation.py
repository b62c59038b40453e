"""The evaluation of a run's student is tried once, and its metrics must be finite."""

import math

import pytest
import torch

from curricle.curriculum.strategies import one_shot
from curricle.errors import BindError, DivergenceError
from curricle.models.restoring import train
from curricle.models.tapped import TappedModel
from curricle.training.loop.student_evaluation import StudentEvaluation
from tests.parts import bound

RUN = bound(one_shot(total="4 steps"))


def evaluation(**metrics: float) -> StudentEvaluation:
    return StudentEvaluation(RUN, lambda model: dict(metrics), "score")


def test_the_metric_of_the_run_must_be_finite() -> None:
    with pytest.raises(
        DivergenceError,
        match=r"^'score' must be finite; got nan in stage 'logits' after step 2 with seed 0$",
    ):
        evaluation(score=math.nan).metrics(RUN.stages[0], 2)


def test_other_metrics_of_the_user_are_left_out_where_they_are_not_finite() -> None:
    metrics = evaluation(score=1.0, other=math.inf).metrics(RUN.stages[0], 2)
    assert metrics == {"score": 1.0}


def test_a_required_metric_must_be_there() -> None:
    trial = evaluation(score=1.0)
    trial.require("speed")
    with pytest.raises(BindError, match="'speed'"):
        trial.try_once()


def test_modes_of_training_follow_each_evaluation() -> None:
    module = RUN.student.module
    seen = []

    def evaluate(model: TappedModel) -> dict[str, float]:
        seen.append(model.module.training)
        assert not torch.is_grad_enabled()
        return {"score": 1.0}

    evaluated = StudentEvaluation(RUN, evaluate, "score")
    evaluated.modes = train(module)
    evaluated.metrics(RUN.stages[0], 0)
    assert (seen, module.training) == ([False], True)
