"""Records of a run: opening, steps, usage.

The engine decides when a record is written; this module builds its content: the opening of a run,
the losses of a step, and the usage until then.

Units: FLOPs and steps are those of the plan, so they do not depend on how a run is executed; tokens
are those of the batches that were read, and where these differ in length FLOPs go with them;
seconds are measured by the engine.
"""

import platform
from dataclasses import replace

import torch

from curricle.extras import package_version
from curricle.records import RunRecord, StepRecord, Usage
from curricle.teachers.live import num_parameters
from curricle.teachers.stored import StoredTeacher
from curricle.training.binding.batches import relative_tokens
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.loop.stage_loss import StepLoss


def spend(run: BoundRun, before: Usage, stage: BoundStage, *, done: int, seconds: float) -> Usage:
    """Return the usage after some steps of a stage.

    Args:
        run: The run.
        before: Usage before the first of them.
        stage: The stage.
        done: Steps done by now, counted over the whole run.
        seconds: Seconds of training by now.
    """
    steps, stream = done - before.steps, run.stream
    tokens, expected = relative_tokens(stream, before.steps, done)
    # From the start of the stage and not step by step, and in integers: a float does not hold
    # the FLOPs of long runs exactly.
    student, teacher = steps * stage.plan.student_flops, steps * stage.plan.teacher_flops
    if tokens != expected:
        # FLOPs were measured on the first batch; others cost about as much a position.
        student, teacher = (flops * tokens // expected for flops in (student, teacher))
    return replace(
        before,
        steps=done,
        examples=before.examples + steps * stream.batch_size,
        tokens=before.tokens + tokens,
        student_flops=before.student_flops + student,
        teacher_flops=before.teacher_flops + teacher,
        seconds=seconds,
    )


def step_record(
    stage: BoundStage, loss: StepLoss, *, learning_rate: float, usage: Usage
) -> StepRecord:
    """Return the record of a step.

    Args:
        stage: Its stage.
        loss: Its loss.
        learning_rate: Its learning rate.
        usage: Usage until now.
    """
    terms: dict[str, float] = {}
    for term, mean in zip(stage.terms, loss.terms, strict=True):
        name = term.objective.describe()[0]
        number = sum(term_.partition(" #")[0] == name for term_ in terms)
        # Two objectives may read the same taps.
        terms[f"{name} #{number + 1}" if number else name] = mean.item()
    return StepRecord(
        stage=stage.declared.name,
        # This waits for a GPU, so only steps that are recorded are read.
        loss=loss.loss.item(),
        terms=terms,
        learning_rate=learning_rate,
        usage=usage,
    )


def _teacher_parameters(run: BoundRun) -> int:
    if run.teacher is None or not run.teachers:
        return 0
    if isinstance(run.teacher, StoredTeacher):
        return run.teacher.store.manifest.teacher.parameters
    return num_parameters(run.teacher.model)


def run_record(run: BoundRun, metric: str, task: str, digest: str) -> RunRecord:
    """Return the first record of a run.

    Args:
        run: The run.
        metric: Name of the metric by which it is judged.
        task: Description of the data, in a few words.
        digest: Digest of everything it depends on.
    """
    return RunRecord(
        method=run.name,
        seed=run.seed,
        task=task,
        metric=metric,
        batch_size=run.stream.batch_size,
        notes=run.notes,
        stages=run.plans,
        student_parameters=num_parameters(run.student),
        teacher_parameters=_teacher_parameters(run),
        versions={
            "curricle": package_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        device=f"{run.settings.placement.kind} {', teacher '.join(run.settings.precisions)}",
        run=digest,
    )
