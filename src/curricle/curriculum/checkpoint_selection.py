"""Selection of checkpoints of a teacher's training.

`equal` selects all of them, `transition` the checkpoint inside the teacher's phase transition and
the last (the 2-shot of [PD]), and a list selects the steps in it. The reason of a selection is a
note in the curriculum.

Design: a strategy is also evaluated before the teacher is trained, to check all other settings and
to estimate costs. `PlannedCheckpoints` stands for checkpoints without losses; the selection is then
provisional, with the final number of checkpoints and a note to that effect.

Units: losses are in nats, steps those of the teacher's training.

References:
    [PD] Panigrahi et al. 2024, arXiv 2410.05464.
"""

from dataclasses import dataclass
from typing import Literal, final

from curricle.curriculum.loss_transitions import (
    check_curve,
    find_transition,
    sudden_fall,
)
from curricle.errors import SpecError
from curricle.values import parse

DIGITS = range(2, 10)
"""Significant digits of losses in notes: the fewest at which the two losses differ."""
Select = Literal["equal", "transition"] | tuple[int, ...]
"""Rule of the selection, or the steps of the selected checkpoints."""


@final
@dataclass(frozen=True, slots=True)
class PlannedCheckpoints:
    """Checkpoints of a future training of the teacher, without losses."""

    steps: tuple[int, ...]
    """The training steps, ascending."""


@final
@dataclass(frozen=True, slots=True)
class SelectedCheckpoints:
    """The selected checkpoints."""

    steps: tuple[int, ...]
    """Their training steps, in order."""
    note: str = ""
    """Reason of the selection, a sentence for people; empty if the losses play no role."""


def select_checkpoints(select: Select, trajectory: object) -> SelectedCheckpoints:
    """Return the selected checkpoints.

    `transition` always gives two: the last, and among the earlier checkpoints the nearest to the
    middle of the fall, inside the transition or, without a checkpoint there, anywhere.

    Args:
        select: Rule of the selection, or steps.
        trajectory: A trajectory, planned checkpoints, or ascending steps.

    Raises:
        SpecError: If the trajectory has no ascending steps, lacks a listed checkpoint, or lacks the
            losses for `transition`.
    """
    steps = _steps(trajectory, "trajectory")
    if select == "equal":
        return SelectedCheckpoints(steps)
    if select == "transition":
        return _with_transition(steps, trajectory)
    listed = _steps(select, "select")
    missing = [step for step in listed if step not in steps]
    if missing:
        raise SpecError(
            f"'select' must list checkpoints of the trajectory, which has {list(steps)}; "
            f"got {missing[0]}"
        )
    return SelectedCheckpoints(listed)


def _steps(trajectory: object, name: str) -> tuple[int, ...]:
    """Return the steps of a trajectory or a list.

    Raises:
        SpecError: If they do not ascend, or there are none.
    """
    listed = getattr(trajectory, "steps", trajectory)
    steps: tuple[int, ...] = parse(
        dict[str, tuple[int, ...]], {name: () if listed is None else listed}
    )[name]
    if not steps or sorted(set(steps)) != list(steps):
        raise SpecError(f"{name!r} must hold ascending checkpoint steps; got {steps}")
    return steps


def _with_transition(steps: tuple[int, ...], trajectory: object) -> SelectedCheckpoints:
    if len(steps) == 1:
        raise SpecError(
            f"'select' 'transition' must have a checkpoint before the last; got {list(steps)}"
        )
    *earlier, last = steps
    if isinstance(trajectory, PlannedCheckpoints):
        step = earlier[len(earlier) // 2]
        return SelectedCheckpoints(
            (step, last),
            f"checkpoint {step} is provisional: the one inside the teacher's transition is known "
            f"only after the teacher was trained",
        )
    losses: dict[int, float] = dict(getattr(trajectory, "losses", ()))
    missing = [step for step in steps if step not in losses]
    if missing:
        raise SpecError(
            f"'select' 'transition' must have the teacher's loss at every checkpoint; there is "
            f"none at step {missing[0]}, as in trajectories from outside of curricle; list the "
            f"checkpoints instead"
        )
    step, why = _nearest(tuple((step, losses[step]) for step in steps))
    return SelectedCheckpoints((step, last), why)


def _nearest(losses: tuple[tuple[int, float], ...]) -> tuple[int, str]:
    """Return the checkpoint before the last nearest to the middle of the fall, and the reason."""
    check_curve(losses)
    transition = find_transition(losses)
    high, low = losses[0], losses[-1]
    if transition is None:
        step = _nearest_to((high[1] + low[1]) / 2, losses[:-1])
        sudden = sudden_fall(losses)
        if sudden is not None:
            return step, (
                f"the checkpoints are too sparse to hold a transition: the teacher's loss falls "
                f"({_fall(high[1], low[1])}) between the neighbors {sudden[0]} and "
                f"{sudden[1]}; {step} is the nearest to half-way down, more checkpoints would help"
            )
        return step, (
            f"the teacher's loss has no transition ({_fall(high[1], low[1])} between "
            f"{high[0]} and {low[0]}); checkpoint {step} is the nearest to half-way down"
        )
    where = (
        f"the teacher's transition (loss {_fall(transition.before, transition.after)} between "
        f"{transition.start} and {transition.end})"
    )
    inside = tuple((step, loss) for step, loss in losses[:-1] if transition.holds(step, loss))
    if inside:
        step = _nearest_to(transition.middle, inside)
        return step, f"checkpoint {step} lies inside {where}"
    around = tuple(
        (step, loss) for step, loss in losses[:-1] if transition.start <= step <= transition.end
    )
    step = _nearest_to(transition.middle, around)
    return (
        step,
        f"no checkpoint lies inside {where}; {step} is the nearest, more checkpoints would help",
    )


def _fall(before: float, after: float) -> str:
    """Return two losses with enough digits to differ."""
    texts = ((f"{before:#.{digits}g}", f"{after:#.{digits}g}") for digits in DIGITS)
    high, low = next((pair for pair in texts if pair[0] != pair[1]), (f"{before:#.2g}",) * 2)
    return f"{high} -> {low}"


def _nearest_to(level: float, losses: tuple[tuple[int, float], ...]) -> int:
    return min(losses, key=lambda checkpoint: abs(checkpoint[1] - level))[0]
