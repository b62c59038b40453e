"""Distillation in one call.

`distill` takes a student, a teacher, a curriculum and data; three lines differ between methods,
those of the strategy. `curricle plan` on the command line stops after binding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from torch import nn
from torch.utils.data import DataLoader

from curricle.checksums import sealed_names
from curricle.curriculum.stages import Curriculum
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.files import usable_folder
from curricle.metrics import (
    ACCURACY,
    AT_CHANCE,
    TEACHER_AT_CHANCE,
    Direction,
    Metric,
    is_at_chance,
    metrics_beside,
)
from curricle.models.wrapping import tapped
from curricle.records import EndRecord, Usage
from curricle.teachers.live import LiveTeacher
from curricle.teachers.stored import StoredTeacher
from curricle.teachers.trajectory import Trajectory
from curricle.trackers import check_trackers, tracker_names, tracking
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.binding.speed import check_speed
from curricle.training.fast.stacking import fused_steps
from curricle.training.loop.best import best_weights, check_evaluated
from curricle.training.loop.checkpoints import CHECKPOINTS, latest_checkpoint
from curricle.training.loop.engine import TrainingRun, single_steps
from curricle.training.loop.evaluation import (
    Evaluator,
    chance_of,
    label_metrics,
    metrics_of_teacher,
    teacher_is_at_chance,
    with_outputs,
)
from curricle.training.loop.fallback import set_damaged_aside
from curricle.training.loop.recovery import recovery_notes
from curricle.training.loop.run_outputs import Observer, Outputs
from curricle.training.setup.arguments import (
    AnyModel,
    as_evaluation,
    as_observers,
    as_stream,
    as_teacher,
    judged_by,
    named_arguments,
    require_curriculum,
    require_kind,
    require_model,
    require_parts,
    require_resumable,
    unsaved_notes,
)
from curricle.training.setup.interrupts import LOGGER, Interrupts, noted_interrupts
from curricle.training.setup.observers import shown_progress
from curricle.training.setup.optimizers import AdamW, Optimizer
from curricle.training.setup.placement import Placement
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import check_single_process, standard_state


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a run."""

    student: nn.Module
    """The trained student, the very module that was passed in."""
    metrics: dict[str, float]
    """Metrics at the end."""
    usage: Usage
    """Usage of the run: steps, examples, tokens, FLOPs, seconds."""
    notes: tuple[str, ...] = ()
    """Decisions made by default, one sentence each, such as the output taken as
    the logits, frozen weights, or a teacher or student at chance."""
    best_step: int | None = None
    """Steps after which the student had the weights that it ends with, if `keep_best` chose them;
    else None."""

    def __repr__(self) -> str:
        """Return model and metrics in a line, without the layers of the model."""
        best = () if self.best_step is None else (f"best_step={self.best_step}",)
        facts = run_facts(self.metrics, self.usage, self.notes)
        return f"Result(student={model_facts(self.student)}, {', '.join((*facts, *best))})"


def model_facts(model: nn.Module) -> str:
    """Return the class of a model and its number of parameters.

    Args:
        model: The model.
    """
    count = sum(weight.numel() for weight in model.parameters())
    return f"<{type(model).__name__}, {count:,} parameters>"


def run_facts(metrics: Mapping[str, float], usage: Usage, notes: Sequence[str]) -> tuple[str, ...]:
    """Return the facts that results of runs show in one line.

    Args:
        metrics: Metrics at the end.
        usage: Usage of the run.
        notes: Decisions made by default, of which the number is shown.
    """
    numbers = ", ".join(f"{name!r}: {number:.4g}" for name, number in metrics.items())
    return (
        f"metrics={{{numbers}}}",
        f"steps={usage.steps:,}",
        f"seconds={usage.seconds:.1f}",
        *((f"notes={len(notes)}",) if notes else ()),
    )


@standard_state(is_training=False)
def execute(
    run: BoundRun,
    evaluate: Evaluator,
    *,
    metric: str,
    outputs: Outputs,
    resume: bool = False,
    until: Callable[[Mapping[str, float]], bool] | None = None,
) -> EndRecord:
    """Run a bound curriculum to its end.

    Args:
        run: The bound run; its student is trained in place.
        evaluate: Gives the student's metrics.
        metric: The metric by which the run is judged.
        outputs: Where to write.
        resume: Whether to go on from the newest checkpoint in the run folder; if the run is
            complete, the student gets its finished weights and nothing is run.
        until: Function from the metrics of an evaluation to whether the run may end there; not
            called in stages without an objective on the logits.

    Returns:
        The last record.

    Raises:
        BindError: If the evaluator does not give the metric, or steps that are to be compiled
            cannot be.
        CheckpointError: If the folder already holds a run and `resume` is off, or holds another
            run and `resume` is on.
        DivergenceError: If a loss is not finite.
        Interrupted: If a signal has ended the run, after a checkpoint was written if there is a
            folder.
    """
    # Before the run folder is opened: a call that is refused leaves nothing behind.
    check_processes(run.settings)
    check_speed(run)
    number = run.settings.compiled_steps
    interrupts = Interrupts(saves=outputs.folder is not None)
    # Signals enclose the run: it has closed its folder when a late one is raised.
    with run.settings.stated_threads(), run.settings.placement.lost_process_errors(), interrupts:
        training = TrainingRun(
            run,
            evaluate,
            metric=metric,
            outputs=outputs,
            resume=resume,
            until=until,
            # Single steps need no compiler, and are the reference with which compiled ones agree
            # within rounding.
            stage_steps=single_steps if number == 1 else fused_steps(number),
            interrupts=interrupts,
        )
        with training:
            # The run may be over at once: a finished folder that is resumed gives its student back.
            while training.end is None:
                training.advance()
        return training.end


def resumption_note(call: str, output_dir: object, product: str) -> str:
    """Return the effect of a second call after an interruption.

    Args:
        call: Name of the call.
        output_dir: Its run folder; None if it writes nothing.
        product: Result of a finished run.
    """
    if output_dir is None:
        return "nothing was written, since 'output_dir' is None"
    folder = Path(str(output_dir))
    again = f"{call}(..., output_dir={str(folder)!r}, resume=True)"
    # The seal comes first: a finished run may have left checkpoints, but none of them is read.
    if sealed_names(folder):
        return f"the run is finished, and {again} returns its {product}"
    if latest_checkpoint(folder / CHECKPOINTS) is None:
        return f"{again} starts anew, since no checkpoint was written yet"
    return f"{again} resumes from the newest checkpoint"


@named_arguments
@noted_interrupts(
    lambda arguments: resumption_note("curricle.distill", arguments.get("output_dir"), "student")
)
@standard_state(is_training=False)
def distill(  # noqa: PLR0913 - the public call; everything but four has a default
    student: AnyModel,
    teacher: AnyModel | StoredTeacher | None,
    curriculum: Curriculum,
    data: Stream | DataLoader[object],
    *,
    evaluation: Sequence[Batch] | Stream | DataLoader[object] | Evaluator,
    metric: str | Metric = ACCURACY,
    better: Direction | None = None,
    optimizer: Optimizer = AdamW(learning_rate=1e-3),
    trajectory: Trajectory | None = None,
    settings: TrainingSettings = TrainingSettings(),
    seed: int = 0,
    output_dir: str | Path | None = None,
    observers: Sequence[Observer] = (),
    report_to: str | Sequence[str] = (),
    progress: bool = True,
    resume: bool | Literal["fallback"] = False,
) -> Result:
    """Train a student by a curriculum.

    Args:
        student: The model that learns; trained in place.
        teacher: The finished teacher, or its stored targets as `open_targets` gives them; None for
            curricula that need none.
        curriculum: Result of a strategy such as `extraction`.
        data: Training batches, or a `DataLoader`, which is read by `curricle.stream(data,
            seed=seed)`; call it yourself for `next_token` and `positions`.
        evaluation: Held-out batches with labels, a `DataLoader` or a stream of them, of which an
            epoch is read once, or a function from the model to metrics. The metric by which the
            run is judged must be finite; of the others, records and the result hold those that are.
        metric: The metric by which the run is judged, or its name. Batches are evaluated by it and
            by the usual metrics of their labels; a function must give it.
        better: Which values of the metric are better. None takes the direction of a built-in metric
            or a `Metric`; for any other name it is inferred from the words of the name. If it stays
            unknown, reports do not rank runs by this metric.
        optimizer: How the weights are updated.
        trajectory: The teacher's checkpoints, for curricula that follow them.
        settings: Device, precision, intervals.
        seed: Seed of everything random in the run.
        output_dir: Run folder for records, checkpoints and the student; None writes nothing.
        observers: Functions that receive every record.
        report_to: Trackers that receive the run: `tensorboard`, `wandb`, `trackio`, `mlflow`, each
            an extra of curricle.
        progress: Whether a progress bar and the notes of the run are shown on stderr, if that is a
            terminal.
        resume: Whether to go on from the newest checkpoint in `output_dir`; of a complete run the
            student gets the finished weights. `fallback` sets damaged checkpoints aside if an older
            one is whole, and notes that in the records.

    Returns:
        The student with its metrics and the usage of the run.

    Raises:
        BindError: If models, curriculum and data do not fit, an argument is of another kind, the
            evaluation does not give the metric, or the package of a tracker is missing.
        CheckpointError: If `output_dir` already holds a run, or a checkpoint does not fit.
        DivergenceError: If a loss is not finite, or the metric by which the run is judged.
    """
    batches = as_stream(data, seed)
    held_out = as_evaluation(evaluation, batches)
    check_opening(student, teacher, curriculum, optimizer, settings, held_out)
    functions = as_observers(observers)
    require_resumable(resume, output_dir)
    check_processes(settings)
    name, better = judged_by(metric, better)
    # The engine makes its own; here it is for the check of the metric's direction.
    best_weights(settings, name, better, folder=None)
    trackers = tracker_names(report_to)
    check_trackers(trackers)
    # Before binding, which runs both models: a path that cannot be a folder is found out at once.
    folder = None if output_dir is None else usable_folder(output_dir, "output_dir")
    if resume == "fallback" and folder is not None:
        _fall_back(folder, settings.placement)
    model = tapped(student)
    source = as_teacher(teacher, trajectory)
    # Around binding too, which exchanges weights between processes and may take minutes.
    with settings.placement.lost_process_errors():
        run = bind(
            curriculum,
            student=model,
            teacher=source,
            stream=batches,
            optimizer=optimizer,
            settings=settings,
            seed=seed,
        )
        check_evaluated(settings, run.num_steps)
        # That of the run, whose weights may be divided.
        evaluate = evaluator_of(held_out, settings, metric, run.teacher)
        notes = teacher_notes(evaluate, run.teacher, run)
        with (
            tracking(trackers if settings.placement.is_writer else (), folder) as reports,
            shown_progress(is_wanted=progress and settings.placement.is_writer) as new_observer,
        ):
            outputs = Outputs(
                folder=folder,
                observers=(*functions, *reports, new_observer(run.name)),
                better=better,
            )
            end = execute(run, evaluate, metric=name, outputs=outputs, resume=bool(resume))
    # Known only when the run ends, so it cannot be one of the notes of binding.
    at_chance = is_at_chance(end.metrics, chance_of(evaluate))
    return Result(
        student=model.module,
        metrics=end.metrics,
        usage=end.usage,
        notes=(
            *run.notes,
            *notes,
            *unsaved_notes(settings, folder),
            *recovery_notes(end, has_folder=folder is not None),
            *((AT_CHANCE,) if at_chance else ()),
        ),
        best_step=end.best_step if end.best_metric else None,
    )


def _fall_back(folder: Path, placement: Placement) -> None:
    """Set damaged checkpoints of a run aside in the process that writes, and say which."""
    for fallback in set_damaged_aside(folder) if placement.is_writer else ():
        LOGGER.warning("curricle: %s: %s", fallback.action, fallback.fault)
    # All processes look for the newest checkpoint next.
    placement.wait()


def check_processes(settings: TrainingSettings) -> None:
    """Check that several processes of a launcher are to train one student.

    Raises:
        BindError: If a launcher has started several and the settings say nothing of them.
    """
    if settings.parallel == "none":
        check_single_process()


def check_opening(  # noqa: PLR0917 - in the order of the calls
    student: object,
    teacher: object,
    curriculum: object,
    optimizer: object,
    settings: object,
    evaluation: object = (),
) -> None:
    """Check the arguments that `distill`, `plan` and `capture_targets` have in common.

    It comes before binding, in the words of the call: further on, arguments of another kind would
    fail as missing attributes of objects that the caller has never seen.

    Args:
        student: The model that learns.
        teacher: The finished teacher, its stored targets, or None.
        curriculum: The curriculum.
        optimizer: How the weights are updated.
        settings: How the engine runs.
        evaluation: Held-out batches or a function; without any in a call that does not evaluate.

    Raises:
        BindError: If an argument is of another kind, or the student is the teacher.
    """
    require_curriculum(curriculum)
    require_parts(optimizer, evaluation)
    require_kind("settings", settings, TrainingSettings, "prefetch='batch'")
    require_model("student", student)
    # Stored targets are no model, and need none.
    if teacher is not None and not isinstance(teacher, StoredTeacher):
        require_model("teacher", teacher)
    # Here, where it is one comparison: inside, both are wrapped, and shared memory would be named
    # by the paths of weights.
    if student is teacher:
        raise BindError(
            "'student' and 'teacher' must be different modules; got the same module for both"
        )


def teacher_notes(evaluate: Evaluator, teacher: object, run: BoundRun) -> tuple[str, ...]:
    """Return a note if a run's teacher is at chance on the held-out data, and log it.

    Args:
        evaluate: Evaluation of the run.
        teacher: Its teacher; one that is no model is not judged.
        run: The bound run; a teacher is judged only if a stage reads its logits.
    """
    reads = [stage.reads for stage in run.stages]
    reads_logits = any(stage.teacher_logits or stage.teacher_head for stage in reads)
    if not isinstance(teacher, LiveTeacher) or not reads_logits:
        return ()
    # Judged at the output of the labels, as the student is.
    evaluate = with_outputs(evaluate, run.objectives)
    if not teacher_is_at_chance(evaluate, teacher.model, run.tables):
        return ()
    LOGGER.warning("curricle: %s", TEACHER_AT_CHANCE)
    return (TEACHER_AT_CHANCE,)


def teacher_metrics(evaluate: Evaluator, run: BoundRun) -> dict[str, float]:
    """Return the metrics of a run's teacher; empty if it is no model or was not judged.

    Args:
        evaluate: Evaluation of the run.
        run: The bound run.
    """
    if not isinstance(run.teacher, LiveTeacher):
        return {}
    # Judged at the output of the labels, as the student is.
    return metrics_of_teacher(with_outputs(evaluate, run.objectives), run.teacher.model, run.tables)


def evaluator_of(
    evaluation: Sequence[Batch] | Evaluator,
    settings: TrainingSettings,
    metric: str | Metric,
    teacher: object,
) -> Evaluator:
    """Return the evaluation of held-out batches, or a function as it is.

    Args:
        evaluation: Batches or a function.
        settings: Settings with the placement.
        metric: The metric by which the run is judged.
        teacher: Teacher of the run, for metrics that compare with it; None, or one that is no
            model, allows none of them.
    """
    # A function is used as it is, without a wrapper: attributes such as `chance` are read from it.
    if callable(evaluation):
        return evaluation
    return label_metrics(
        evaluation,
        settings.placement,
        metrics=metrics_beside(metric, settings.best_metric),
        # Stored targets hold no answers to held-out batches, so comparisons with them are left out.
        teacher=teacher.model if isinstance(teacher, LiveTeacher) else None,
    )
