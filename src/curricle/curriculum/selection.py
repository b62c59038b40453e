"""Which checkpoints of a teacher's training does a student follow?

`equal` takes all of them, `transition` the one inside the teacher's phase transition and the last,
which is the 2-shot of [PD], and a list takes those that it names. Why one was taken is said in a
sentence that travels with the curriculum.

Design: a strategy also has to answer before the teacher is taught, so that everything else can be
checked and priced. `PlannedCheckpoints` says that losses are still to come; the choice is then
provisional, has as many checkpoints as the later one, and its sentence says so.

Units: losses are in nats, steps those of the teacher's training.

References:
    [PD] Panigrahi et al. 2024, arXiv 2410.05464.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, final, runtime_checkable

from curricle.curriculum.transitions import (
    checked_curve,
    find_transition,
    sudden_fall,
)
from curricle.errors import SpecError
from curricle.protocols import conforms
from curricle.specs import parse

DIGITS = range(2, 10)
"""Significant digits with which losses are told: the fewest that tell them apart."""
Select = Literal["equal", "transition"] | tuple[int, ...]
"""How checkpoints are selected, or the steps of those that are."""


@runtime_checkable
class HasSteps(Protocol):
    """Anything that lists the training steps of its checkpoints, such as a trajectory."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the steps, ascending."""
        ...


@runtime_checkable
class HasLosses(HasSteps, Protocol):
    """Anything that also knows the teacher's loss at its checkpoints."""

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """Return step and loss of each checkpoint, ascending in steps."""
        ...


@final
@dataclass(frozen=True, slots=True)
class PlannedCheckpoints:
    """Checkpoints that a training will keep; how good the teacher is there is not known yet."""

    steps: tuple[int, ...]
    """The training steps, ascending."""


@final
@dataclass(frozen=True, slots=True)
class Selection:
    """The checkpoints that a student follows."""

    steps: tuple[int, ...]
    """Their training steps, in order."""
    note: str = ""
    """Why these, in a sentence for people; empty if nothing had to be found out."""


def select_checkpoints(select: Select, trajectory: Any) -> Selection:  # noqa: ANN401 - see Raises
    """Return the checkpoints that a student follows.

    `transition` always gives two: of the checkpoints before the last, the one that is nearest to
    half-way down, looked for inside the transition or, if there is none, anywhere; and the last.

    Args:
        select: How to select.
        trajectory: A trajectory, planned checkpoints, or ascending steps.

    Raises:
        SpecError: If the trajectory holds no ascending steps, does not have a checkpoint that is
            listed, or does not carry the losses that `transition` needs.
    """
    steps = _steps(trajectory, "trajectory")
    if select == "equal":
        return Selection(steps)
    if select == "transition":
        return _with_transition(steps, trajectory)
    chosen = _steps(select, "select")
    missing = [step for step in chosen if step not in steps]
    if missing:
        raise SpecError(
            f"'select' must list checkpoints of the trajectory, which has {list(steps)}; "
            f"got {missing[0]}"
        )
    return Selection(chosen)


def _steps(given: object, name: str) -> tuple[int, ...]:
    """Return ascending steps.

    Raises:
        SpecError: If they are not, or there are none.
    """
    listed = given.steps if conforms(given, HasSteps) else given
    steps: tuple[int, ...] = parse(
        dict[str, tuple[int, ...]], {name: () if listed is None else listed}
    )[name]
    if not steps or sorted(set(steps)) != list(steps):
        raise SpecError(f"{name!r} must hold ascending checkpoint steps; got {steps}")
    return steps


def _with_transition(steps: tuple[int, ...], trajectory: object) -> Selection:
    if len(steps) == 1:
        raise SpecError(
            f"'select' 'transition' must have a checkpoint before the last; got {list(steps)}"
        )
    *earlier, last = steps
    if isinstance(trajectory, PlannedCheckpoints):
        step = earlier[len(earlier) // 2]
        return Selection(
            (step, last),
            f"checkpoint {step} is provisional: which one lies inside the teacher's transition "
            f"shows when it is taught",
        )
    losses = dict(trajectory.losses if conforms(trajectory, HasLosses) else ())
    missing = [step for step in steps if step not in losses]
    if missing:
        raise SpecError(
            f"'select' 'transition' must have the teacher's loss at every checkpoint; there is "
            f"none at step {missing[0]}, as for trajectories that curricle has not kept itself; "
            f"list the checkpoints instead"
        )
    step, why = _nearest(tuple((step, losses[step]) for step in steps))
    return Selection((step, last), why)


def _nearest(losses: tuple[tuple[int, float], ...]) -> tuple[int, str]:
    """Return the checkpoint before the last that is nearest to half-way down, and why it is."""
    checked_curve(losses)
    found = find_transition(losses)
    high, low = losses[0], losses[-1]
    if found is None:
        step = _nearest_to((high[1] + low[1]) / 2, losses[:-1])
        sudden = sudden_fall(losses)
        if sudden is not None:
            return step, (
                f"the checkpoints are too sparse to hold a transition: the teacher's loss falls "
                f"({_fall(high[1], low[1])}) between the neighbors {sudden[0]} and "
                f"{sudden[1]}; {step} is the nearest to half-way down, more would help"
            )
        return step, (
            f"the teacher's loss has no transition ({_fall(high[1], low[1])} between "
            f"{high[0]} and {low[0]}); checkpoint {step} is the nearest to half-way down"
        )
    where = (
        f"the teacher's transition (loss {_fall(found.before, found.after)} between "
        f"{found.start} and {found.end})"
    )
    inside = tuple(one for one in losses[:-1] if found.holds(*one))
    if inside:
        step = _nearest_to(found.middle, inside)
        return step, f"checkpoint {step} lies inside {where}"
    around = tuple(one for one in losses[:-1] if found.start <= one[0] <= found.end)
    step = _nearest_to(found.middle, around)
    return step, f"no checkpoint lies inside {where}; {step} is the nearest, more would help"


def _fall(before: float, after: float) -> str:
    """Return two losses with as many digits as tell them apart."""
    told = ((f"{before:#.{digits}g}", f"{after:#.{digits}g}") for digits in DIGITS)
    high, low = next((pair for pair in told if pair[0] != pair[1]), (f"{before:#.2g}",) * 2)
    return f"{high} -> {low}"


def _nearest_to(level: float, losses: tuple[tuple[int, float], ...]) -> int:
    return min(losses, key=lambda one: abs(one[1] - level))[0]
