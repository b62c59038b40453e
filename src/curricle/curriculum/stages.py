"""Stages and curricula as frozen values.

A *curriculum* is an ordered tuple of stages. A *stage* has constant settings: a teacher,
objectives, trainable parameters and a duration. Both are frozen values without models or data;
`training.binding.bound_run` binds them to these and checks that they fit. A curriculum may have a
*warm start* before its first stage, which takes no step.

Design: the depth of a stage's forward pass is not a field. It follows from the taps of its
objectives, so it cannot contradict them; `trainable="all"` always runs the full student.
"""

from typing import Literal, TypeGuard, final

from pydantic import Field

from curricle.curriculum.durations import StageDurationField, UnlessExplained
from curricle.curriculum.initialization import START, RandomStart, WarmStart
from curricle.errors import SpecError
from curricle.objectives.base import Objective
from curricle.objectives.catalog import AnyObjective
from curricle.objectives.hidden import MatchHidden
from curricle.objectives.labels import LabelLossName
from curricle.objectives.logits import is_none
from curricle.values import LONGEST_NAME, Line, value

Saved = Literal["drop", "steps", "flops"]
"""Use of the planned steps that a stage with a rule does not take."""
TeacherReference = Literal["final"] | int
"""`final`, or the training step of a checkpoint of the teacher's trajectory."""


def _is_true(answer: bool) -> bool:  # noqa: FBT001 - called with the field's value
    return answer


def _is_drop(saved: str) -> bool:
    return saved == "drop"


@final
@value
class Stage:
    """A part of a curriculum with constant settings."""

    name: Line = Field(min_length=1, max_length=LONGEST_NAME)
    """Name, unique in the curriculum; records and reports use it."""
    duration: StageDurationField
    """Length of the stage in steps, examples or tokens, or a rule that ends it."""
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    """Terms of the stage's loss, a weighted sum."""
    teacher: TeacherReference = "final"
    """Teacher of the targets."""
    trainable: Literal["reached", "new", "all"] = "reached"
    """Trainable parameters. `reached`: all parameters reached by the objectives; `new`: only those
    not reached by an earlier stage, so earlier layers stay frozen; `all`: as `reached`, but the
    forward pass runs to the end of the student, without early exit."""
    optimizer_state: Literal["keep", "reset"] = "keep"
    """Whether the optimizer keeps or resets its state (momentum, second moments) at the beginning
    of the stage."""
    schedule: Literal["global", "own"] = "global"
    """Whether the learning rate follows the run's schedule, or a separate one over this stage."""
    learning_rate_scale: float = Field(default=1.0, gt=0)
    """Factor on the learning rate during the stage; positive."""
    required: bool = Field(default=True, exclude_if=_is_true)
    """Whether models that do not fit are an error. Otherwise the stage is left out, with a note,
    and its length is added to the last stage."""


@final
@value
class PricedLabels:
    """Labels in the place of all stages, where a step with the teacher is expensive.

    The choice is that of budgets of FLOPs and seconds, which pay for more steps from labels. Labels
    are taken if a least-squares start fits the whole student, so that it holds the content of
    the teacher before the first step, and if the price is reached. `runs.label_choice` makes it.
    """

    loss: LabelLossName = "cross_entropy"
    """Loss against the labels; see `LabelLoss`."""
    price: float = Field(default=2.0, gt=1)
    """Price from which on labels are taken: FLOPs of a step of the last stage, student and teacher,
    divided by those of a step from labels."""
    epochs: float = Field(default=16.0, gt=0)
    """Largest number of epochs of data of a known length that the budget may pay for from labels;
    labels that are repeated more often are learned by heart, and targets of a teacher are not."""


@final
@value
class Curriculum:
    """An ordered tuple of stages."""

    name: Line = Field(min_length=1, max_length=LONGEST_NAME)
    """Name of the method, for reports."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """The stages in order."""
    init: WarmStart | None = None
    """Initialization of the student's embeddings before the first step; None changes nothing."""
    note: str = ""
    """Reason of the stages, a sentence for people; without effect."""
    saved: Saved = Field(default="drop", exclude_if=_is_drop)
    """Use of the planned steps that a stage with a rule does not take: none, as many more steps of
    the last stage, or steps of the last stage with as many FLOPs in all."""
    labels: PricedLabels | None = Field(default=None, exclude_if=is_none)
    """Labels that may take the place of the stages where a budget counts FLOPs or seconds; None
    keeps the stages."""

    def __post_init__(self) -> None:
        """Check that stage names are unique, and that a random start has the shared projection.

        Raises:
            SpecError: If two stages have the same name, or the law of the shared projection is not
                that of the start.
        """
        names = [START] * (self.init is not None) + [stage.name for stage in self.stages]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise SpecError(f"'stages' must have different names; got {doubled[0]!r} twice")
        last = self.stages[-1]
        if isinstance(last.duration, UnlessExplained) or not last.required:
            raise SpecError(
                f"the last of the 'stages' must not be one that can be left out, since others "
                f"refer to its targets; got {last.name!r}"
            )
        objectives = [objective for stage in self.stages for objective in stage.objectives]
        laws = [
            objective.projection for objective in objectives if _has_shared_projection(objective)
        ]
        if isinstance(self.init, RandomStart) and set(laws) - {self.init.projection}:
            raise SpecError(
                f"'init' must have the projection shared by the layers, {laws[0].kind!r}; got "
                f"{self.init.projection.kind!r}"
            )

    @property
    def teachers(self) -> tuple[TeacherReference, ...]:
        """Return the distinct teachers of start and stages, in order of first use."""
        first: list[TeacherReference] = [] if self.init is None else ["final"]
        read = [
            stage.teacher for stage in self.stages if any(map(_needs_teacher, stage.objectives))
        ]
        return tuple(dict.fromkeys(first + read))


def _needs_teacher(objective: Objective) -> bool:
    return objective.needs_teacher


def _has_shared_projection(objective: Objective) -> TypeGuard[MatchHidden]:
    return isinstance(objective, MatchHidden) and objective.shared_projection
