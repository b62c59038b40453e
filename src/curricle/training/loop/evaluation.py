"""Evaluation of the student on held-out batches, by the metrics of `curricle.metrics`.

Metrics are exact over all scored positions of the held-out batches, not means of batch means.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from curricle.data.batch import Batch, Rows, check_positions
from curricle.data.finiteness import non_finite_words
from curricle.data.label_checks import misplaced, require_classes
from curricle.errors import BindError, CurricleError, DataError
from curricle.metrics import ACCURACY, CLASS_METRICS, METRICS, Metric, Scores
from curricle.models.axes import observing
from curricle.models.restoring import evaluation_mode, modes_kept
from curricle.models.tapped import OUTPUT, Activations, Forward, Inputs, TappedModel
from curricle.objectives.base import logits_of, require
from curricle.objectives.labels import labeled_output
from curricle.objectives.logits import matched_output
from curricle.teachers.live import aligned
from curricle.training.binding.batches import TableLimit, excess
from curricle.training.binding.first_passes import check_places
from curricle.training.setup.placement import HOST, Placement

Evaluator = Callable[[TappedModel], dict[str, float]]
"""A function from a model, in evaluation mode and without gradient, to named metrics."""


JUDGED_BATCHES = 10
"""Held-out batches on which the teacher is judged before a run."""


def chance_of(evaluate: Evaluator) -> float | None:
    """Return the accuracy of chance, for evaluators that define it; see `RunRecord.chance`."""
    chance = getattr(evaluate, "chance", None)
    return chance if isinstance(chance, float) else None


def teacher_is_at_chance(
    evaluate: Evaluator, teacher: TappedModel, tables: Sequence[TableLimit] = ()
) -> bool:
    """Return whether a teacher's accuracy on some held-out batches is that of chance.

    The batches are spread over all of them, which may be sorted by class. Not judged, hence False,
    is a teacher with other inputs than the student, one whose pass fails on these batches, and any
    teacher if `evaluate` is a function of the user.

    Args:
        evaluate: Evaluator of held-out batches, or a function of the user.
        teacher: The teacher, where the batches are.
        tables: Tables of the models, which must have a row for each id.
    """
    if not isinstance(evaluate, _LabelEvaluator) or evaluate.bounds is None:
        return False
    labeled = [batch for batch in evaluate.batches if batch.labels is not None]
    if any(batch.for_teacher is not batch for batch in labeled):
        return False
    batches = labeled[:: math.ceil(len(labeled) / JUDGED_BATCHES) or 1]
    judged = sum(require(batch.labels, "labels").numel() for batch in batches)
    if not judged:
        return False
    check_ids(evaluate, tables, "teacher")
    # In every process on all batches: a pass that fails in one of them leaves no other waiting.
    judge = replace(evaluate, batches=batches, metrics=(ACCURACY,), teacher=None, placement=HOST)
    # The pass is not one of the run: if it fails, binding raises the error where a stage needs it.
    with suppress(CurricleError, LookupError, RuntimeError, TypeError, ValueError):
        with evaluation_mode(teacher.module):
            accuracy = judge(teacher)[ACCURACY.name]
        # Of all labels, since those of a part may be of one class.
        labels = [require(batch.labels, "labels").flatten().cpu() for batch in labeled]
        return accuracy < _chance(torch.cat(labels), judged)
    return False


def metrics_of_teacher(
    evaluate: Evaluator, teacher: TappedModel, tables: Sequence[TableLimit] = ()
) -> dict[str, float]:
    """Return the metrics of a teacher on the held-out batches, all of them.

    Left out are metrics that compare with the teacher. Not judged, hence empty, is a teacher as in
    `teacher_is_at_chance`.

    Args:
        evaluate: Evaluator of held-out batches, or a function of the user.
        teacher: The teacher, where the batches are.
        tables: Tables of the models, which must have a row for each id.
    """
    if not isinstance(evaluate, _LabelEvaluator):
        return {}
    metrics = tuple(metric for metric in evaluate.metrics if metric.reads != "teacher")
    has_own_inputs = any(batch.for_teacher is not batch for batch in evaluate.batches)
    if not metrics or has_own_inputs:
        return {}
    check_ids(evaluate, tables, "teacher")
    judge = replace(evaluate, metrics=metrics, teacher=None, placement=HOST)
    with suppress(CurricleError, LookupError, RuntimeError, TypeError, ValueError):
        with evaluation_mode(teacher.module):
            numbers = judge(teacher)
        return {name: number for name, number in numbers.items() if math.isfinite(number)}
    return {}


def check_ids(evaluate: Evaluator, tables: Sequence[TableLimit], module: str = "student") -> None:
    """Check that the embeddings of a model have a row for each id of the held-out batches.

    Args:
        evaluate: Evaluator of held-out batches; a function of the user is not looked at.
        tables: Tables of the models.
        module: Owner of the tables that count.

    Raises:
        DataError: If one has not.
    """
    if not isinstance(evaluate, _LabelEvaluator):
        return
    for table in tables:
        for batch in evaluate.batches if table.owner == module else ():
            if fault := table.fault(batch):
                raise DataError(f"'evaluation': {fault}")


def position_excess(evaluate: Evaluator, tables: Sequence[TableLimit]) -> str:
    """Return the words for held-out batches with more positions than a table of the student.

    Models may allow them, so they explain a pass that fails, as in training; empty if there are
    none.

    Args:
        evaluate: Evaluator of held-out batches; a function of the user is not looked at.
        tables: Tables of the models.
    """
    if not isinstance(evaluate, _LabelEvaluator):
        return ""
    words = (excess(tables, "student", batch.inputs) for batch in evaluate.batches)
    return next(filter(None, words), "")


def _chance(labels: Tensor, judged: int | None = None) -> float:
    """Return the share of the most frequent label and two standard errors of it.

    Args:
        labels: All labels.
        judged: Number of those by which an accuracy is measured; by default all.
    """
    share = float(labels.unique(return_counts=True)[1].max()) / len(labels)
    return min(1.0, share + 2.0 * math.sqrt(share * (1.0 - share) / (judged or len(labels))))


def label_metrics(
    batches: Sequence[Batch],
    placement: Placement = HOST,
    *,
    metrics: Sequence[Metric] = CLASS_METRICS,
    teacher: TappedModel | None = None,
) -> Evaluator:
    """Return an evaluator of fixed batches.

    Args:
        batches: Held-out data.
        placement: Devices of the model.
        metrics: Metrics to compute; by default accuracy and nll.
        teacher: The finished teacher, at the same place, for metrics that compare with it.

    Raises:
        BindError: If a metric reads the teacher and there is none.
        DataError: If there is no labeled position, labels are not those of a metric, or all are the
            tokens at their own positions; from the evaluator, if a label is no class of the model,
            if the model gives logits elsewhere, or if a metric is not finite for inputs that are
            not.
    """
    reads = {metric.reads for metric in metrics}
    if "teacher" in reads and teacher is None:
        raise BindError("'metric' must not read a teacher, as 'kl' does, where no model teaches")
    # A comparison with the teacher alone needs no labels.
    if reads != {"teacher"}:
        _check_labels(batches, are_classes="classes" in reads)
    labels = [batch.labels.cpu() for batch in batches if batch.labels is not None]
    classes = torch.cat(labels).long() if "classes" in reads else None
    return _LabelEvaluator(
        # Moved once, since every evaluation reads the same batches.
        batches=tuple(map(placement.moved, batches)),
        metrics=tuple(metrics),
        placement=placement,
        teacher=teacher if "teacher" in reads else None,
        # Taken here on the CPU: a look at labels on a GPU would wait in every evaluation.
        bounds=None if classes is None else (int(classes.min()), int(classes.max())),
        chance=None if classes is None else _chance(classes),
    )


def held_out_batches(evaluate: Evaluator) -> Sequence[Batch]:
    """Return the batches of an evaluator of this package; none for a function of the caller.

    Args:
        evaluate: The evaluator.
    """
    return evaluate.batches if isinstance(evaluate, _LabelEvaluator) else ()


@final
@dataclass(frozen=True, slots=True)
class _Output:
    """Output of the models that metrics read."""

    name: str = ""
    """Its name; empty for the logits."""
    is_beside_logits: bool = False
    """Whether it is read of models with logits, too."""


LOGITS = _Output()
"""The logits of the models."""


def with_outputs(evaluate: Evaluator, objectives: Sequence[object]) -> Evaluator:
    """Return an evaluator of batches that reads the outputs that objectives teach.

    Labels are compared with the output that `LabelLoss` names, else with the logits, else with the
    matched output. Comparisons with the teacher read the matched output.

    Args:
        evaluate: Evaluator of held-out batches; a function of the user stays as it is.
        objectives: Objectives of the curriculum.
    """
    if not isinstance(evaluate, _LabelEvaluator):
        return evaluate
    labeled, matched = labeled_output(objectives), matched_output(objectives)
    return replace(
        evaluate,
        labeled=_Output(labeled or matched, is_beside_logits=bool(labeled)),
        matched=_Output(matched, is_beside_logits=bool(matched)),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _LabelEvaluator:
    """Evaluator of fixed batches."""

    batches: Sequence[Batch]
    metrics: Sequence[Metric]
    placement: Placement
    teacher: TappedModel | None
    bounds: tuple[int, int] | None
    """Least and largest class; None for labels that are no classes."""
    chance: float | None
    """See `RunRecord.chance`."""
    labeled: _Output = LOGITS
    """Output that is compared with labels."""
    matched: _Output = LOGITS
    """Output that is compared with the teacher's."""

    def __call__(self, model: TappedModel) -> dict[str, float]:
        """Return the metrics of a model.

        Args:
            model: The model.
        """
        observations: dict[str, Any] = {
            metric.name: 0.0 if metric.keeps == "sum" else [] for metric in self.metrics
        }
        count = 0
        outputs = self._read_outputs
        with (
            observing(model),
            _open_outputs(model, outputs) as forward,
            _teaching(self.teacher, self.matched) as read_teacher,
        ):
            for batch in self.placement.shared(self.batches):
                passes = _student_activations(forward, batch)
                logits: dict[_Output, Tensor] = {}
                size = 0
                for output, activations in zip(outputs, passes, strict=True):
                    logits[output], size = _logits(activations, batch, "'logits' in 'evaluation'")
                if self.bounds is not None:
                    # Before the metrics: a class that is out of range ends in an assertion of the
                    # GPU, after which the process cannot use it.
                    _check(require(batch.labels, "labels"), logits[self.labeled], self.bounds)
                teacher = None if read_teacher is None else read_teacher(batch)
                self._observe(observations, logits, batch.labels, teacher)
                count += size
            for batch in self.placement.padding(self.batches):
                _run_without_result(forward, read_teacher, batch)
        # Exact sums are divided once: a mean of batch means would weigh the positions of small
        # batches more.
        total_count = int(self.placement.total(count))
        numbers: dict[str, float] = {}
        for metric in self.metrics:
            observation = observations[metric.name]
            combined = self.placement.total if metric.keeps == "sum" else self.placement.gathered
            total = combined(observation)
            numbers[metric.name] = metric.compute(total, total_count)
        for name, number in numbers.items():
            if not math.isfinite(number):
                # Only now: looking at the inputs in every evaluation would read all of them twice.
                _check_inputs(self.batches, name, number)
        return numbers

    def _observe(
        self,
        observations: dict[str, Any],
        logits: Mapping[_Output, Tensor],
        labels: Tensor | None,
        teacher: Tensor | None,
    ) -> None:
        """Add the observation of a batch to those of each metric."""
        for metric in self.metrics:
            student = logits[self._output_of(metric)]
            observation = metric.part(Scores(student=student, labels=labels, teacher=teacher))
            # In place for lists, a new number for sums.
            observations[metric.name] += observation if metric.keeps == "sum" else [observation]

    @property
    def _read_outputs(self) -> tuple[_Output, ...]:
        """Return the outputs of the student that the metrics read, that of labels first."""
        read = {self._output_of(metric) for metric in self.metrics}
        return tuple(dict.fromkeys(item for item in (self.labeled, self.matched) if item in read))

    def _output_of(self, metric: Metric) -> _Output:
        """Return the output of the student that a metric reads."""
        return self.matched if metric.reads == "teacher" else self.labeled


def _check_labels(batches: Sequence[Batch], *, are_classes: bool) -> None:
    """Check that held-out data have labels other than the inputs.

    Raises:
        DataError: If there is no labeled position, labels are no classes though a metric reads
            them as such, or all labels are the tokens at their own positions.
    """
    labels = [batch.labels for batch in batches if batch.labels is not None]
    if not any(tensor.numel() for tensor in labels):
        words = next(filter(None, (misplaced(batch.inputs) for batch in batches)), "")
        raise DataError(
            f"'evaluation' must hold labels; got {len(batches)} batches without any"
            f"{words or _without_labels(batches)}"
        )
    if any(batch.repeats_inputs and not batch.is_decoded for batch in batches):
        raise DataError(
            "'evaluation' must not have the input ids as labels, which a model only copies; "
            "curricle.stream(loader, next_token=True) shifts them by one position, as "
            "curricle.evaluate(..., next_token=True) does"
        )
    for tensor in labels if are_classes else ():
        require_classes(tensor, "'labels' of 'evaluation'")


def _without_labels(batches: Sequence[Batch]) -> str:
    """Return the ways to evaluate data without labels, as the end of an error sentence."""
    names = sorted(repr(name) for name, metric in METRICS.items() if metric.reads == "teacher")
    choice = f"; the metrics {', '.join(names)} compare with the teacher and need none"
    if any(isinstance(batch.inputs, Mapping) and "input_ids" in batch.inputs for batch in batches):
        choice += (
            ", and labels of a decoder are the next tokens, which curricle.stream(loader, "
            "next_token=True) takes from the input ids"
        )
    return choice


def _logits(activations: Activations, batch: Batch, name: str) -> tuple[Tensor, int]:
    """Return the logits at the scored positions and their number.

    Without labels and selected positions, all positions with data are scored.
    """
    logits = logits_of(activations)
    check_positions(name, activations.positions, batch)
    if batch.labels is not None or batch.selected is not None:
        return logits, batch.num_selected
    rows = Rows.of(name, logits.shape[:-1], batch)
    return rows.take(logits, batch), rows.count(batch)


Passes = Callable[[Inputs, Tensor | None], tuple[Activations, ...]]
"""A forward pass that gives activations with each of several outputs in the place of the logits."""


@contextmanager
def _open_outputs(model: TappedModel, outputs: Sequence[_Output]) -> Iterator[Passes]:
    """Yield a forward pass with the logits at each of some outputs."""
    places = {item.name: model.place(f"{OUTPUT}:{item.name}") for item in outputs if item.name}
    with model.open_taps(tuple(places.values()), logits=True) as forward:

        def read(activations: Activations, output: _Output, selected: Tensor | None) -> Activations:
            has_logits = activations.logits is not None
            if not output.name or (has_logits and not output.is_beside_logits):
                return activations
            state = activations.hidden[places[output.name]]
            if selected is None:
                return replace(activations, logits=state)
            examples, *space = state.shape[:-1]
            positions = (examples, math.prod(space)) if space else (examples,)
            rows = state.flatten(0, -2)
            return replace(activations, logits=rows[selected], positions=positions)

        def run(inputs: Inputs, selected: Tensor | None = None) -> tuple[Activations, ...]:
            activations = forward(inputs, selected)
            return tuple(read(activations, output, selected) for output in outputs)

        yield run


@contextmanager
def _teaching(
    teacher: TappedModel | None, output: _Output
) -> Iterator[Callable[[Batch], Tensor] | None]:
    """Yield a function from a batch to the teacher's logits; None without a teacher."""
    if teacher is None:
        yield None
        return
    # The trial before training comes before the run puts its teacher into evaluation mode.
    with modes_kept(teacher.module), _open_outputs(teacher, (output,)) as forward:
        teacher.module.eval()
        name = "'logits' of the teacher in 'evaluation'"
        yield lambda batch: _logits(_teacher_activations(forward, batch), batch, name)[0]


def _run_without_result(
    forward: Passes, read_teacher: Callable[[Batch], Tensor] | None, batch: Batch
) -> None:
    """Run both models; weights in shares are gathered by all processes at once."""
    _student_activations(forward, batch)
    if read_teacher is not None:
        read_teacher(batch)


def _teacher_activations(forward: Passes, batch: Batch) -> Activations:
    """Return the teacher's activations at the positions of the student."""
    side = batch.for_teacher
    return aligned(forward(side.inputs, side.selected)[0], batch)


def _student_activations(forward: Passes, batch: Batch) -> tuple[Activations, ...]:
    """Return the activations of the student for a batch, one for each output.

    Raises:
        DataError: If its logits are elsewhere than the labels.
        LookupError: If something else was looked up in vain.
    """
    try:
        return forward(batch.inputs, batch.selected)
    except (DataError, LookupError):
        name = "'labels' of 'evaluation'"
        # Explained after the failure: which sentence fits takes further passes of the model.
        check_places("the student", _first_of(forward), batch, kind=DataError, name=name)
        raise


def _first_of(forward: Passes) -> Forward:
    """Return a forward pass with the first of its outputs."""

    def run(inputs: Inputs, selected: Tensor | None = None) -> Activations:
        return forward(inputs, selected)[0]

    return run


def _check_inputs(batches: Sequence[Batch], name: str, number: float) -> None:
    """Check that inputs are finite, after a metric was not.

    Raises:
        DataError: If some are not.
    """
    for index, batch in enumerate(batches):
        if words := non_finite_words(batch, f"its batch {index}"):
            raise DataError(
                f"'evaluation' must have finite inputs to give a finite {name!r}; got "
                f"{number}{words}"
            )


def _check(labels: Tensor, logits: Tensor, bounds: tuple[int, int]) -> None:
    (lowest, highest), (*places, classes) = bounds, logits.shape
    if places != [*labels.shape]:
        raise DataError(
            f"'labels' of 'evaluation' must be one for each place with logits, of shape "
            f"{tuple(places)}; got {tuple(labels.shape)}"
        )
    if lowest < 0 or highest >= classes:
        raise DataError(
            f"'labels' of 'evaluation' must lie between 0 and {classes - 1}, the student's last "
            f"class; got {lowest} to {highest}"
        )
