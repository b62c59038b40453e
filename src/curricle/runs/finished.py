"""Finished models of run folders of the command line, opened for an export.

A folder of `distill` holds one student, one of `teach` the teacher, and one of `compare` a student
for each strategy and seed, of which the first seed is the default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from torch import nn

from curricle.data.text.corpora import HUB, names
from curricle.errors import CheckpointError, SpecError, near_names
from curricle.example_tasks import ExamplesTask
from curricle.models.cnn import CNNSpec
from curricle.models.huggingface import PretrainedSpec
from curricle.models.mlp import MLPSpec
from curricle.models.sentence_encoder import SentenceEncoderSpec
from curricle.runs.assemble import data_seed, load_teacher, open_task
from curricle.runs.card import Card
from curricle.runs.export import (
    Exported,
    base_name,
    check_layout,
    library_of,
    loading_code,
    output_name,
    write_export,
)
from curricle.runs.export_arguments import names_of_classes
from curricle.runs.folder import STUDENTS, TEACHER, has_spec, read_origin, stored_spec
from curricle.runs.onnx_files import TOLERANCE, OutputNames, check_onnx_packages
from curricle.runs.run_match import finished_records
from curricle.runs.spec import Model, RunSpec
from curricle.runs.train import StudentRun, finished_student, single_run, student_runs
from curricle.task_data import TaskData
from curricle.tasks import PairedTextTask, TextTask
from curricle.values import Plain, plain


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A finished model of a run folder."""

    name: str
    """`teacher`, or strategy and seed of a student."""
    module: nn.Module
    """The model with its weights."""
    spec: Model
    """Its specification."""
    data: TaskData
    """The opened task."""
    folder: Path
    """Folder of its records."""
    optimizer: Plain
    """How it was trained, as plain data."""
    seeds: dict[str, int]
    """Seeds beside that of its run."""


def _run_inside(folder: Path) -> Path:
    """Return the first student's folder of a comparison, the folder itself of other runs."""
    return min((folder / STUDENTS).glob("*/seed-*"), default=folder)


def export_run(
    folder: Path,
    to: Path,
    *,
    strategy: str | None = None,
    seed: int | None = None,
    layout: str | None = None,
    onnx: bool = False,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Export the finished model of a run folder.

    Args:
        folder: A run folder of the command line.
        to: Folder to make.
        strategy: Strategy of a comparison; None if there is only one.
        seed: Seed of a comparison; None takes the first.
        layout: As in `curricle.export`.
        onnx: Whether to write an ONNX file, compared with torch on held-out examples.
        tolerance: Largest difference of its outputs.

    Returns:
        Folder, files and the comparison.

    Raises:
        CheckpointError: If the folder holds no run of the command line, or the run is not finished.
    """
    if not has_spec(folder):
        raise CheckpointError(
            f"{str(folder)!r} must be a run folder of the command line with a 'spec.yaml'; got "
            f"none; a student trained in Python is exported by curricle.export(student, "
            f"{str(to)!r}, run={str(_run_inside(folder))!r})"
        )
    if onnx:
        # Before a text is tokenized or a model read.
        check_onnx_packages()
    spec, origin = stored_spec(folder), read_origin(folder)
    model = open_finished(spec, origin.command, strategy, seed)
    check_layout(model.module, layout)
    card = Card(
        title=f"{origin.title}: {model.name}",
        class_name=type(model.module).__name__,
        library=library_of(model.module),
        loading=loading_code(model.module, to.name, _sizes(model)),
        records=finished_records(model.folder),
        teacher="" if model.name == TEACHER else _teacher(spec),
        student=describe_model(model.spec),
        base_model=base_name(model.module),
        datasets=_datasets(spec),
        seeds=model.seeds,
        settings={"optimizer": _words(model.optimizer)},
        command=origin.line,
        class_names=names_of_classes(model.module) or _names_without_config(model),
    )
    return write_export(
        model.module,
        to,
        card,
        write_tokenizer=partial(spec.task.write_tokenizer, cache_dir=Path(spec.cache_dir)),
        onnx=model.data.evaluation[0].inputs if onnx else None,
        tolerance=tolerance,
        names=OutputNames(default=output_name(card.records)),
    )


def open_finished(
    spec: RunSpec, command: str, strategy: str | None = None, seed: int | None = None
) -> Finished:
    """Return the finished model of a run folder.

    Args:
        spec: Its spec.
        command: Command that made it.
        strategy: Strategy of a comparison; None if there is only one.
        seed: Seed of a comparison; None takes the first.
    """
    if command == "teach":
        folder = spec.folder / TEACHER
        finished_records(folder)
        data = open_task(spec, spec.seed, "train")
        return Finished(
            name=TEACHER,
            module=load_teacher(spec, data).model.module,
            spec=spec.teacher.model,
            data=data,
            folder=folder,
            optimizer=plain(spec.teacher.optimizer or spec.optimizer),
            seeds={},
        )
    student = _student(spec, command, strategy, seed)
    finished_records(student.folder)
    data_ = data_seed(spec, student.seed)
    data = open_task(spec, data_, "student")
    assert spec.student is not None  # noqa: S101 - its run is finished
    return Finished(
        name=str(student),
        module=finished_student(spec, student, data).module,
        spec=spec.student,
        data=data,
        folder=student.folder,
        optimizer=plain(student.optimizer),
        seeds={"data": data_} | ({} if spec.teacher.total is None else {"teacher": spec.seed}),
    )


def _student(spec: RunSpec, command: str, strategy: str | None, seed: int | None) -> StudentRun:
    """Return the selected student.

    Raises:
        SpecError: If there is none, or strategies to choose from.
    """
    runs = [single_run(spec)] if command == "distill" else student_runs(spec)
    strategies = list(dict.fromkeys(run.name for run in runs))
    if strategy is None and len(strategies) > 1:
        raise SpecError(
            f"'--strategy' must name one of the strategies of the run; got none; available: "
            f"{', '.join(map(repr, strategies))}"
        )
    if strategy is not None and strategy not in strategies:
        raise SpecError(
            f"'--strategy' must be a strategy of the run; got {strategy!r}; "
            f"{near_names(strategy, strategies)}"
        )
    named = [run for run in runs if strategy in (None, run.name)]
    selection = [run for run in named if seed in (None, run.seed)]
    if not selection:
        raise SpecError(f"'--seed' must be one of {[run.seed for run in named]}; got {seed}")
    return selection[0]


def describe_model(model: Model) -> str:
    """Return the description of a model of a spec, for people."""
    if isinstance(model, MLPSpec):
        return f"MLP of widths {', '.join(map(str, model.widths))}"
    if isinstance(model, CNNSpec):
        return f"CNN of {', '.join(map(str, model.channels))} channels"
    if isinstance(model, PretrainedSpec):
        # The folder is one of this machine; its name often is that of the model.
        return f"pretrained {Path(model.path).name}"
    if isinstance(model, SentenceEncoderSpec) and model.path is not None:
        return f"pretrained {Path(model.path).name}"
    return f"{model.model_type} with {_words(model.config) or 'its default configuration'}"


def _teacher(spec: RunSpec) -> str:
    teacher = spec.teacher
    trained = "" if teacher.total is None else f", trained from labels for {teacher.total}"
    return f"{describe_model(teacher.model)}{trained}"


def _sizes(model: Finished) -> str:
    inputs, classes = model.data.num_inputs, model.data.num_classes
    if isinstance(model.spec, MLPSpec):
        return f"{inputs}, {model.spec.widths}, {classes}"
    if isinstance(model.spec, CNNSpec):
        spec = model.spec
        return (
            f"{inputs}, {spec.channels}, {classes}, axes={spec.axes}, kernel={spec.kernel}, "
            f"stride={spec.stride}, is_dense={spec.output == 'positions'}"
        )
    return "..."


def _names_without_config(model: Finished) -> Mapping[int, str]:
    """Return the names of the task's classes for a model that cannot hold them itself."""
    return {} if hasattr(model.module, "config") else dict(enumerate(model.data.class_names))


def _datasets(spec: RunSpec) -> tuple[str, ...]:
    """Return the names of the data sets of the Hub that a spec reads."""
    if isinstance(spec.task, TextTask | PairedTextTask):
        corpora = [str(name) for name in names(spec.task.corpus)]
    else:
        corpora = [spec.task.data] if isinstance(spec.task, ExamplesTask) else []
    hub = [name.removeprefix(HUB) for name in corpora if name.startswith(HUB)]
    return tuple(name.partition(":")[0] for name in hub)


def _words(facts: Plain) -> str:
    """Return plain data as names and values in one line."""
    texts = {
        name: f"({_words(fact)})" if isinstance(fact, dict) else fact
        for name, fact in facts.items()
        if fact is not None
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items())
