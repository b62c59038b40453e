"""Evaluation of a run folder: its student beside its teacher, on the run's task or a changed one.

The student is that of `curricle distill` or one of `curricle compare`; a folder of `curricle teach`
has its teacher evaluated. A teacher that cannot be opened is left out, with the reason as a note.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from curricle.errors import CheckpointError, CurricleError, SpecError
from curricle.metrics import METRICS, NLL, Metric, metrics_beside
from curricle.models.huggingface import language_head, open_language_model
from curricle.models.tapped import TappedModel
from curricle.runs.assemble import open_task
from curricle.runs.evaluate import REPETITIONS, Evaluation, evaluate
from curricle.runs.export import EXPORT
from curricle.runs.fine_tuning import FineTuned, FineTuning, fine_tune
from curricle.runs.finished import open_finished
from curricle.runs.folder import TEACHER, has_spec, read_origin, stored_spec
from curricle.runs.harness import HarnessScores, harness_scores
from curricle.runs.minimal_pairs import PairAccuracy, Watch, pair_accuracy, read_pairs
from curricle.runs.spec import RunSpec, changed
from curricle.runs.train import finished_teacher
from curricle.task_data import TaskData
from curricle.training.setup.settings import TrainingSettings


def evaluate_run(
    folder: Path,
    *,
    changes: list[str] | None = None,
    strategy: str | None = None,
    seed: int | None = None,
    metrics: list[str] | None = None,
    repetitions: int = REPETITIONS,
) -> Evaluation:
    """Evaluate the finished model of a run folder on held-out data.

    Args:
        folder: A run folder of the command line.
        changes: Fields of the task with other values, such as `evaluation_batches=100`.
        strategy: Strategy of a comparison; None if there is only one.
        seed: Seed of a comparison; None takes the first.
        metrics: Names of metrics beside those of the run.
        repetitions: Timed passes of each model.

    Returns:
        Metrics, size and speed of student and teacher.

    Raises:
        CheckpointError: If the folder holds no run of the command line, or it is not finished.
        SpecError: If a metric does not exist, or the changed task has other tokens or sizes.
    """
    spec, command = _stored(folder)
    model = open_finished(spec, command, strategy, seed)
    data = _changed_task(spec, changes, model.data) if changes else model.data
    is_teacher = model.name == TEACHER
    teacher, notes = (None, ()) if is_teacher else _open_teacher(spec, data)
    metric: str = spec.goal.metric
    if METRICS[metric].reads == "teacher" and teacher is None:
        metric = NLL.name
    evaluation = evaluate(
        model.module,
        data.evaluation,
        teacher=teacher,
        metrics=_chosen(metric, metrics or []),
        repetitions=repetitions,
        settings=spec.engine,
        task=data.name,
    )
    student = replace(evaluation.student, name=model.name)
    return replace(evaluation, student=student, notes=(*notes, *evaluation.notes))


def _chosen(metric: str, names: Sequence[str]) -> tuple[Metric, ...]:
    """Return the metrics of a run and some more.

    Args:
        metric: Metric by which the run is judged.
        names: Names of more metrics, of the same labels or of the teacher.
    """
    selected = {item.name: item for item in metrics_beside(metric)}
    for name in names:
        selected |= {item.name: item for item in metrics_beside(metric, name)}
    return tuple(selected.values())


def model_folder(
    folder: Path, *, strategy: str | None = None, seed: int | None = None
) -> tuple[Path, str]:
    """Return the Hugging Face folder of a run's model and its name, or a folder that is one itself.

    Args:
        folder: A run folder of the command line, or a folder that `save_pretrained` made.
        strategy: Strategy of a comparison; None if there is only one.
        seed: Seed of a comparison; None takes the first.

    Raises:
        CheckpointError: If it is neither, or the model is no Hugging Face model.
    """
    if (folder / "config.json").is_file():
        return folder, folder.name
    if (folder / EXPORT / "config.json").is_file() and not has_spec(folder):
        return folder / EXPORT, folder.name
    spec, command = _stored(folder)
    model = open_finished(spec, command, strategy, seed)
    exported = model.folder / EXPORT
    if not (exported / "config.json").is_file():
        raise CheckpointError(
            f"{str(model.folder)!r} must hold a Hugging Face model in {EXPORT!r}; got none, since "
            f"the model is a {type(model.module).__name__}"
        )
    return exported, model.name


def score_run(
    folder: Path,
    pairs: Path,
    *,
    limit: int | None = None,
    strategy: str | None = None,
    seed: int | None = None,
    watch: Watch | None = None,
) -> PairAccuracy:
    """Return the accuracy of a run's language model on minimal pairs.

    Args:
        folder: A run folder of the command line, or a Hugging Face folder.
        pairs: File of pairs, such as BLiMP as JSON lines.
        limit: Number of pairs of each kind; None takes all.
        strategy: Strategy of a comparison; None if there is only one.
        seed: Seed of a comparison; None takes the first.
        watch: Receives the progress.
    """
    # The file first: a model may take long to open.
    contrasts = read_pairs(pairs, limit=limit)
    model, _ = model_folder(folder, strategy=strategy, seed=seed)
    language_model = open_language_model(model)
    return pair_accuracy(
        TrainingSettings().placement.place(language_model.module),
        language_model.tokenizer,
        contrasts,
        head=language_head(model),
        watch=watch,
    )


def fine_tune_run(
    folder: Path,
    train: Path,
    test: Path,
    *,
    strategy: str | None = None,
    seed: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    tuning: FineTuning | None = None,
) -> FineTuned:
    """Return the scores of a run's model after fine-tuning on classified texts.

    Args:
        folder: A run folder of the command line, or a Hugging Face folder.
        train: Texts with their classes as JSON lines.
        test: Texts that are not trained on, in the same form.
        strategy: Strategy of a comparison; None if there is only one.
        seed: Seed of a comparison; None takes the first.
        seeds: Seeds of the fine-tuning.
        tuning: Length, learning rate and names of the fields; None takes the defaults.
    """
    model, _ = model_folder(folder, strategy=strategy, seed=seed)
    return fine_tune(model, train, test, seeds=seeds, tuning=tuning or FineTuning())


def harness_run(
    folder: Path,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    strategy: str | None = None,
    seed: int | None = None,
) -> HarnessScores:
    """Return the metrics of a run's language model on tasks of the LM Evaluation Harness.

    Args:
        folder: A run folder of the command line, or a Hugging Face folder.
        tasks: Names of tasks, or paths of YAML files that define one.
        limit: Number of examples of each task; None takes all.
        strategy: Strategy of a comparison; None if there is only one.
        seed: Seed of a comparison; None takes the first.
    """
    model, _ = model_folder(folder, strategy=strategy, seed=seed)
    return harness_scores(model, tasks, limit=limit, processor=TrainingSettings().placement.kind)


def _stored(folder: Path) -> tuple[RunSpec, str]:
    """Return the spec of a run folder and its command.

    Raises:
        CheckpointError: If it is no run folder of the command line.
    """
    if not has_spec(folder):
        raise CheckpointError(
            f"{str(folder)!r} must be a run folder of the command line with a 'spec.yaml'; got "
            f"none; models trained in Python are evaluated by curricle.evaluate(student, "
            f"held_out, teacher=teacher)"
        )
    return stored_spec(folder), read_origin(folder).command


def _open_teacher(spec: RunSpec, data: TaskData) -> tuple[TappedModel | None, tuple[str, ...]]:
    """Return the finished teacher, or None and the reason as a note."""
    try:
        return finished_teacher(spec, data).model, ()
    except CurricleError as error:
        return None, (f"the teacher is left out: {error}",)


def _changed_task(spec: RunSpec, changes: list[str], data: TaskData) -> TaskData:
    """Return the opened task with other values of some fields.

    Raises:
        SpecError: If its tokens or sizes are not those of the run.
    """
    task = changed(spec, [f"task.{change}" for change in changes], option="--on")
    cache = Path(spec.cache_dir)
    if task.task.tokenizer_digest(cache) != spec.task.tokenizer_digest(cache):
        raise SpecError(
            "'--on' must keep the tokenizer of the run, which the models read; got a task with "
            "another one"
        )
    changed_data = open_task(task, spec.seed, "student")
    check_classes(data, changed_data)
    return changed_data


def check_classes(data: TaskData, changed_data: TaskData) -> None:
    """Check that a task with other values of some fields fits the models of the run.

    Args:
        data: Task of the run.
        changed_data: The other task.

    Raises:
        SpecError: If sizes or classes differ.
    """
    sizes = [(task_data.num_inputs, task_data.num_classes) for task_data in (data, changed_data)]
    if sizes[0] != sizes[1]:
        raise SpecError(
            f"'--on' must keep the {sizes[0][0]} inputs and {sizes[0][1]} classes of the run; got "
            f"{sizes[1][0]} and {sizes[1][1]}"
        )
    if data.class_names != changed_data.class_names:
        raise SpecError(
            f"'--on' must keep the classes of the run, {', '.join(data.class_names) or 'numbers'}; "
            f"got {', '.join(changed_data.class_names) or 'numbers'}"
        )
