"""A teacher that is trained in Python keeps its checkpoints, and strategies follow them."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import curricle
from curricle.errors import BindError, CheckpointError, SpecError
from curricle.models.tapped import TappedModel
from curricle.models.weights import load_weights
from curricle.records import EvaluationRecord, Record
from curricle.runs.teaching import TrainedTeacher, teach
from curricle.teachers.trajectory import checkpoint_steps
from tests.parts import mlp, parity

CPU = curricle.TrainingSettings(device="cpu", eval_every=5, log_every=5)
HELD_OUT = [parity(purpose="evaluation").batch(0)]


def taught(folder: Path, **parts: Any) -> TrainedTeacher:
    defaults: dict[str, Any] = {
        "model": mlp(16, 12, seed=1).module,
        "data": parity(),
        "total": "20 steps",
        "evaluation": HELD_OUT,
        "output_dir": folder,
        "checkpoints": 4,
        "settings": CPU,
    }
    # The shape checks of the tests would refuse wrong kinds first.
    result: TrainedTeacher = inspect.unwrap(teach)(**(defaults | parts))
    return result


def state(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, state(first), state(second)))


def test_a_student_follows_the_checkpoints_of_a_teacher_trained_here(tmp_path: Path) -> None:
    model = mlp(16, 12, seed=1).module
    teacher = taught(tmp_path / "teacher", model=model)
    assert teacher.model is model
    assert teacher.trajectory.steps == (5, 10, 15, 20)
    assert [step for step, _ in teacher.trajectory.losses] == [5, 10, 15, 20]
    assert teacher.metrics["nll"] == teacher.trajectory.losses[-1][1]
    last = mlp(16, 12, seed=9).module
    load_weights(last, teacher.trajectory.path(20))
    assert same(last, model)
    curriculum = curricle.progressive(total="8 steps", trajectory=teacher.trajectory)
    seen: list[Record] = []
    curricle.distill(
        mlp(5, 4).module,
        teacher.model,
        curriculum,
        parity(),
        evaluation=HELD_OUT,
        trajectory=teacher.trajectory,
        settings=CPU,
        observers=[seen.append],
    )
    stages = [stage.teacher for stage in curriculum.stages]
    assert stages == [5, 10, 15, 20]
    assert same(last, teacher.model)


def test_a_taught_model_shows_in_one_line(tmp_path: Path) -> None:
    teacher = taught(tmp_path / "teacher")
    shown = repr(teacher)
    count = sum(weight.numel() for weight in teacher.model.parameters())
    assert shown.startswith(
        f"TrainedTeacher(model=<MLP, {count:,} parameters>, checkpoints=4 up to step 20, metrics={{"
    )
    assert f"'accuracy': {teacher.metrics['accuracy']:.4g}" in shown
    assert "steps=20, seconds=" in shown
    assert "\n" not in shown


def test_the_weights_are_those_of_distill_without_a_teacher(tmp_path: Path) -> None:
    alone = mlp(16, 12, seed=1).module
    curricle.distill(
        alone,
        None,
        curricle.from_labels(total="20 steps"),
        parity(),
        evaluation=HELD_OUT,
        settings=CPU,
    )
    assert same(taught(tmp_path).model, alone)


@pytest.mark.parametrize(("accuracy", "is_noted"), [(0.1, True), (0.9, False)])
def test_a_teacher_that_ends_at_chance_is_noted(
    accuracy: float, is_noted: bool, tmp_path: Path
) -> None:
    class Constant:
        chance = 0.5

        def __call__(self, model: TappedModel) -> dict[str, float]:
            return {"accuracy": accuracy, "nll": 1.0}

    teacher = taught(tmp_path, evaluation=Constant())
    assert any("the teacher is at chance" in note for note in teacher.notes) == is_noted


def test_a_training_that_was_stopped_goes_on_and_keeps_the_same_checkpoints(tmp_path: Path) -> None:
    def stop(record: Record) -> None:
        if isinstance(record, EvaluationRecord) and record.usage.steps == 10:
            raise RuntimeError

    settings = curricle.TrainingSettings(device="cpu", eval_every=5, log_every=5, save_every=5)
    whole = taught(tmp_path / "whole", settings=settings)
    with pytest.raises(RuntimeError):
        taught(tmp_path / "cut", settings=settings, observers=[stop])
    again = taught(tmp_path / "cut", settings=settings, resume=True)
    assert same(again.model, whole.model)
    assert again.trajectory.digests == whole.trajectory.digests
    finished = taught(tmp_path / "cut", settings=settings, resume=True)
    assert same(finished.model, whole.model)
    with pytest.raises(CheckpointError, match="must not hold a run already"):
        taught(tmp_path / "cut", settings=settings)


@pytest.mark.parametrize(
    ("total", "number", "steps"),
    [(20, 4, (5, 10, 15, 20)), (3, 5, (1, 2, 3)), (10, 3, (3, 7, 10)), (7, 1, (7,))],
)
def test_checkpoints_are_equally_spaced_and_end_with_the_training(
    total: int, number: int, steps: tuple[int, ...]
) -> None:
    assert checkpoint_steps(total, number) == steps


@pytest.mark.parametrize(
    ("parts", "kind", "sentence"),
    [
        ({"checkpoints": 0}, SpecError, "'checkpoints' must lie between 1 and 100,000; got 0"),
        ({"model": 3}, BindError, "'model' must be a torch.nn.Module"),
        (
            {"settings": curricle.TrainingSettings(device="cpu", eval_every=5, keep_best=True)},
            BindError,
            "'keep_best' must be False for a teacher, which ends with the weights of its last",
        ),
        ({"total": "3 epochs"}, BindError, "for data that do not repeat"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, parts: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        taught(tmp_path, **parts)
