"""Plan of a run in Python: stages, lengths and cost, without training.

`plan` is the counterpart of `curricle plan`. It binds a curriculum to models and data as `distill`
does and returns the facts of binding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch.utils.data import DataLoader

from curricle.curriculum.stages import Curriculum
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.metrics import ACCURACY, Metric, metric_of
from curricle.models.wrapping import tapped
from curricle.records import StagePlan
from curricle.reports.tables import Grid, plan_grid, to_markdown
from curricle.runs.label_costs import label_notes
from curricle.teachers.stored import StoredTeacher
from curricle.teachers.trajectory import Trajectory
from curricle.training.binding.bound_run import bind
from curricle.training.distill import check_opening, evaluator_of, teacher_notes
from curricle.training.loop.best import check_evaluated
from curricle.training.loop.evaluation import Evaluator
from curricle.training.setup.arguments import (
    AnyModel,
    as_evaluation,
    as_stream,
    as_teacher,
    named_arguments,
)
from curricle.training.setup.optimizers import AdamW, Optimizer
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import standard_state


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages of a run with their lengths and cost; its text is a table with the notes."""

    name: str
    """Name of the curriculum."""
    stages: tuple[StagePlan, ...]
    """The bound stages, in order."""
    num_steps: int
    """Length of the run in steps, if every stage takes its longest."""
    notes: tuple[str, ...]
    """Decisions made by default, and the cost beside that of training from labels, one sentence
    each."""

    def grid(self) -> Grid:
        """Return one row a stage, and the sums."""
        return plan_grid(self.stages, title=self.name)

    def __str__(self) -> str:
        """Return the table and the notes."""
        # Text for people and not for a page, where the mark of a pair of taps would be escaped.
        table = to_markdown(self.grid()).replace("&lt;", "<")
        return "\n".join([table, *self.notes])


# Nothing is trained, so each process of a launcher may plan.
@named_arguments
@standard_state(is_training=False)
def plan(  # noqa: PLR0913 - the arguments of `distill` on which a plan depends
    student: AnyModel,
    teacher: AnyModel | StoredTeacher | None,
    curriculum: Curriculum,
    data: Stream | DataLoader[object],
    *,
    evaluation: Sequence[Batch] | Stream | DataLoader[object] | Evaluator | None = None,
    metric: str | Metric | None = None,
    optimizer: Optimizer = AdamW(learning_rate=1e-3),
    trajectory: Trajectory | None = None,
    settings: TrainingSettings = TrainingSettings(),
    seed: int = 0,
) -> Plan:
    """Return the plan of `distill` with the same arguments, without training.

    Args:
        student: The model that would learn; its weights stay as they are.
        teacher: The finished teacher, its stored targets, or None.
        curriculum: Result of a strategy such as `extraction`.
        data: Training batches as in `distill`.
        evaluation: Held-out data as in `distill`, of which the labels are checked and a teacher at
            chance is noted; a function is not called. None checks nothing.
        metric: The metric by which the run would be judged, or its name; None takes accuracy.
        optimizer: How the weights would move; its state is part of the memory.
        trajectory: The teacher's checkpoints, for curricula that follow them.
        settings: Device, precision, intervals.
        seed: Seed of the run.

    Returns:
        Stages with taps, objectives, steps, FLOPs and memory.

    Raises:
        BindError: If models, curriculum and data do not fit, or an argument is of another kind.
        DataError: If held-out labels are not those of the metric.
        SpecError: If there is no metric of the name.
    """
    batches = as_stream(data, seed)
    held_out = () if evaluation is None else as_evaluation(evaluation, batches)
    check_opening(student, teacher, curriculum, optimizer, settings, held_out)
    if evaluation is None and metric is not None:
        metric_of(metric)
    source = as_teacher(teacher, trajectory)
    run = bind(
        curriculum,
        student=tapped(student),
        teacher=source,
        stream=batches,
        optimizer=optimizer,
        settings=settings,
        seed=seed,
    )
    check_evaluated(settings, run.num_steps)
    notes = (*run.notes, *label_notes(run))
    if evaluation is not None:
        evaluate = evaluator_of(held_out, settings, metric or ACCURACY, source)
        notes += teacher_notes(evaluate, source, run)
    return Plan(name=run.name, stages=run.plans, num_steps=run.num_steps, notes=notes)
