"""Groups of students that take their steps as one batched model.

Design: groups are formed anew at every step, so students begin, change stages and end at their own
times; a group of the same students as before keeps its model.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

from curricle.training.fast.stacking import Group, batching_key, has_state, is_batchable, separate
from curricle.training.loop.engine import TrainingRun
from curricle.training.loop.stage_loss import StepLoss
from curricle.training.loop.stepping import Stepper, TakeSteps

Advance = Callable[[TrainingRun, Sequence[StepLoss] | None, float], None]
"""Function of a run, losses and seconds: with losses, counts steps that its group has taken, with
the run's share of their time; with None, takes one step of the run alone."""


@final
class StudentGroups:
    """Students that take their steps in groups."""

    def __init__(self, number: int = 1) -> None:
        """Begin with no group.

        Args:
            number: Steps in one compiled call; 1 compiles nothing.
        """
        self._number = number
        self._keys: dict[Stepper, str | None] = {}
        self._groups: dict[str, Group] = {}
        # In the order in which the stages were opened.
        self._places: dict[Stepper, int] = {}
        self._opened = itertools.count()

    def advance(self, runs: Sequence[TrainingRun], advance: Advance) -> None:
        """Advance runs that have taken equally many steps.

        Args:
            runs: The runs of the students; each takes at least one step.
            advance: Advances a run, by losses that were taken in a group if there are any.
        """
        step = runs[0].num_steps
        candidates: dict[str, list[TrainingRun]] = {}
        for run in runs:
            if (key := self._key(run.stepper)) is not None:
                candidates.setdefault(key, []).append(run)
        losses_of_runs: dict[int, tuple[list[StepLoss], float]] = {}
        placement = runs[0].run.settings.placement
        for key, group in candidates.items():
            # Runs come in turns; a group keeps its model only if its students keep their order.
            group.sort(key=lambda run: -1 if run.stepper is None else self._places[run.stepper])
            if len(group) <= 1:
                continue
            started = placement.now()
            losses = self._losses(key, group, step)
            share = (placement.now() - started) / len(group)
            if losses is not None:
                for place, run in enumerate(group):
                    losses_of_runs[id(run)] = [row[place] for row in losses], share
        for run in runs:
            advance(run, *losses_of_runs.get(id(run), (None, 0.0)))

    def _losses(
        self, key: str, runs: Sequence[TrainingRun], step: int
    ) -> list[list[StepLoss]] | None:
        """Take the next step or block of a group.

        Returns:
            For each step the loss of each student; None if the students must step singly.
        """
        steppers = [run.stepper for run in runs if run.stepper is not None]
        group = self._groups.get(key)
        if group is None or group.steppers != steppers:
            group = self._groups[key] = Group(steppers, self._number)
            if not group.agrees(step):
                # They only look alike; comparing them again would give the same.
                self._keys.update(dict.fromkeys(steppers))
                del self._groups[key]
                for stepper in steppers:
                    separate(stepper)
                return None
        losses = None
        # A block must not run past a step after which any student is evaluated or saved.
        if 1 < self._number <= min(run.stop for run in runs) - step:
            losses = group.take_block(step)
        return losses or group.take(step)

    def _key(self, stepper: Stepper | None) -> str | None:
        """Return a text that is equal for students that may be batched; None for no group."""
        # The first step of a stage creates the optimizer's state, from which a group is joined.
        if stepper is None or not stepper.num_taken:
            return None
        if stepper not in self._keys:
            self._keys[stepper] = batching_key(stepper) if is_batchable(stepper) else None
        # Looked up at every step: a weight without a gradient in the first may get its state later.
        return self._keys[stepper] if has_state(stepper) else None

    @contextmanager
    def joining(self, stepper: Stepper) -> Iterator[TakeSteps]:
        """Let the steps of a stage be taken in groups until it closes.

        Args:
            stepper: The steps of the stage.

        Yields:
            The way to take single steps.
        """
        self._places[stepper] = next(self._opened)
        try:
            yield stepper.take
        finally:
            del self._places[stepper]
            key = self._keys.pop(stepper, None)
            if key is not None:
                # The student gets memory of its own again.
                separate(stepper)
                # The other students form a new group; this one would hold the memory of all.
                self._groups.pop(key, None)
