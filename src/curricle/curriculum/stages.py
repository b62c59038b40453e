"""What is a curriculum made of?

A *curriculum* is an ordered tuple of stages. A *stage* is one homogeneous stretch: which teacher,
which objectives, which parameters train, and for how long. Both are frozen values that know
neither models nor data; `training.binding` gives them those and checks that they fit. A curriculum
may have a *warm start* before its first stage, which takes no step.

Design: how deep a stage runs is not a field. It follows from what its objectives read, so it
cannot contradict them; `trains="all"` runs the whole student anyway.
"""

from typing import Literal, TypeGuard, final

from pydantic import Field

from curricle.curriculum.durations import DurationField
from curricle.curriculum.starts import START, RandomStart, WarmStart
from curricle.errors import SpecError
from curricle.objectives.catalog import AnyObjective
from curricle.objectives.hidden import MatchHidden
from curricle.objectives.terms import Objective
from curricle.specs import LONGEST_NAME, Line, value

TeacherReference = Literal["final"] | int
"""`final`, or the training step of a checkpoint of the teacher's trajectory."""


@final
@value
class Stage:
    """One homogeneous stretch of a curriculum."""

    name: Line = Field(min_length=1, max_length=LONGEST_NAME)
    """Name, unique in the curriculum; records and reports use it."""
    duration: DurationField
    """How long the stage lasts, in steps, examples or tokens."""
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    """What the stage minimizes: the weighted sum of these."""
    teacher: TeacherReference = "final"
    """Which teacher the targets come from."""
    trains: Literal["up_to", "own", "all"] = "up_to"
    """Which parameters train. `up_to`: all that the objectives reach; `own`: of those, only the
    ones that no earlier stage has reached, so earlier layers stay frozen; `all`: the whole student
    runs, without early exit, and what the objectives reach trains."""
    optimizer_state: Literal["keep", "reset"] = "keep"
    """Whether the optimizer keeps its state (momentum, second moments) when the stage begins."""
    schedule: Literal["global", "own"] = "global"
    """Whether the learning rate follows the run's schedule, or one of its own over this stage."""
    learning_rate_scale: float = Field(default=1.0, gt=0)
    """Factor on the learning rate during the stage; positive."""


@final
@value
class Curriculum:
    """An ordered tuple of stages."""

    name: Line = Field(min_length=1, max_length=LONGEST_NAME)
    """Name of the method, for reports."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The stages in order."""
    start: WarmStart | None = None
    """What sets the student's embeddings before the first step; None leaves them as they are."""
    note: str = ""
    """Why the stages are as they are, in a sentence for people; changes nothing."""

    def __post_init__(self) -> None:
        """Check that stage names are unique, and that a random start has the shared projection.

        Raises:
            SpecError: If two stages share a name, or layers share a projection of another law than
                the start's.
        """
        names = [START] * (self.start is not None) + [stage.name for stage in self.stages]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise SpecError(f"'stages' must have different names; got {doubled[0]!r} twice")
        laws = [one.projection for stage in self.stages for one in stage.objectives if _shares(one)]
        if isinstance(self.start, RandomStart) and set(laws) - {self.start.projection}:
            raise SpecError(
                f"'start' must have the projection that the layers share; got "
                f"{self.start.projection.kind!r} where they have {laws[0].kind!r}"
            )

    @property
    def teachers(self) -> tuple[TeacherReference, ...]:
        """Return the teachers that start and stages read, each once, in order of first use."""
        first: list[TeacherReference] = [] if self.start is None else ["final"]
        read = [stage.teacher for stage in self.stages if any(map(_reads, stage.objectives))]
        return tuple(dict.fromkeys(first + read))


def _reads(objective: Objective) -> bool:
    return objective.needs_teacher


def _shares(objective: Objective) -> TypeGuard[MatchHidden]:
    return isinstance(objective, MatchHidden) and objective.shared_projection
