"""Explained share of the final targets, by which a stage is left out.

The share is that of `objectives.explained_share` for the last stage, over some batches that the run
has not read.

Design: batches, examples and FLOPs of the measurement are usage of the run. It is made before a
stage alone, so a run that is resumed inside of a stage has it behind it, and one that is resumed at
a border repeats it on the same weights and batches, with the same result.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from curricle.curriculum.durations import UnlessExplained
from curricle.models.restoring import modes_kept
from curricle.objectives.base import explained_objective
from curricle.records import Usage
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.loop.stage_loss import open_stage_loss
from curricle.training.setup.costs import Meter

PROBE_BATCHES = 8
"""Batches on which the share is measured."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A measured share with its cost."""

    share: float | None
    """Explained share, at most 1; None if the targets do not show it, as sparse ones do not."""
    steps: int
    """Steps that the student had taken."""
    usage: Usage
    """Cost of the measurement."""

    def leaves_out(self, stage: BoundStage) -> bool:
        """Return whether a stage is left out."""
        rule = stage.declared.duration
        return (
            isinstance(rule, UnlessExplained)
            and self.share is not None
            and self.share >= rule.share
        )


def explained_before(
    run: BoundRun, stage: BoundStage, usage: Usage, last: Explained | None = None
) -> Explained | None:
    """Return the explained share before a stage that may be left out; None for others.

    Args:
        run: The run.
        stage: The stage that is to begin.
        usage: Usage until now.
        last: The last measurement of the run, which holds until a step is taken.
    """
    if not isinstance(stage.declared.duration, UnlessExplained):
        return None
    if last is not None and last.steps == usage.steps:
        return replace(last, usage=Usage())
    # After the batches of a start and of training, which the student may have been fitted to, and
    # before the end of the run, since stored targets go no further.
    read = max(usage.steps, usage.examples // run.stream.batch_size)
    number = min(PROBE_BATCHES, run.num_steps)
    first = min(read, run.num_steps - number)
    return _measure(run, range(first, first + number), usage.steps)


def _measure(run: BoundRun, steps: range, num_steps: int) -> Explained:
    placement, stream, module = run.settings.placement, run.stream, run.student.module
    num_parts = run.settings.gradient_accumulation_steps
    begins, meters = placement.now(), {"student": Meter(), "teacher": Meter()}
    with modes_kept(module), torch.no_grad(), open_stage_loss(run, run.stages[-1]) as loss:
        # As in an evaluation: without dropout, and without moving statistics.
        module.eval()
        # The first objective on logits is the main one.
        index, objective = next(
            (number, objective)
            for number, term in enumerate(loss.terms)
            if (objective := explained_objective(term.objective)) is not None
        )
        pairs = list[tuple[Tensor, Tensor] | None]()
        for step in steps:
            # In micro-batches, as in training, so that no more memory is needed than there.
            for micro_batch in stream.batch(step).split(num_parts):
                # Whole, so that every process measures alike.
                batch = placement.moved(micro_batch)
                with meters["teacher"].running():
                    targets = loss.targets(batch)
                with meters["student"].running():
                    states = loss.student_states(batch)
                    pairs.append(objective.explained_rows(states, targets[index], batch))
        known = [pair for pair in pairs if pair is not None]
        share = objective.explained_share(known) if len(known) == len(pairs) else None
    if share is not None:
        # Processors may round differently, and all must decide alike.
        share = placement.total(share) / placement.num_processes
    number = len(steps)
    return Explained(
        share=share,
        steps=num_steps,
        usage=Usage(
            examples=number * stream.batch_size,
            tokens=number * stream.tokens_per_batch,
            student_flops=meters["student"].flops,
            teacher_flops=meters["teacher"].flops,
            seconds=placement.now() - begins,
        ),
    )
