"""Parts of a spec that must exist before its run can be bound.

Opened task, initial models and the teacher: the finished teacher of the run
folder, or in its place the targets that were captured of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from curricle import seeding
from curricle.errors import BindError
from curricle.models.cnn import CNNSpec
from curricle.models.huggingface import PretrainedSpec
from curricle.models.mlp import MLPSpec
from curricle.models.tapped import TappedModel
from curricle.models.vocabularies import TOKENIZER, common_vocabulary
from curricle.runs.folder import TEACHER, end_of, is_claimed, load_finished
from curricle.runs.spec import Model, RunSpec
from curricle.task_data import TaskData
from curricle.tasks import TextTask
from curricle.teachers.live import LiveTeacher
from curricle.teachers.stored import StoredTeacher, open_targets
from curricle.teachers.trajectory import hugging_face_trajectory, open_trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

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
    """Return a model of the task's sizes and classes with the first weights of a seed.

    Raises:
        BindError: If a loaded model numbers the task's classes in another way.
    """
    with seeding.scoped(seed, purpose):
        built = model.build(
            num_inputs=data.num_inputs,
            num_classes=data.num_classes,
            num_positions=data.num_positions,
            padding_token=data.padding_token,
        )
    if data.class_names and not isinstance(model, MLPSpec | CNNSpec):
        config = cast("PreTrainedModel", built.module).config
        if isinstance(model, PretrainedSpec):
            _check_classes(config, data.class_names, model.path)
        else:
            config.id2label = dict(enumerate(data.class_names))
            config.label2id = {name: number for number, name in enumerate(data.class_names)}
    return built


def _check_classes(config: "PreTrainedConfig", names: Sequence[str], path: str) -> None:
    """Check that classes with a name of the task have its number.

    Raises:
        BindError: If one has another.
    """
    numbers = {name: int(number) for number, name in (config.id2label or {}).items()}
    for number, name in enumerate(names):
        if numbers.get(name, number) != number:
            raise BindError(
                f"'id2label' of {path!r} must number the classes as the task does, in the order of "
                f"their names; got {numbers[name]} for {name!r}, which is {number} in the data; "
                f"replace the names by the model's numbers in the column of labels"
            )


def load_teacher(spec: RunSpec, data: TaskData) -> LiveTeacher:
    """Return the finished teacher with its trajectory.

    Raises:
        BindError: If a loaded teacher has another tokenizer than the task.
    """
    _check_tokens(spec)
    model = build_model(spec.teacher.model, data.for_teacher, spec.seed, "teacher")
    folder = spec.folder / TEACHER
    if spec.teacher.total is None:
        folders = [Path(folder) for folder in spec.teacher.folders]
        return LiveTeacher(model, hugging_face_trajectory(folders) if folders else None)
    load_finished(model.module, folder)
    return LiveTeacher(model, open_trajectory(folder / TRAJECTORY))


def _check_tokens(spec: RunSpec) -> None:
    """Check that a loaded teacher reads the tokens of a text task, if its tokenizer is known.

    Raises:
        BindError: If an id stands for another token.
    """
    model, task = spec.teacher.model, spec.task
    if not isinstance(model, PretrainedSpec) or not isinstance(task, TextTask):
        return
    path = Path(model.path, TOKENIZER)
    if path.is_file():
        common_vocabulary(task.open_tokenizer(Path(spec.cache_dir)), path)


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
