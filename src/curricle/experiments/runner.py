"""How does a run spec become runs on disk?

A run folder holds `spec.yaml` (what was asked for), `run.json` (by which command), `teacher/` (the
teacher's own run with its trajectory) and the student's run: at the top for `distill`, below
`students/<strategy>/seed-<n>` for `compare`. A teacher that is there already, taught by the same
spec, is used again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import build, from_labels
from curricle.errors import CheckpointError
from curricle.experiments.budgets import fitted
from curricle.experiments.spec import Model, RunSpec, given
from curricle.experiments.tasks import TaskData
from curricle.files import write_text
from curricle.models.tapped import TappedModel
from curricle.models.weights import load_weights
from curricle.records import EndRecord, read_records
from curricle.specs import fingerprint, parse, plain, read_yaml, to_yaml
from curricle.teachers.live import LiveTeacher
from curricle.teachers.trajectory import (
    TrajectoryWriter,
    hugging_face_trajectory,
    open_trajectory,
)
from curricle.training.binding import BoundRun, bind
from curricle.training.engine import FINISHED, RECORDS, Observer, Outputs, execute
from curricle.training.evaluation import label_metrics

SPEC, COMMAND, TEACHER, STUDENTS = "spec.yaml", "run.json", "teacher", "students"
TRAJECTORY, TAUGHT, EXPORT = "trajectory", "taught.json", "student"


@runtime_checkable
class _Exportable(Protocol):
    """A Hugging Face model."""

    def save_pretrained(self, save_directory: str) -> None:
        """Write a folder that `from_pretrained` reads."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRun:
    """One student to be trained."""

    name: str
    """Name of the strategy."""
    curriculum: Mapping[str, Any]
    """The strategy's `kind` and arguments."""
    seed: int
    """Seed of the student."""
    folder: Path
    """Where the run is written."""

    def __str__(self) -> str:
        """Return strategy and seed, as progress bars show them."""
        return f"{self.name} seed {self.seed}"


def start(spec: RunSpec, command: str) -> None:
    """Claim the run folder for a new run.

    Raises:
        CheckpointError: If it already holds a run.
    """
    folder = spec.folder
    taken = [name for name in (RECORDS, STUDENTS, COMMAND) if (folder / name).exists()]
    taught_only = taken == [COMMAND] and read_command(folder) == "teach" and command != "teach"
    if taken and not taught_only:
        raise CheckpointError(
            f"'output_dir' {str(folder)!r} must not hold a run already; "
            f"use 'curricle resume {folder}' or another folder"
        )
    write_text(folder / SPEC, to_yaml(spec))
    write_text(folder / COMMAND, json.dumps({"command": command}))


def read_command(folder: Path) -> str:
    """Return the command that made a run folder.

    Raises:
        CheckpointError: If the folder holds no run.
    """
    try:
        return str(json.loads((folder / COMMAND).read_text())["command"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{str(folder)!r} must be a run folder: {error}") from None


def has_spec(folder: Path) -> bool:
    """Return whether a folder was made by a command that stores its spec."""
    return (folder / SPEC).is_file()


def stored_spec(folder: Path) -> RunSpec:
    """Return the spec in a run folder, with the folder as it is called now."""
    data = read_yaml(folder / SPEC) | {"output_dir": str(folder)}
    spec: RunSpec = parse(RunSpec, data, source=str(folder / SPEC))
    return spec


def student_runs(spec: RunSpec) -> list[StudentRun]:
    """Return the runs of a comparison, strategy by strategy within each seed."""
    strategies = given(spec.strategies, "strategies", "compare")
    return [
        StudentRun(
            name=name,
            curriculum=strategy.curriculum,
            seed=seed,
            folder=spec.folder / STUDENTS / name / f"seed-{seed}",
        )
        for seed in spec.seeds
        for name, strategy in strategies.items()
    ]


def single_run(spec: RunSpec) -> StudentRun:
    """Return the run of `distill`."""
    call = given(spec.curriculum, "curriculum", "distill")
    return StudentRun(name=str(call["kind"]), curriculum=call, seed=spec.seed, folder=spec.folder)


def teach(spec: RunSpec, observers: Sequence[Observer] = ()) -> None:
    """Train the spec's teacher from labels, unless that is done or it is pretrained.

    Args:
        spec: What to run.
        observers: Told of every record.

    Raises:
        CheckpointError: If the folder holds another spec's teacher.
    """
    if spec.teacher.total is None:
        return
    folder = spec.folder / TEACHER
    digest = fingerprint(
        [plain(spec.task), plain(spec.teacher), plain(_optimizer(spec)), spec.seed]
    )
    if not _claim(folder, digest):
        return
    data = _open_task(spec, spec.seed)
    model = _build(spec.teacher.model, data, spec.seed, "teacher")
    run = bind(
        from_labels(total=spec.teacher.total, name="teacher"),
        student=model,
        teacher=None,
        stream=data.stream,
        optimizer=_optimizer(spec),
        settings=spec.engine,
        seed=spec.seed,
    )
    writer = TrajectoryWriter(folder / TRAJECTORY, spec.trajectory_steps())
    outputs = Outputs(folder=folder, observers=tuple(observers), trajectory=writer, task=data.name)
    _execute(spec, run, data, outputs)


def train_student(
    spec: RunSpec, student: StudentRun, observers: Sequence[Observer] = ()
) -> EndRecord:
    """Train one student, or go on with it where it stopped.

    Args:
        spec: What to run.
        student: Which student.
        observers: Told of every record.
    """
    if is_complete(student.folder):
        return _last_record(student.folder)
    data = _open_task(spec, student.seed)
    run = _bound(spec, student, data, _taught(spec, data))
    outputs = Outputs(folder=student.folder, observers=tuple(observers), task=data.name)
    return _execute(spec, run, data, outputs)


def planned_student(spec: RunSpec, student: StudentRun) -> BoundRun:
    """Return a student's run bound as it will be, with a teacher that need not be taught yet.

    Args:
        spec: What to run.
        student: Which student.
    """
    data = _open_task(spec, student.seed)
    teacher = LiveTeacher(_build(spec.teacher.model, data, spec.seed, "teacher"))
    return _bound(spec, student, data, teacher)


def _bound(spec: RunSpec, student: StudentRun, data: TaskData, teacher: LiveTeacher) -> BoundRun:
    """Return a student's run bound to its models and data."""
    model = _build(given(spec.student, "student", "distill"), data, student.seed, "student")
    strategy = spec.strategies.get(student.name)
    optimizer = strategy.optimizer if strategy is not None else None

    def curriculum(total: Duration) -> Curriculum:
        steps = spec.trajectory_steps()
        return build(student.curriculum, total=total, trajectory=steps)

    def bound(chosen: Curriculum) -> BoundRun:
        return bind(
            chosen,
            student=model,
            teacher=teacher,
            stream=data.stream,
            optimizer=optimizer or spec.optimizer,
            settings=spec.engine,
            seed=student.seed,
        )

    return bound(fitted(given(spec.budget, "budget", "distill"), curriculum, bound))


def is_complete(folder: Path) -> bool:
    """Return whether a run folder holds a finished run."""
    records = folder / RECORDS
    return records.is_file() and any(isinstance(one, EndRecord) for one in read_records(records))


def _last_record(folder: Path) -> EndRecord:
    ends = [one for one in read_records(folder / RECORDS) if isinstance(one, EndRecord)]
    return ends[-1]


def _execute(spec: RunSpec, run: BoundRun, data: TaskData, outputs: Outputs) -> EndRecord:
    evaluate = label_metrics(data.evaluation, spec.engine.torch_device())
    # A folder whose run was cut off before its first checkpoint starts anew.
    end = execute(run, evaluate, metric=spec.target.metric, outputs=outputs, resume=True)
    module = run.student.module
    if outputs.folder is not None and isinstance(module, _Exportable):
        module.save_pretrained(str(outputs.folder / EXPORT))
    return end


def _claim(folder: Path, digest: str) -> bool:
    """Return whether the teacher in a folder is still to be taught."""
    claim = folder / TAUGHT
    if not claim.is_file():
        write_text(claim, json.dumps({"spec": digest}))
        return True
    found = json.loads(claim.read_text()).get("spec")
    if found != digest:
        raise CheckpointError(
            f"{str(folder)!r} must hold the teacher of this spec; its digest is {found}, not {digest}"
        )
    return not is_complete(folder)


def _optimizer(spec: RunSpec) -> Any:  # noqa: ANN401 - a union that mypy cannot name here
    return spec.teacher.optimizer or spec.optimizer


def _open_task(spec: RunSpec, seed: int) -> TaskData:
    return spec.task.open(seed=seed, cache_dir=Path(spec.cache_dir))


def _build(model: Model, data: TaskData, seed: int, purpose: str) -> TappedModel:
    with seeding.scoped(seed, purpose):
        return model.build(
            num_inputs=data.num_inputs,
            num_classes=data.num_classes,
            num_positions=data.num_positions,
        )


def _taught(spec: RunSpec, data: TaskData) -> LiveTeacher:
    """Return the finished teacher with its trajectory."""
    model = _build(spec.teacher.model, data, spec.seed, "teacher")
    folder = spec.folder / TEACHER
    if spec.teacher.total is None:
        folders = [Path(one) for one in spec.teacher.folders]
        return LiveTeacher(model, hugging_face_trajectory(folders) if folders else None)
    load_weights(model.module, folder / FINISHED)
    return LiveTeacher(model, open_trajectory(folder / TRAJECTORY))
