"""Selected checkpoints and the notes on them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.curriculum.checkpoint_selection import (
    PlannedCheckpoints,
    select_checkpoints,
)
from curricle.errors import SpecError
from curricle.teachers.trajectory import Trajectory


@dataclass(frozen=True)
class Kept:
    """A trajectory with losses."""

    losses: tuple[tuple[int, float], ...]

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(step for step, _ in self.losses)


INSIDE = Kept(((10, 0.7), (20, 0.7), (30, 0.6), (40, 0.3), (50, 0.0), (60, 0.0)))
BETWEEN = Kept(((10, 0.7), (20, 0.7), (30, 0.7), (40, 0.0), (50, 0.0)))
SLOPE = Kept(((10, 4.0), (20, 2.5), (30, 1.8), (40, 1.4), (50, 1.2)))


def test_steps_and_losses_of_a_trajectory_are_read() -> None:
    trajectory = Trajectory(tuple((step, Path("file")) for step in INSIDE.steps), INSIDE.losses)
    assert select_checkpoints("transition", trajectory) == select_checkpoints("transition", INSIDE)


def test_all_checkpoints_are_taken_without_a_word() -> None:
    actual = select_checkpoints("equal", INSIDE)
    assert (actual.steps, actual.note) == ((10, 20, 30, 40, 50, 60), "")


def test_of_two_checkpoints_inside_the_one_nearest_to_half_way_is_taken() -> None:
    actual = select_checkpoints("transition", INSIDE)
    assert actual.steps == (40, 60)
    assert actual.note == (
        "checkpoint 40 lies inside the teacher's transition (loss 0.70 -> 0.0 between 20 and 50)"
    )


def test_a_transition_between_two_checkpoints_is_told() -> None:
    actual = select_checkpoints("transition", BETWEEN)
    assert actual.steps == (30, 50)
    assert actual.note == (
        "no checkpoint lies inside the teacher's transition (loss 0.70 -> 0.0 between 30 and 40); "
        "30 is the nearest, more checkpoints would help"
    )


def test_a_loss_without_transition_is_told() -> None:
    actual = select_checkpoints("transition", SLOPE)
    assert actual.steps == (20, 50)
    assert actual.note == (
        "the teacher's loss has no transition (4.0 -> 1.2 between 10 and 50); checkpoint 20 is "
        "the nearest to half-way down"
    )


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (4.0, 1.2, "4.0 -> 1.2"),
        (0.693, 0.6915, "0.693 -> 0.692"),
        (5e-5, 3e-5, "5.0e-05 -> 3.0e-05"),
        (0.7, 0.7, "0.70 -> 0.70"),
    ],
)
def test_losses_are_told_with_the_digits_that_tell_them_apart(
    first: float, last: float, message: str
) -> None:
    flat = Kept(tuple((step, first + (last - first) * step / 9) for step in range(10)))
    assert f"({message} between 0 and 9)" in select_checkpoints("transition", flat).note


@pytest.mark.parametrize("losses", [(0.7, 0.0, 0.0, 0.0, 0.0), (0.7, 0.69, 0.0), (0.7, 0.0)])
def test_checkpoints_too_sparse_for_a_transition_are_told(losses: tuple[float, ...]) -> None:
    actual = select_checkpoints("transition", Kept(tuple(enumerate(losses, start=1))))
    fall = losses.index(0.0)
    assert actual.note == (
        f"the checkpoints are too sparse to hold a transition: the teacher's loss falls (0.70 -> "
        f"0.0) between the neighbors {fall} and {fall + 1}; {actual.steps[0]} is the nearest to "
        f"half-way down, more checkpoints would help"
    )


def test_a_teacher_that_is_still_to_be_taught_gives_a_provisional_choice() -> None:
    actual = select_checkpoints("transition", PlannedCheckpoints((10, 20, 30, 40, 50)))
    assert actual.steps == (30, 50)
    assert actual.note == (
        "checkpoint 30 is provisional: the one inside the teacher's transition is known only after "
        "the teacher was trained"
    )


@given(losses=st.lists(st.floats(0, 10), min_size=2, max_size=30))
def test_the_provisional_choice_is_as_long_as_the_later_one(losses: list[float]) -> None:
    remaining = Kept(tuple(enumerate(losses, start=1)))
    for trajectory in (remaining, PlannedCheckpoints(remaining.steps)):
        first, last = select_checkpoints("transition", trajectory).steps
        assert first < last == len(losses)


def test_a_list_names_checkpoints() -> None:
    assert select_checkpoints((20, 50), PlannedCheckpoints((20, 30, 50))).steps == (20, 50)


def test_a_listed_checkpoint_must_be_there() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'select' must list checkpoints of the trajectory, which has \[20, 30\]; got 25$",
    ):
        select_checkpoints((20, 25), (20, 30))


@pytest.mark.parametrize("listed", [(), (30, 20), (20, 20)])
def test_a_list_ascends(listed: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"^'select' must hold ascending checkpoint steps; got "):
        select_checkpoints(listed, (20, 30))


@pytest.mark.parametrize("trajectory", [(10, 20), Trajectory(()), Kept(())])
def test_nothing_is_found_without_checkpoints_or_losses(trajectory: object) -> None:
    with pytest.raises(SpecError, match=r"^'(trajectory|select)' "):
        select_checkpoints("transition", trajectory)


def test_bare_steps_have_no_losses() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'select' 'transition' must have the teacher's loss at every checkpoint; there is "
        r"none at step 10, ",
    ):
        select_checkpoints("transition", (10, 20))


def test_a_single_checkpoint_has_none_before_it() -> None:
    with pytest.raises(
        SpecError,
        match=r"^'select' 'transition' must have a checkpoint before the last; got \[10\]$",
    ):
        select_checkpoints("transition", Kept(((10, 0.5),)))
