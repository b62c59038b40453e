"""Groups of students: who steps together, and what a group keeps."""

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import from_labels, one_shot
from curricle.locks import locked
from curricle.models.tapped import TappedModel
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.fast.stacking import Group
from curricle.training.loop.engine import TrainingRun
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.stepping import Stepper
from curricle.training.setup.placement import SingleDevice
from curricle.training.sharing import grouping
from curricle.training.sharing.grouping import StudentGroups
from curricle.training.sharing.shared_runs import SharedRun, execute_shared
from tests.parts import bound, mlp, parity

TEACHER = mlp(16, 12, seed=1)


def run_of(
    seed: int, curriculum: Callable[..., Curriculum] = one_shot, *, steps: int = 6
) -> BoundRun:
    return bound(
        curriculum(total=Duration(number=steps)),
        student=mlp(5, 4, seed=seed),
        teacher=LiveTeacher(TEACHER) if curriculum is one_shot else None,
        stream=parity(),
        seed=seed,
    )


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": float(model.module(torch.ones(3, 6)).square().mean())}


def training(run: BoundRun, groups: StudentGroups) -> TrainingRun:
    return TrainingRun(
        run, evaluate, metric="accuracy", outputs=Outputs(), stage_steps=groups.joining
    )


def advance_alone(run: TrainingRun, losses: object, seconds: float) -> None:
    assert losses is None
    assert seconds == 0.0
    run.advance()


def advance_any(run: TrainingRun, losses: Sequence[StepLoss] | None, seconds: float) -> None:
    assert seconds >= 0.0
    run.advance(losses)


def test_the_first_step_of_a_stage_is_taken_singly() -> None:
    groups = StudentGroups()
    with training(run_of(2), groups) as first, training(run_of(3), groups) as second:
        groups.advance([first, second], advance_alone)
        assert (first.num_steps, second.num_steps) == (1, 1)
        grouped: list[int] = []

        def advance(run: TrainingRun, losses: Sequence[StepLoss] | None, seconds: float) -> None:
            grouped.append(len(losses or ()))
            assert seconds > 0
            run.advance(losses)

        groups.advance([first, second], advance)
        assert grouped == [1, 1]
        assert (first.num_steps, second.num_steps) == (2, 2)


def test_each_group_builds_its_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    class Counted(Group):  # type: ignore[misc]
        def __init__(self, steppers: list[Stepper], number: int) -> None:
            built.append(len(steppers))
            super().__init__(steppers, number)

    monkeypatch.setattr(grouping, "Group", Counted)
    teacher = LiveTeacher(TEACHER)
    runs = [
        bound(
            curriculum(total=Duration(number=8)),
            student=mlp(5, 4, seed=seed),
            teacher=teacher,
            stream=parity(),
            seed=seed,
        )
        for curriculum in (one_shot, from_labels)
        for seed in (2, 3)
    ]
    seats = [SharedRun(run=run, evaluate=evaluate, outputs=Outputs()) for run in runs]
    execute_shared(seats, metric="accuracy", batch_students=True)
    assert built == [2, 2]


def test_after_a_stage_students_share_no_memory() -> None:
    groups = StudentGroups()
    runs = [run_of(seed) for seed in (2, 3)]
    with training(runs[0], groups) as first, training(runs[1], groups) as second:
        groups.advance([first, second], advance_alone)
        weights = [next(run.student.module.parameters()) for run in runs]
        groups.advance([first, second], advance_any)
        shared = [weight.untyped_storage().data_ptr() for weight in weights]
        assert shared[0] == shared[1]
        while first.end is None:
            groups.advance([first, second], advance_any)
    apart = [weight.untyped_storage().data_ptr() for weight in weights]
    assert apart[0] != apart[1]


def test_the_seconds_of_a_group_are_shared_among_its_students(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, now = itertools.count(step=6.0), SingleDevice.now

    def read(placement: SingleDevice) -> float:
        """Return six seconds more at each call of the group; others read the real clock."""
        caller = sys._getframe(1).f_globals["__name__"]
        return next(clock) if caller == grouping.__name__ else now(placement)

    monkeypatch.setattr(SingleDevice, "now", read)
    runs = [run_of(seed, from_labels, steps=11) for seed in (2, 3)]
    seats = [SharedRun(run=run, evaluate=evaluate, outputs=Outputs()) for run in runs]
    ends = execute_shared(seats, metric="accuracy", batch_students=True)
    # Ten steps in a group, of 6 seconds by that clock, half of which each student is charged.
    assert [round(end.usage.seconds, -1) for end in ends] == [30, 30]


def test_a_run_that_has_ended_is_closed_and_stays_as_it_is(tmp_path: Path) -> None:
    groups = StudentGroups()
    run = run_of(2)
    run.student.module.eval()
    outputs = Outputs(folder=tmp_path)
    with TrainingRun(
        run, evaluate, metric="accuracy", outputs=outputs, stage_steps=groups.joining
    ) as training_run:
        while training_run.end is None:
            training_run.advance()
        size = (tmp_path / "records.jsonl").stat().st_size
        assert not run.student.module.training
        with locked(tmp_path, remedy="wait"):
            training_run.advance()
        assert (tmp_path / "records.jsonl").stat().st_size == size
