"""Runs of a spec on disk: teacher, students, students of a shared teacher.

A run folder holds `spec.yaml` (the spec), `run.json` (the command), `teacher/` (the
teacher's own run with its trajectory) and the student's run: at the top for `distill`, below
`students/<strategy>/seed-<n>` for `compare`. A teacher that is there already, taught by the same
spec, is used again.

Design: `rehearse` binds everything that will be trained before the first step, so that a mistake
in the last strategy does not show only after the teacher and all others have cost their time.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast, final

from torch import nn

from curricle.curriculum.checkpoint_selection import PlannedCheckpoints
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum, TeacherReference
from curricle.curriculum.strategies import build, from_labels
from curricle.errors import BindError, CheckpointError
from curricle.metrics import METRICS, NLL, metrics_beside
from curricle.models.tapped import TappedModel
from curricle.records import EndRecord, Record
from curricle.runs.assemble import (
    TRAJECTORY,
    Teacher,
    build_model,
    data_seed,
    is_ready,
    load_teacher,
    open_task,
    open_teacher,
    refuse_targets,
)
from curricle.runs.budget import PROVISIONAL, bind_within
from curricle.runs.export import write_model
from curricle.runs.folder import (
    TEACHER,
    claim_teacher,
    completed_end,
    load_finished,
    recorded_steps,
    run_folder,
)
from curricle.runs.spec import SEEDS, Model, RunSpec, require_field
from curricle.runs.teacher_file import read_teacher_metrics, write_teacher_metrics
from curricle.task_data import TaskData, with_objectives
from curricle.teachers.live import LiveTeacher
from curricle.teachers.trajectory import TrajectoryWriter
from curricle.trackers import TrackerName, check_trackers, tracking
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.distill import execute, teacher_metrics, teacher_notes
from curricle.training.loop.best import best_weights, check_evaluated
from curricle.training.loop.evaluation import Evaluator, label_metrics
from curricle.training.loop.run_outputs import Observer, Outputs
from curricle.training.setup.optimizers import Optimizer
from curricle.training.sharing.shared_runs import SharedRun, execute_shared

LAST_WEIGHTS = (
    "the teacher ends with its last weights, those of the last checkpoint of its trajectory: "
    "'keep_best' is for students"
)
"""Note about the teacher of a spec whose students end with their best weights."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRun:
    """One student to be trained."""

    name: str
    """Name of the strategy."""
    curriculum: Mapping[str, object]
    """The strategy's `kind` and arguments."""
    optimizer: Optimizer
    """How the student is trained."""
    seed: int
    """Seed of the student."""
    folder: Path
    """Where the run is written."""

    def __str__(self) -> str:
        """Return strategy and seed, as progress bars show them."""
        return f"{self.name} seed {self.seed}"


def student_runs(spec: RunSpec) -> list[StudentRun]:
    """Return the runs of a comparison, strategy by strategy within each seed."""
    strategies = require_field(spec.strategies, "strategies", "compare")
    return [
        StudentRun(
            name=name,
            curriculum=with_objectives(strategy.curriculum, spec.task),
            optimizer=strategy.optimizer or spec.optimizer,
            seed=seed,
            folder=run_folder(spec.folder, name, seed),
        )
        for seed in spec.seeds or SEEDS
        for name, strategy in strategies.items()
    ]


def classes(spec: RunSpec) -> list[list[StudentRun]]:
    """Return the runs of a comparison in groups that share a teacher; alone by default."""
    runs = student_runs(spec)
    if not (spec.share_teacher or spec.batch_students):
        return [[run] for run in runs]
    groups: dict[int, list[StudentRun]] = {}
    for run in runs:
        groups.setdefault(data_seed(spec, run.seed), []).append(run)
    return list(groups.values())


def first_runs(spec: RunSpec) -> list[StudentRun]:
    """Return the runs of a comparison with its first seed; those of the others bind as they do."""
    return student_runs(spec)[: len(spec.strategies)]


def single_run(spec: RunSpec) -> StudentRun:
    """Return the run of `distill`."""
    call = require_field(spec.curriculum, "curriculum", "distill")
    return StudentRun(
        name=str(call["kind"]),
        curriculum=with_objectives(call, spec.task),
        optimizer=spec.optimizer,
        seed=spec.seed,
        folder=spec.folder,
    )


def rehearse(spec: RunSpec, students: Sequence[StudentRun] = ()) -> None:
    """Bind the teacher's training and students as they will be bound, without training.

    A finished teacher at chance is warned of.

    Args:
        spec: Spec of the run.
        students: Students to check.
    """
    check_trackers(spec.report_to)
    if spec.teacher.total is not None:
        teacher_run(spec, open_task(spec, spec.seed, "train"))
    # To measure seconds a student has to train; everything else can be checked without.
    length = PROVISIONAL if _is_timed(spec) else None
    is_judged = False
    for student in students:
        run = _planned(spec, student, length)
        if run.teachers and is_ready(spec) and not is_judged:
            data = open_task(spec, data_seed(spec, student.seed), "student")
            evaluate = run_evaluator(spec, data, run.teacher, spec.goal.metric)
            teacher_notes(evaluate, run.teacher, run)
            is_judged = True


def teach(spec: RunSpec, observers: Sequence[Observer] = ()) -> None:
    """Train the spec's teacher from labels, unless that is done or it is pretrained.

    Args:
        spec: Spec of the run.
        observers: Receive every record.
    """
    folder = spec.folder / TEACHER
    if is_ready(spec):
        if spec.teacher.total is not None:
            completed_end(folder, is_writer=spec.engine.placement.is_writer)
        return
    data = open_task(spec, spec.seed, "train")
    run = teacher_run(spec, data)
    processes = spec.engine.placement
    # All processes have looked for a finished teacher before one of them writes.
    processes.wait()
    if processes.is_writer:
        claim_teacher(spec)
    writer = TrajectoryWriter(folder / TRAJECTORY, spec.trajectory_steps())
    with tracking(_trackers(spec), folder, "teacher") as reports:
        outputs = Outputs(
            folder=folder, observers=(*observers, *reports), trajectory=writer, task=data.name
        )
        _execute(spec, run, data, outputs)


def measure_teacher(spec: RunSpec) -> None:
    """Keep the metrics of a pretrained teacher beside the runs of its comparison, once.

    One that is trained here has its own records. Stored targets have no teacher to measure.

    Args:
        spec: Spec of the comparison.
    """
    if spec.teacher.total is not None or read_teacher_metrics(spec.folder):
        return
    for student in first_runs(spec):
        run = _planned(spec, student, PROVISIONAL if _is_timed(spec) else None)
        if run.teachers:
            data = open_task(spec, data_seed(spec, student.seed), "student")
            evaluate = run_evaluator(spec, data, run.teacher, spec.goal.metric)
            write_teacher_metrics(spec.folder, teacher_metrics(evaluate, run))
            return


def train_student(
    spec: RunSpec, student: StudentRun, observers: Sequence[Observer] = ()
) -> EndRecord:
    """Return the last record of a student after training it, or the rest of it.

    Args:
        spec: Spec of the run.
        student: Which student.
        observers: Receive every record.
    """
    end = completed_end(student.folder, is_writer=spec.engine.placement.is_writer)
    if end is not None:
        return end
    data = open_task(spec, data_seed(spec, student.seed), "student")
    # What seconds or FLOPs pay for is measured once, and on another machine a start may take other
    # FLOPs; a run that goes on keeps the length it began with.
    is_length = spec.budget is None or spec.budget.is_length
    steps = None if is_length else recorded_steps(student.folder)
    length = None if steps is None else Duration(number=steps)
    run = _bound(spec, student, data, open_teacher(spec, data), length=length)
    with tracking(_trackers(spec), student.folder, str(student)) as reports:
        outputs = Outputs(folder=student.folder, observers=(*observers, *reports), task=data.name)
        return _execute(spec, run, data, outputs, _until(spec))


def train_class(
    spec: RunSpec, students: Sequence[StudentRun], watch: Callable[[StudentRun, Record], None]
) -> None:
    """Train unfinished students that read the same data with one teacher.

    Args:
        spec: Spec of the run.
        students: Which students; see `classes`.
        watch: Receives every record of every student.
    """
    unfinished = [student for student in students if completed_end(student.folder) is None]
    if len(unfinished) <= 1:
        for student in unfinished:
            train_student(spec, student, [partial(watch, student)])
        return
    data = open_task(spec, data_seed(spec, unfinished[0].seed), "student")
    teacher = open_teacher(spec, data)
    evaluate = run_evaluator(spec, data, teacher, spec.goal.metric)
    with ExitStack() as stack:
        members = []
        for student in unfinished:
            reports = stack.enter_context(tracking(spec.report_to, student.folder, str(student)))
            outputs = Outputs(
                folder=student.folder,
                observers=(partial(watch, student), *reports),
                task=data.name,
            )
            run = _bound(spec, student, data, teacher, length=None)
            members.append(SharedRun(run=run, evaluate=evaluate, outputs=outputs))
        execute_shared(
            members,
            metric=spec.goal.metric,
            resume=True,
            until=_until(spec),
            batch_students=spec.batch_students,
        )
    for member in members:
        _export(spec, member.run.student.module, member.outputs.folder)


def planned_student(spec: RunSpec, student: StudentRun) -> BoundRun:
    """Return a student's run bound as it will be, with a teacher that need not be taught yet.

    Its notes begin with the numbers of rows and classes of the data.

    Args:
        spec: Spec of the run.
        student: Which student.
    """
    run = _planned(spec, student, None)
    data = open_task(spec, data_seed(spec, student.seed), "student")
    return replace(run, notes=(data.facts, *run.notes))


def finished_teacher(spec: RunSpec, data: TaskData) -> LiveTeacher:
    """Return the taught teacher in a run folder, or the pretrained one, with its trajectory.

    Args:
        spec: Spec of the run.
        data: The opened task.

    Raises:
        CheckpointError: If it is not taught yet.
    """
    if not is_ready(spec):
        raise CheckpointError(
            f"{str(spec.folder)!r} must hold a finished teacher; it does not, 'curricle teach' "
            f"makes one and 'curricle resume {spec.folder}' goes on with an interrupted run"
        )
    return load_teacher(spec, data)


def finished_student(spec: RunSpec, student: StudentRun, data: TaskData) -> TappedModel:
    """Return a finished student with its weights.

    Args:
        spec: Spec of the run.
        student: Which student.
        data: The opened task.
    """
    model = build_model(student_model(spec), data, student.seed, "student")
    load_finished(model.module, student.folder)
    return model


def student_model(spec: RunSpec) -> Model:
    """Return the student's model of a spec.

    Args:
        spec: Spec of the run.
    """
    # The checker joins a union of models to `object`.
    return cast("Model", require_field(spec.student, "student", "distill"))


def captured_runs(spec: RunSpec) -> list[BoundRun]:
    """Return the runs of a spec for target capture, bound to the finished teacher.

    Of a comparison those of every strategy and of all data that students read, with the projections
    of the first seed.
    """
    students = [single_run(spec)] if spec.curriculum is not None else []
    if spec.strategies or not students:
        students += student_runs(spec)
    teacher: LiveTeacher | None = None
    runs: dict[tuple[str, Path, int], BoundRun] = {}
    for student in students:
        seed = data_seed(spec, student.seed)
        # Runs that differ only in the student's seed share their targets; capture each once.
        kind = (student.name, student.folder.parent, seed)
        if kind in runs:
            continue
        data = open_task(spec, seed, "student")
        teacher = teacher or finished_teacher(spec, data)
        first = student.seed if student.folder == spec.folder else (spec.seeds or SEEDS)[0]
        runs[kind] = _bound(spec, replace(student, seed=first), data, teacher, length=None)
    return list(runs.values())


def _is_timed(spec: RunSpec) -> bool:
    return spec.budget is not None and spec.budget.unit == "seconds"


def _planned(spec: RunSpec, student: StudentRun, length: Duration | None) -> BoundRun:
    data = open_task(spec, data_seed(spec, student.seed), "student")
    if is_ready(spec):
        teacher = open_teacher(spec, data)
        run = _bound(spec, student, data, teacher, length=length)
        teacher.check(run.teachers)
        _check_best(spec, run, length)
        return run
    refuse_targets(spec)
    teacher = LiveTeacher(build_model(spec.teacher.model, data, spec.seed, "teacher"))
    run = _bound(spec, student, data, teacher, length=length)
    _check_checkpoints(spec, student, run.teachers)
    _check_best(spec, run, length)
    return run


def _check_best(spec: RunSpec, run: BoundRun, length: Duration | None) -> None:
    """Check, before the teacher's training, that a student can end with its best weights."""
    best_weights(run.settings, spec.goal.metric, None, folder=None)
    # The provisional length of a student whose steps are not measured yet means nothing.
    if length is None:
        check_evaluated(run.settings, run.num_steps)


def _check_checkpoints(
    spec: RunSpec, student: StudentRun, references: Sequence[TeacherReference]
) -> None:
    """Check that a student reads only checkpoints which the teacher's training will keep.

    Raises:
        BindError: If not.
    """
    steps = spec.trajectory_steps()
    for reference in references:
        if reference not in ("final", *steps):
            raise BindError(
                f"{student.name!r}: 'teacher' checkpoint must be one of {list(steps)}; "
                f"got {reference}"
            )


def _bound(
    spec: RunSpec,
    student: StudentRun,
    data: TaskData,
    teacher: Teacher,
    *,
    length: Duration | None,
) -> BoundRun:
    """Return a student's run bound to its models and data, at the budget's length by default."""
    model = build_model(student_model(spec), data, student.seed, "student")

    # The loss of a teacher before its training is unknown.
    trajectory = teacher.trajectory or PlannedCheckpoints(spec.trajectory_steps())

    def curriculum(total: Duration) -> Curriculum:
        return build(student.curriculum, total=total, trajectory=trajectory)

    def bound(curriculum_: Curriculum) -> BoundRun:
        return bind(
            curriculum_,
            student=model,
            teacher=teacher,
            stream=data.stream,
            optimizer=student.optimizer,
            settings=spec.engine,
            seed=student.seed,
        )

    limit = require_field(spec.budget, "budget", "distill")
    goal = spec.goal
    return bind_within(
        limit,
        curriculum,
        bound,
        name=student.name,
        length=length,
        has_goal=goal.number is not None or goal.final_of is not None,
    )


def teacher_run(spec: RunSpec, data: TaskData) -> BoundRun:
    """Return the teacher's training, bound.

    Args:
        spec: Spec of the run.
        data: Data of the teacher.
    """
    run = bind(
        from_labels(
            total=require_field(spec.teacher.total, "teacher.total", "teach"),
            loss=spec.task.label_loss,
            name="teacher",
        ),
        student=build_model(spec.teacher.model, data, spec.seed, "teacher"),
        teacher=None,
        stream=data.stream,
        optimizer=spec.teacher.optimizer or spec.optimizer,
        settings=replace(spec.engine, keep_best=False),
        seed=spec.seed,
    )
    # The setting is that of the students, too, so that it is no mistake in a spec with a teacher.
    return run if spec.engine.keep_best is False else replace(run, notes=(*run.notes, LAST_WEIGHTS))


def _execute(  # noqa: PLR0917 - private, always called in this order
    spec: RunSpec,
    run: BoundRun,
    data: TaskData,
    outputs: Outputs,
    until: Callable[[Mapping[str, float]], bool] | None = None,
) -> EndRecord:
    metric: str = spec.goal.metric
    if run.teacher is None and METRICS[metric].reads == "teacher":
        # The teacher of the comparison has none itself.
        metric = spec.task.metric if spec.task.label_loss != "cross_entropy" else NLL.name
    evaluate = run_evaluator(spec, data, run.teacher, metric)
    # A folder whose run was cut off before its first checkpoint starts anew.
    end = execute(run, evaluate, metric=metric, outputs=outputs, resume=True, until=until)
    if spec.engine.placement.is_writer:
        _export(spec, run.student.module, outputs.folder)
    # Other processes read what this one has written.
    spec.engine.placement.wait()
    return end


def _trackers(spec: RunSpec) -> tuple[TrackerName, ...]:
    """Return the trackers of this process: one process reports."""
    return spec.report_to if spec.engine.placement.is_writer else ()


def run_evaluator(spec: RunSpec, data: TaskData, teacher: object, metric: str) -> Evaluator:
    """Return the evaluation of a run that is judged by a metric.

    Args:
        spec: Spec of the run.
        data: Its data.
        teacher: Its teacher, if any.
        metric: The metric.
    """
    return label_metrics(
        data.evaluation,
        spec.engine.placement,
        metrics=metrics_beside(metric, "" if teacher is None else spec.engine.best_metric),
        teacher=teacher.model if isinstance(teacher, LiveTeacher) else None,
    )


def _until(spec: RunSpec) -> Callable[[Mapping[str, float]], bool] | None:
    return spec.goal.is_reached if spec.goal.ends_run else None


def _export(spec: RunSpec, module: nn.Module, folder: Path | None) -> None:
    """Write a finished model with the tokenizer of its task."""
    write_model(module, folder, partial(spec.task.write_tokenizer, cache_dir=Path(spec.cache_dir)))
