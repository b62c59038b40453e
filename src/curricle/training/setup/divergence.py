"""Reactions to a step whose loss is not finite or explodes.

Such a step updates nothing. `StopRun` ends the run, `SkipSteps` goes on with the next step, and
`RollBack` returns to the newest checkpoint and takes the steps since then again, with a lower
learning rate. Each reaction is recorded (`RecoveryRecord`), and the batch of the step is kept in
the run folder.

Design: a reaction is no fact of a run. Without a failed step it changes nothing, so a run that has
ended with an error goes on from its checkpoint under another reaction.

Units: `explosion` is a ratio of losses, `at_most` a number of steps or returns.
"""

from typing import Annotated, Literal, final

from pydantic import Field

from curricle.values import value


@final
@value
class StopRun:
    """End the run with an error; its last checkpoint stays."""

    kind: Literal["stop"] = "stop"
    explosion: float | None = Field(default=None, gt=1)
    """Multiple of the running mean of the stage's losses from which on a loss counts as diverged;
    None judges finiteness alone. The mean has a memory of about 32 steps, and judges from the 33rd
    step of a stage on where it is positive."""


@final
@value
class SkipSteps:
    """Leave out the update of the step, and go on with the next one.

    Buffers, such as running statistics, are restored, and gradients must be finite too.
    """

    kind: Literal["skip"] = "skip"
    at_most: int = Field(default=10, gt=0)
    """Number of skipped steps of a run; a further failed step ends it."""
    explosion: float | None = Field(default=None, gt=1)
    """As in `stop`."""


@final
@value
class RollBack:
    """Return to the newest checkpoint, and go on from there with a lower learning rate.

    The cost of the steps that are taken again stays in the usage.
    """

    kind: Literal["roll_back"] = "roll_back"
    at_most: int = Field(default=3, gt=0)
    """Number of returns of a run; a further failed step ends it."""
    learning_rate_scale: float = Field(default=0.5, gt=0, lt=1)
    """Factor of the learning rate for the rest of the run, once for each return."""
    explosion: float | None = Field(default=None, gt=1)
    """As in `stop`."""


OnDivergence = Annotated[StopRun | SkipSteps | RollBack, Field(discriminator="kind")]
"""Reaction to a diverged step."""
