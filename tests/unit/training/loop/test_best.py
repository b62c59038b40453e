"""The best weights by a metric are those that a run ends with, also after it was interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import curricle
from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import extraction, one_shot
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.metrics import metrics_beside
from curricle.models.tapped import TappedModel
from curricle.models.weights import load_weights
from curricle.records import EndRecord, EvaluationRecord, Record, read_records
from curricle.training.binding.bound_run import BoundRun
from curricle.training.distill import execute
from curricle.training.loop.best import BEST
from curricle.training.loop.checkpoints import CHECKPOINTS, latest_checkpoint
from curricle.training.loop.resuming import FINISHED
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.staged import StagedLoss
from tests.parts import bound, mlp, parity
from tests.runs import contents

STEPS, EVERY = 20, 4
TOTAL = Duration(number=STEPS)


class Scores:
    """Evaluation with given values of a metric, which remembers the weights that it judged."""

    def __init__(self, *values: float, name: str = "accuracy") -> None:
        self.values, self.name = values, name
        self.states: list[dict[str, Tensor]] = []
        # The engine tries an evaluation before training.
        self.calls = -1

    def __call__(self, model: TappedModel) -> dict[str, float]:
        if self.calls >= 0:
            self.states.append(weights(model))
        self.calls += 1
        return {self.name: self.values[max(0, self.calls - 1)], "other": float(self.calls)}


def weights(model: TappedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def run_of(**settings: Any) -> BoundRun:
    return bound(one_shot(total=TOTAL), settings={"eval_every": EVERY, **settings})


def executed(
    run: BoundRun, evaluate: Callable[[TappedModel], dict[str, float]], **fields: Any
) -> EndRecord:
    metric, resume = fields.pop("metric", "accuracy"), fields.pop("resume", False)
    return execute(run, evaluate, metric=metric, outputs=Outputs(**fields), resume=resume)


@pytest.mark.parametrize("is_on_disk", [False, True])
@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        # Evaluations after 4, 8, 12, 16 and 20 steps, and at the end.
        ("accuracy", (0.1, 0.5, 0.3, 0.5, 0.2, 0.2), 1),
        ("error_rate", (0.1, 0.5, 0.3, 0.5, 0.2, 0.2), 0),
        ("accuracy", (0.1, 0.2, 0.3, 0.4, 0.5, 0.5), 4),
        ("loss", (0.5, 0.4, 0.4, 0.6, 0.7, 0.7), 1),
    ],
)
def test_a_run_ends_with_the_weights_of_its_first_best_evaluation(
    metric: str, values: tuple[float, ...], best: int, *, is_on_disk: bool, tmp_path: Path
) -> None:
    evaluate, run = Scores(*values, name=metric), run_of(keep_best=True)
    folder = tmp_path / "run" if is_on_disk else None
    end = executed(run, evaluate, metric=metric, folder=folder)
    assert (end.best_metric, end.best_step) == (metric, EVERY * (best + 1))
    assert end.metrics[metric] == values[best]
    assert end.usage.steps == STEPS
    assert same(weights(run.student), evaluate.states[best])
    assert not same(evaluate.states[best], evaluate.states[best - 1])
    if folder is not None:
        fresh = mlp(5, 4, seed=7)
        load_weights(fresh.module, folder / FINISHED)
        assert same(weights(fresh), evaluate.states[best])
        assert not (folder / BEST).exists()
        assert [*read_records(folder / "records.jsonl")][-1] == end


def test_without_the_setting_a_run_ends_with_its_last_weights_and_says_nothing_of_the_best(
    tmp_path: Path,
) -> None:
    evaluate, run = Scores(0.9, 0.1, 0.1, 0.1, 0.1, 0.1), run_of()
    end = executed(run, evaluate, folder=tmp_path)
    assert same(weights(run.student), evaluate.states[-1])
    assert end.best_step == 0
    assert "best" not in (tmp_path / "records.jsonl").read_text()


class StopRunError(Exception):
    """Ends a run from an observer."""


def stopping(step: int) -> Callable[[Record], None]:
    def observe(record: Record) -> None:
        if isinstance(record, EvaluationRecord) and record.usage.steps == step:
            raise StopRunError

    return observe


def squares(model: TappedModel) -> dict[str, float]:
    """Return a number that tells any two students apart, and rises and falls."""
    inputs = torch.linspace(-1, 1, 6).expand(3, 6)
    return {"accuracy": float(model.module(inputs).sin().mean())}


@pytest.mark.parametrize("stop", [8, 12, 16, 20])
@pytest.mark.parametrize("every", [2, 5, 8])
def test_a_run_that_is_resumed_in_the_middle_ends_with_the_same_best_weights(
    stop: int, every: int, tmp_path: Path
) -> None:
    def run() -> BoundRun:
        return bound(
            extraction(total=TOTAL),
            settings={"eval_every": EVERY, "save_every": every, "keep_best": True},
        )

    whole, cut, resumed = run(), run(), run()
    end = executed(whole, squares, folder=tmp_path / "whole")
    with pytest.raises(StopRunError):
        executed(cut, squares, folder=tmp_path / "cut", observers=(stopping(stop),))
    again = executed(resumed, squares, folder=tmp_path / "cut", resume=True)
    assert (again.best_step, again.metrics) == (end.best_step, end.metrics)
    assert same(weights(resumed.student), weights(whole.student))
    assert contents(tmp_path / "cut", FINISHED) == contents(tmp_path / "whole", FINISHED)


def test_resuming_takes_the_best_weights_of_the_checkpoint_and_not_of_steps_after_it(
    tmp_path: Path,
) -> None:
    settings = {"keep_best": True, "save_every": 8}
    with pytest.raises(StopRunError):
        # Better than ever after 12 steps, of which no checkpoint is left.
        executed(
            run_of(**settings),
            Scores(0.1, 0.2, 0.9),
            folder=tmp_path,
            observers=(stopping(12),),
        )
    run, evaluate = run_of(**settings), Scores(0.15, 0.1, 0.1, 0.1)
    end = executed(run, evaluate, folder=tmp_path, resume=True)
    assert (end.best_step, end.metrics["accuracy"]) == (8, 0.2)


def test_damaged_best_weights_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    settings = {"keep_best": True, "save_every": 8}
    with pytest.raises(StopRunError):
        executed(run_of(**settings), squares, folder=tmp_path, observers=(stopping(12),))
    checkpoint = latest_checkpoint(tmp_path / CHECKPOINTS)
    assert checkpoint is not None
    file = checkpoint / BEST
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match=BEST):
        executed(run_of(**settings), squares, folder=tmp_path, resume=True)


def test_a_run_does_not_go_on_with_another_choice_of_the_best(tmp_path: Path) -> None:
    settings = {"save_every": 8, "keep_best": True}
    with pytest.raises(StopRunError):
        executed(run_of(**settings), squares, folder=tmp_path, observers=(stopping(12),))
    with pytest.raises(CheckpointError, match="keep_best"):
        executed(run_of(save_every=8), squares, folder=tmp_path, resume=True)


def test_the_best_of_a_single_evaluation_is_refused() -> None:
    with pytest.raises(BindError, match="'eval_every' must be below the 20 steps"):
        executed(run_of(keep_best=True, eval_every=20), squares)


def test_a_metric_of_unknown_direction_is_refused_unless_it_is_declared() -> None:
    with pytest.raises(BindError, match="'keep_best' must have a metric of known direction"):
        executed(run_of(keep_best=True), Scores(*range(6), name="gain"), metric="gain")
    # A known word behind unknown ones may mean the opposite.
    with pytest.raises(BindError, match="'time_to_accuracy' does not say whether"):
        executed(run_of(keep_best=True), Scores(*range(6), name="t"), metric="time_to_accuracy")
    evaluate = Scores(0.1, 0.5, 0.3, 0.4, 0.2, 0.2, name="gain")
    end = executed(run_of(keep_best=True), evaluate, metric="gain", better="lower")
    assert end.best_step == EVERY


def test_another_metric_may_choose_the_best() -> None:
    result = curricle.distill(
        mlp(5, 4).module,
        mlp(16, 12, seed=1).module,
        curricle.one_shot(total="20 steps"),
        parity(),
        evaluation=[parity(purpose="test").batch(0)],
        settings=curricle.TrainingSettings(device="cpu", eval_every=2, keep_best="f1_macro"),
    )
    assert set(result.metrics) == {"accuracy", "nll", "f1_macro"}
    assert result.best_step is not None
    assert 0 < result.best_step <= STEPS
    with pytest.raises(SpecError, match="must read the labels"):
        metrics_beside("accuracy", "pearson")
    with pytest.raises(BindError, match="must be one of the entries that 'evaluation' returns"):
        executed(run_of(keep_best="f1"), squares)


def test_a_loop_of_its_own_keeps_no_best() -> None:
    with pytest.raises(BindError, match="'keep_best' must be False"):
        StagedLoss(run_of(keep_best=True))
