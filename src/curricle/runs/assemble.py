"""Parts of a spec that must exist before its run can be bound.

Opened task, initial models and the teacher: the finished teacher of the run
folder, or in its place the targets that were captured of it.
"""

from pathlib import Path

from curricle import seeding
from curricle.errors import BindError
from curricle.models.tapped import TappedModel
from curricle.runs.folder import TEACHER, end_of, is_claimed, load_finished
from curricle.runs.spec import Model, RunSpec
from curricle.task_data import TaskData
from curricle.teachers.live import LiveTeacher
from curricle.teachers.stored import StoredTeacher, open_targets
from curricle.teachers.trajectory import hugging_face_trajectory, open_trajectory

TRAJECTORY = "trajectory"
Teacher = LiveTeacher | StoredTeacher
"""Teacher of a student."""


def is_ready(spec: RunSpec) -> bool:
    """Return whether there is nothing to teach the teacher any more."""
    if spec.teacher.total is None:
        return True
    return is_claimed(spec) and end_of(spec.folder / TEACHER) is not None


def data_seed(spec: RunSpec, student_seed: int) -> int:
    """Return the seed of the data that a student reads."""
    return student_seed if spec.data_seed is None else spec.data_seed


def open_task(spec: RunSpec, seed: int, reader: str) -> TaskData:
    """Return the data of a seed."""
    return spec.task.open(seed=seed, cache_dir=Path(spec.cache_dir), reader=reader)


def build_model(model: Model, data: TaskData, seed: int, purpose: str) -> TappedModel:
    """Return a model of the task's sizes with the first weights of a seed."""
    with seeding.scoped(seed, purpose):
        return model.build(
            num_inputs=data.num_inputs,
            num_classes=data.num_classes,
            num_positions=data.num_positions,
            padding_token=data.padding_token,
        )


def load_teacher(spec: RunSpec, data: TaskData) -> LiveTeacher:
    """Return the finished teacher with its trajectory."""
    model = build_model(spec.teacher.model, data, spec.seed, "teacher")
    folder = spec.folder / TEACHER
    if spec.teacher.total is None:
        folders = [Path(folder) for folder in spec.teacher.folders]
        return LiveTeacher(model, hugging_face_trajectory(folders) if folders else None)
    load_finished(model.module, folder)
    return LiveTeacher(model, open_trajectory(folder / TRAJECTORY))


def open_teacher(spec: RunSpec, data: TaskData) -> Teacher:
    """Return the finished teacher, or its stored targets if the spec names some.

    Raises:
        BindError: If the targets are those of another teacher or tokenizer.
    """
    live = load_teacher(spec, data)
    if spec.targets is None:
        return live
    stored = open_targets(spec.targets.folder)
    stored.store.check_teacher(live)
    stored.trajectory = live.trajectory
    stored_tokenizer, tokenizer = (
        stored.store.manifest.data.tokenizer,
        spec.task.tokenizer_digest(Path(spec.cache_dir)),
    )
    if stored_tokenizer and tokenizer and stored_tokenizer != tokenizer:
        raise BindError(
            f"'targets.folder' {spec.targets.folder!r} must hold targets of this tokenizer, whose "
            f"SHA-256 is {tokenizer[:16]}...; got {stored_tokenizer[:16]}..."
        )
    return stored


def refuse_targets(spec: RunSpec) -> None:
    """Check that a teacher that is not trained yet has no stored targets.

    Raises:
        BindError: If they are.
    """
    if spec.targets is not None:
        raise BindError(
            f"'targets' must come with the finished teacher that made them in 'output_dir', whose "
            f"weights are compared; got none in {str(spec.folder)!r}: 'curricle teach' makes it, "
            f"and then 'curricle targets capture' the targets if there are none yet"
        )
