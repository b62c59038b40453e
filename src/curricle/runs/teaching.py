"""Training of a teacher from labels, with checkpoints that strategies can follow.

`teach` is the Python counterpart of `curricle teach`: one call for a model that learns from the
labels of the data, and the trajectory of its training for `progressive`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn
from torch.utils.data import DataLoader

from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import from_labels
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.errors import BindError, SpecError
from curricle.files import usable_folder
from curricle.metrics import ACCURACY, TEACHER_AT_CHANCE, Direction, Metric, is_at_chance
from curricle.models.wrapping import tapped
from curricle.objectives.labels import LabelLossName
from curricle.records import Usage
from curricle.runs.assemble import TRAJECTORY
from curricle.runs.spec import CHECKPOINTS, MOST_CHECKPOINTS
from curricle.teachers.trajectory import (
    Trajectory,
    TrajectoryWriter,
    checkpoint_steps,
    open_trajectory,
)
from curricle.trackers import check_trackers, tracker_names, tracking
from curricle.training.binding.bound_run import bind
from curricle.training.distill import (
    evaluator_of,
    execute,
    model_facts,
    resumption_note,
    run_facts,
)
from curricle.training.loop.evaluation import Evaluator, chance_of
from curricle.training.loop.recovery import recovery_notes
from curricle.training.loop.run_outputs import Observer, Outputs
from curricle.training.setup.arguments import (
    AnyModel,
    as_evaluation,
    as_observers,
    as_stream,
    judged_by,
    named_arguments,
    require_kind,
    require_model,
    require_parts,
)
from curricle.training.setup.interrupts import noted_interrupts
from curricle.training.setup.observers import shown_progress
from curricle.training.setup.optimizers import AdamW, Optimizer
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import standard_state


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTeacher:
    """A teacher and the checkpoints of its training."""

    model: nn.Module
    """The trained model, the very module that was passed in."""
    trajectory: Trajectory
    """Its checkpoints, for `progressive` and for `distill(..., trajectory=...)`."""
    metrics: dict[str, float]
    """Metrics at the end."""
    usage: Usage
    """Usage of the training."""
    notes: tuple[str, ...] = ()
    """Decisions made by default, one sentence each, and a note if it ends at chance."""

    def __repr__(self) -> str:
        """Return model, checkpoints and metrics in a line, without the layers of the model."""
        steps = self.trajectory.steps
        checkpoints = f"checkpoints={len(steps)} up to step {steps[-1]:,}" if steps else ""
        facts = (checkpoints, *run_facts(self.metrics, self.usage, self.notes))
        return f"TrainedTeacher(model={model_facts(self.model)}, {', '.join(filter(None, facts))})"


@named_arguments
@noted_interrupts(
    lambda arguments: resumption_note("curricle.teach", arguments["output_dir"], "model")
)
@standard_state()
def teach(  # noqa: PLR0913 - the public call; everything but four has a default
    model: AnyModel,
    data: Stream | DataLoader[object],
    *,
    total: Duration | str,
    evaluation: Sequence[Batch] | Stream | DataLoader[object] | Evaluator,
    output_dir: str | Path,
    checkpoints: int = CHECKPOINTS,
    loss: LabelLossName = "cross_entropy",
    metric: str | Metric = ACCURACY,
    better: Direction | None = None,
    optimizer: Optimizer = AdamW(learning_rate=1e-3),
    settings: TrainingSettings = TrainingSettings(),
    seed: int = 0,
    observers: Sequence[Observer] = (),
    report_to: str | Sequence[str] = (),
    progress: bool = True,
    resume: bool = False,
) -> TrainedTeacher:
    """Train a model from labels and keep checkpoints of its training.

    Args:
        model: The model that becomes the teacher; trained in place.
        data: Training batches with labels, or a `DataLoader`, as in `distill`.
        total: Length of the training, as `'3 epochs'` or `'2k steps'`.
        evaluation: Held-out batches, a `DataLoader`, a stream or a function, as in `distill`.
        output_dir: Run folder, with the checkpoints in `trajectory`.
        checkpoints: Number of checkpoints, equally spaced; the last is the end of the training.
        loss: Loss against the labels; see `LabelLoss`.
        metric: The metric by which the run is judged, or its name.
        better: Which values of it are better; None takes its own direction.
        optimizer: How the weights move.
        settings: Device, precision, intervals; without `keep_best`, since a teacher ends with the
            weights of its last checkpoint.
        seed: Seed of everything random in the run.
        observers: Functions that receive every record.
        report_to: Trackers that receive the run; see `distill`.
        progress: Whether a progress bar is shown on stderr, if that is a terminal.
        resume: Whether to go on from the newest checkpoint to resume from in `output_dir`; of a
            complete run the model gets the finished weights.

    Returns:
        The model, and its checkpoints as a trajectory.

    Raises:
        BindError: If model and data do not fit, or an argument is of another kind.
        CheckpointError: If `output_dir` already holds a run, or a checkpoint does not fit.
        DivergenceError: If a loss or the metric is not finite.
        SpecError: If the length or the number of checkpoints is none.
    """
    batches = as_stream(data, seed)
    held_out = as_evaluation(evaluation, batches)
    require_parts(optimizer, held_out)
    require_kind("settings", settings, TrainingSettings, "save_every=1000")
    if settings.keep_best is not False:
        raise BindError(
            f"'keep_best' must be False for a teacher, which ends with the weights of its last "
            f"checkpoint; got {settings.keep_best!r}; 'curricle.distill(model, None, "
            f"curricle.from_labels(...))' trains a model that ends with its best weights"
        )
    functions = as_observers(observers)
    require_model("model", model)
    if not 1 <= checkpoints <= MOST_CHECKPOINTS:
        raise SpecError(
            f"'checkpoints' must lie between 1 and {MOST_CHECKPOINTS:,}; got {checkpoints}"
        )
    name, better = judged_by(metric, better)
    trackers = tracker_names(report_to)
    check_trackers(trackers)
    folder = usable_folder(output_dir, "output_dir")
    run = bind(
        from_labels(total=total, loss=loss, name="teacher"),
        student=tapped(model),
        teacher=None,
        stream=batches,
        optimizer=optimizer,
        settings=settings,
        seed=seed,
    )
    writer = TrajectoryWriter(folder / TRAJECTORY, checkpoint_steps(run.num_steps, checkpoints))
    evaluate = evaluator_of(held_out, settings, metric, None)
    with (
        tracking(trackers, folder, "teacher") as reports,
        shown_progress(is_wanted=progress) as new_observer,
    ):
        outputs = Outputs(
            folder=folder,
            observers=(*functions, *reports, new_observer("teacher")),
            trajectory=writer,
            better=better,
        )
        end = execute(run, evaluate, metric=name, outputs=outputs, resume=resume)
    # Known only when the run ends, so it cannot be a note of binding.
    at_chance = is_at_chance(end.metrics, chance_of(evaluate))
    return TrainedTeacher(
        model=run.student.module,
        trajectory=open_trajectory(folder / TRAJECTORY),
        metrics=end.metrics,
        usage=end.usage,
        notes=(
            *run.notes,
            *recovery_notes(end, has_folder=True),
            *((TEACHER_AT_CHANCE,) if at_chance else ()),
        ),
    )
