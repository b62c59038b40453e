"""Evaluation of a trained student beside its teacher: metrics, size and speed.

`evaluate` takes models and held-out batches as `distill` does and changes nothing. The result is
printed as a table and has plain data for JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import nn
from torch.utils.data import DataLoader

from curricle.colocation import processor_kind
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.errors import BindError
from curricle.extras import package_version
from curricle.metrics import ACCURACY, METRICS, Metric, metric_of, metrics_beside
from curricle.models.restoring import evaluation_mode
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.reports.evaluation_tables import evaluation_grid
from curricle.reports.tables import Grid, to_markdown
from curricle.runs.model_costs import Cost, first_examples, measure_costs, num_examples
from curricle.training.loop.evaluation import label_metrics
from curricle.training.setup.arguments import as_evaluation, named_arguments, require_model
from curricle.training.setup.placement import place_model
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import standard_state
from curricle.values import Plain

REPETITIONS = 20
"""Timed passes of each model."""
NAMES = ("student", "teacher")
"""Names of models in tables."""
MOST_TIMED = 32
"""Largest batch whose passes are timed."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluation:
    """Metrics, size and speed of one model."""

    name: str
    """Name in tables."""
    metrics: Mapping[str, float]
    """Metrics on the held-out data; empty if the teacher reads other positions."""
    cost: Cost
    """Size and speed."""

    def plain(self) -> Plain:
        """Return plain data, as JSON has it."""
        return {
            "name": self.name,
            "metrics": dict(self.metrics),
            "parameters": self.cost.parameters,
            "bytes": self.cost.num_bytes,
            "ms_per_example": self.cost.milliseconds,
            "ms_alone": self.cost.milliseconds_alone,
        }


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Result of `evaluate`; its text is a table."""

    student: ModelEvaluation
    """The student."""
    teacher: ModelEvaluation | None
    """The teacher; None if there is none."""
    task: str
    """The data in a few words; empty if they have no name."""
    num_examples: int
    """Number of held-out examples."""
    timed_examples: int
    """Examples of the batch whose passes were timed."""
    repetitions: int
    """Timed passes of each model."""
    processor: str
    """Device of the models."""
    threads: int
    """CPU threads of torch."""
    notes: tuple[str, ...] = ()
    """Why something is missing, one sentence each."""

    def plain(self) -> Plain:
        """Return plain data, as JSON has it."""
        return {
            "task": self.task,
            "examples": self.num_examples,
            "student": self.student.plain(),
            "teacher": None if self.teacher is None else self.teacher.plain(),
            "timing": {
                "batch": self.timed_examples,
                "repetitions": self.repetitions,
                "processor": self.processor,
                "threads": self.threads,
                "torch": torch.__version__,
            },
            "notes": list(self.notes),
            "curricle": package_version(),
        }

    def grid(self) -> Grid:
        """Return the table."""
        models = [model for model in (self.student, self.teacher) if model is not None]
        return evaluation_grid({model.name: model.plain() for model in models}, title=self.task)

    def __str__(self) -> str:
        """Return the table and the notes."""
        return "\n".join([to_markdown(self.grid()), *self.notes])


@named_arguments
@standard_state(is_training=False)
def evaluate(  # noqa: PLR0913 - the public call; everything but two has a default
    student: nn.Module | TappedModel,
    evaluation: Sequence[Batch] | Stream | DataLoader[object],
    *,
    teacher: nn.Module | TappedModel | None = None,
    metrics: str | Metric | Sequence[str | Metric] | None = None,
    repetitions: int = REPETITIONS,
    settings: TrainingSettings = TrainingSettings(),
    next_token: bool = False,
    task: str = "",
) -> Evaluation:
    """Return metrics, size and speed of a student and, beside it, of its teacher.

    Args:
        student: The model; it is moved to where the settings place it and stays as it is.
        evaluation: Held-out batches with labels, or a `DataLoader` or a stream of them, such as
            `curricle.text_stream` makes of texts, of which an epoch is read once.
        teacher: The model to compare with; None evaluates the student alone.
        metrics: Metrics or names of built-in ones, or a single one; None takes accuracy and nll for
            classes, also perplexity where they are the next tokens, and the mean squared error for
            float labels. `kl` is that from the teacher.
        repetitions: Timed passes of each model, whose median is taken.
        settings: Device and threads.
        next_token: Whether the items of a `DataLoader` are those of a decoder, whose labels are its
            input ids, or none; see `curricle.stream`.
        task: The data in a few words, for the table.

    Returns:
        The numbers of both models; the table is its text.

    Raises:
        BindError: If an argument is of another kind, or a metric reads a teacher without one.
        DataError: If labels and models do not fit.
    """
    require_model("student", student)
    models = [tapped(student)]
    if teacher is not None:
        require_model("teacher", teacher)
        models.append(tapped(teacher))
    held_out = cast("Sequence[Batch]", as_evaluation(evaluation, None, next_token=next_token))
    _require_batches(held_out)
    choice = _metrics(held_out, metrics)
    comparisons = [metric.name for metric in choice if metric.reads == "teacher"]
    if comparisons and teacher is None:
        raise BindError(
            f"'teacher' must be given for the metric {comparisons[0]!r}, which compares the "
            f"student with it; got None"
        )
    notes: list[str] = []
    with settings.stated_threads():
        for model in models:
            place_model(settings.placement, model)
        numbers = _scores(held_out, settings, choice, models)
        if teacher is not None and any(batch.for_teacher is not batch for batch in held_out):
            notes.append("the teacher reads inputs of its own, so its metrics are left out")
        batch = held_out[0]
        inputs = [first_examples(side.inputs, MOST_TIMED) for side in (batch, batch.for_teacher)]
        costs = measure_costs(
            [model.module for model in models], inputs[: len(models)], repetitions=repetitions
        )
        results = [
            ModelEvaluation(name=name, metrics=scores, cost=cost)
            for name, scores, cost in zip(NAMES, numbers, costs, strict=False)
        ]
        return Evaluation(
            student=results[0],
            teacher=None if teacher is None else results[1],
            task=task,
            num_examples=sum(batch.num_examples for batch in held_out),
            timed_examples=num_examples(inputs[0]),
            repetitions=repetitions,
            processor=_processor(models[0].module),
            threads=torch.get_num_threads(),
            notes=tuple(notes),
        )


def _scores(
    evaluation: Sequence[Batch],
    settings: TrainingSettings,
    metrics: Sequence[Metric],
    models: Sequence[TappedModel],
) -> list[dict[str, float]]:
    """Return the metrics of student and teacher; none of a teacher with inputs of its own."""
    teacher = models[1] if len(models) > 1 else None
    has_own_inputs = any(batch.for_teacher is not batch for batch in evaluation)
    results: list[dict[str, float]] = []
    for model in models:
        # A comparison with the teacher is not one of the teacher's own metrics.
        judges = [metric for metric in metrics if model is not teacher or metric.reads != "teacher"]
        if not judges or (model is teacher and has_own_inputs):
            results.append({})
            continue
        judge = label_metrics(evaluation, settings.placement, metrics=judges, teacher=teacher)
        with evaluation_mode(model.module):
            results.append(judge(model))
    return results


def _metrics(
    evaluation: Sequence[Batch], metrics: str | Metric | Sequence[str | Metric] | None
) -> tuple[Metric, ...]:
    """Return the metrics to compute."""
    if isinstance(metrics, str | Metric):
        return (metric_of(metrics),)
    if metrics is not None:
        return tuple({metric.name: metric for metric in map(metric_of, metrics)}.values())
    first = evaluation[0]
    if first.labels is not None and first.labels.is_floating_point():
        return metrics_beside(METRICS["mean_squared_error"])
    return metrics_beside(ACCURACY, "perplexity" if first.predicts_tokens else "")


def _require_batches(evaluation: object) -> None:
    """Check that held-out data are batches.

    Raises:
        BindError: If they are not.
    """
    is_sequence = isinstance(evaluation, Sequence) and len(evaluation) > 0
    items = evaluation if isinstance(evaluation, Sequence) else ()
    if not is_sequence or any(type(item) is not Batch for item in items):
        raise BindError(
            f"'evaluation' must be a DataLoader, a stream or a sequence of curricle.Batch; got "
            f"{_kind(items, evaluation)}"
        )


def _kind(items: Sequence[object], evaluation: object) -> str:
    """Return the kind of held-out data that are no batches, for an error sentence."""
    if items and isinstance(items[0], str):
        reader = "curricle.text_stream(texts, tokenizer, window=..., batch_size=...)"
        return f"texts, which {reader} reads"
    return repr(type(evaluation).__name__)


def _processor(module: nn.Module) -> str:
    """Return the kind of processor that computes on the weights."""
    return next((processor_kind(weight) for weight in module.parameters()), "cpu")
