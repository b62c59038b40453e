"""An automatic start is the first that can be bound, with the reasons against the others."""

import copy
from typing import Any

import pytest

from curricle.curriculum.initialization import AutoStart, RandomStart
from curricle.curriculum.strategies import one_shot
from curricle.errors import BindError
from curricle.models.tapped import TappedModel
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.start_choice import StartChoice, choose_start
from curricle.training.setup.placement import SingleDevice
from tests.parts import bound, mlp, parity


def choice(student: TappedModel, teacher: TappedModel | None = None) -> StartChoice:
    live = None if teacher is None else LiveTeacher(teacher)
    return choose_start(
        AutoStart(), student, live, stream=parity(), seed=0, placement=SingleDevice("cpu")
    )


def started(run: BoundRun) -> str:
    assert run.warm_start is not None
    return run.warm_start.declared.kind


def test_candidates_are_tried_from_all_blocks_to_embeddings() -> None:
    kinds = [candidate.kind for candidate in AutoStart().candidates]
    assert kinds == ["least_squares", "random", "principal"]


def test_the_first_start_that_can_be_bound_is_taken_and_noted() -> None:
    # A student wider than its teacher has no fit by least squares.
    run = bound(
        one_shot(total="20 steps", init="auto"),
        student=mlp(16, seed=1),
        teacher=LiveTeacher(mlp(5)),
    )
    assert started(run) == "random"
    (note,) = (note for note in run.notes if note.startswith("the start"))
    assert note.startswith(
        "the start is 'random', the first that fits the models; not applicable: 'least_squares' ("
    )


def test_a_student_that_no_start_fits_stays_as_drawn_and_the_reasons_are_noted() -> None:
    student = mlp(5)
    for weight in student.module.parameters():
        weight.requires_grad_(False)
    found = choice(student, mlp(16, seed=1))
    assert found.start is None
    (note,) = found.notes
    assert note.startswith(
        "the student begins as drawn, since no closed-form start fits the models; not applicable: "
    )
    assert "'random', 'principal' ('init' must set weights that are trained" in note


def test_stored_targets_leave_the_student_as_drawn() -> None:
    found = choice(mlp(5))
    assert found.start is None
    assert found.notes == ("the student begins as drawn, since stored targets have no weights",)


def test_a_declared_start_that_does_not_fit_is_an_error() -> None:
    student = mlp(5)
    for weight in student.module.parameters():
        weight.requires_grad_(False)
    with pytest.raises(BindError, match="'init'"):
        choose_start(
            RandomStart(),
            student,
            LiveTeacher(mlp(16, seed=1)),
            stream=parity(),
            seed=0,
            placement=SingleDevice("cpu"),
        )


def test_an_automatic_start_counts_as_the_one_that_was_taken() -> None:
    parts: dict[str, Any] = {"student": mlp(16, seed=1), "teacher": LiveTeacher(mlp(5))}
    automatic = bound(one_shot(total="20 steps", init="auto"), **parts)
    declared = bound(one_shot(total="20 steps", init="random"), **parts)
    assert automatic.warm_start is not None
    assert declared.warm_start is not None
    assert automatic.warm_start.declared == declared.warm_start.declared
    assert automatic.plans == declared.plans


def in_shares() -> LiveTeacher:
    """Return a teacher that runs as a copy, as one in shares does."""
    return LiveTeacher(mlp(16, seed=1)).divided(copy.deepcopy)


def test_a_teacher_in_shares_leaves_the_student_as_drawn() -> None:
    chosen = choose_start(
        AutoStart(), mlp(5), in_shares(), stream=parity(), seed=0, placement=SingleDevice("cpu")
    )
    assert chosen.start is None
    note = "the student begins as drawn, since the teacher is in shares"
    assert chosen.notes == (note,)


def test_a_start_from_a_teacher_in_shares_is_refused() -> None:
    message = "'init' must be None with teacher_parallel='fsdp2', .*; got 'random'; set teacher_par"
    with pytest.raises(BindError, match=message):
        bound(one_shot(total="20 steps", init="random"), teacher=in_shares())
