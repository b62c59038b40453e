"""Batched students are a function of their weights, alone or several."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import one_shot
from curricle.teachers.live import LiveTeacher
from curricle.training.fast.batched_students import BatchedStudents, is_counter
from curricle.training.loop.stepping import Stepper, stepping
from tests.parts import bound, mlp


@pytest.fixture
def steppers() -> Iterator[list[Stepper]]:
    """Yield the open stages of two students of one teacher."""
    teacher = LiveTeacher(mlp(16, 12, seed=1))
    with ExitStack() as stack:
        opened = []
        for seed in (2, 3):
            run = bound(
                one_shot(total=Duration(number=4)), student=mlp(5, 4, seed=seed), teacher=teacher
            )
            optimizer = run.optimizer.build(run.student.module.parameters())
            opened.append(stack.enter_context(stepping(run, run.stages[0], optimizer)))
        yield opened


@pytest.mark.parametrize("number", [1, 2])
def test_totals_are_those_of_each_student_with_the_weights_given(
    steppers: list[Stepper], number: int
) -> None:
    some = steppers[:number]
    batch = some[0].batch(0)
    own = [one.loss.sums(batch, one.loss.targets(batch))[0].item() for one in some]
    students = BatchedStudents(some)
    targets = students.gathered([one.loss.targets(batch) for one in some])
    (found,) = students.totals(students.weights, batch, targets)
    assert found.flatten().tolist() == pytest.approx(own, rel=1e-5)
    zeros = {name: torch.zeros_like(one) for name, one in students.weights.items()}
    (other,) = students.totals(zeros, batch, targets)
    assert other.shape == found.shape
    assert not torch.allclose(other, found)


def test_who_is_joined_agrees_with_itself(steppers: list[Stepper]) -> None:
    batch = steppers[0].batch(0)
    assert BatchedStudents(steppers[:1]).agrees(batch)
    assert BatchedStudents(steppers).agrees(batch)


def test_losses_are_one_a_student(steppers: list[Stepper]) -> None:
    (alone,) = BatchedStudents(steppers[:1]).losses([torch.tensor(16.0)], [8])
    assert alone.loss.item() == 16.0 / 8
    both = BatchedStudents(steppers).losses([torch.tensor([16.0, 8.0])], [8])
    assert [one.loss.item() for one in both] == [2.0, 1.0]


def test_only_the_number_of_updates_is_a_counter() -> None:
    assert is_counter("step", torch.tensor(3.0))
    assert not is_counter("exp_avg", torch.tensor(3.0))
    assert not is_counter("step", 3)
