"""Pilot of a spec: the time of its runs, from a few steps of each stage.

A run is bound as it will be and a few steps of each of its stages are timed; its time is that of
all its steps and evaluations, those at the end and of the teacher's kept checkpoints included.
Steps are timed one by one, so runs with fused steps or batched students take less than the
estimate. Not counted are warm starts of students and calibrations of targets, checkpoints,
compiling and the start-up of processes.

Units: seconds.
"""

from collections.abc import Sequence

from curricle.models.restoring import evaluation_mode
from curricle.models.tapped import TappedModel
from curricle.runs.assemble import data_seed, open_task
from curricle.runs.budget import seconds_per_step
from curricle.runs.spec import RunSpec
from curricle.runs.train import StudentRun, planned_student, run_evaluator, teacher_run
from curricle.training.binding.bound_run import BoundRun
from curricle.training.loop.evaluation import Evaluator


def teacher_seconds(spec: RunSpec) -> float:
    """Return the time of the teacher's training; zero for one that is loaded.

    Args:
        spec: Spec of the comparison.
    """
    if spec.teacher.total is None:
        return 0.0
    data = open_task(spec, spec.seed, "train")
    run = teacher_run(spec, data)
    evaluate = run_evaluator(spec, data, None, spec.task.metric)
    return _seconds(run, evaluate, spec.trajectory_steps())


def student_seconds(spec: RunSpec, student: StudentRun) -> float:
    """Return the time of a student's training with a teacher that need not be trained yet.

    Args:
        spec: Spec of the comparison.
        student: Which student.
    """
    data = open_task(spec, data_seed(spec, student.seed), "student")
    run = planned_student(spec, student)
    return _seconds(run, run_evaluator(spec, data, run.teacher, spec.goal.metric))


def _seconds(run: BoundRun, evaluate: Evaluator, kept_steps: Sequence[int] = ()) -> float:
    """Return the time of a run.

    Args:
        run: The run.
        evaluate: Its evaluation.
        kept_steps: Steps after which weights are kept, which are evaluated too.
    """
    per_step = seconds_per_step(run)
    training = sum(
        stage.span.most * seconds for stage, seconds in zip(run.stages, per_step, strict=True)
    )
    every = run.settings.eval_every
    evaluated = {*range(every, run.num_steps + 1, every), *kept_steps}
    # The end is evaluated once more, also after a step with an evaluation.
    return training + (len(evaluated) + 1) * _evaluation_seconds(run, evaluate, run.student)


def _evaluation_seconds(run: BoundRun, evaluate: Evaluator, student: TappedModel) -> float:
    placement = run.settings.placement
    with run.settings.stated_threads(), evaluation_mode(student.module):
        # The first one may load or compile something.
        evaluate(student)
        started = placement.now()
        evaluate(student)
        return placement.now() - started
