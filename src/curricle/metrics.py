"""Metrics of a model on held-out data, as values.

A `Metric` holds its name, which values are better, its unit, and how it is computed. Evaluation,
goals and reports read these fields, so that a new metric is one value here or in a user's code.

Design: a metric reduces each batch to a part, and the parts of all batches to a number. Accuracy,
nll, perplexity, mean squared error, cosine similarity and KL keep a sum; F1, Pearson, Spearman and
average precision keep predictions or values, one a scored position. So no metric holds the logits
of several batches.

Reports read names, directions and units without torch: torch, scikit-learn and scipy are imported
when a metric is computed.

Axes: row (scored positions), class, value.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, final

from curricle.errors import DataError, SpecError, near_names

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["higher", "lower"]
"""Which values of a metric are better."""
MetricName = Literal[
    "accuracy",
    "nll",
    "perplexity",
    "f1",
    "f1_macro",
    "mean_squared_error",
    "pearson",
    "spearman",
    "average_precision",
    "cosine_similarity",
    "similarity_spearman",
    "teacher_cosine",
    "teacher_spearman",
    "kl",
]
"""Names of the built-in metrics."""
MOST_CLASSES_OF_F1 = 2
"""Number of classes of binary F1."""
HALF = 0.5
"""Probability from which a label counts as 1."""
LARGEST_EXPONENT = 700.0
"""Nats from which perplexity is infinite; a float holds exp(709)."""
AT_CHANCE = (
    "the student ends at chance or below: its accuracy is not measurably above that of the most "
    "frequent label; check the teacher's accuracy, the learning rate and the length of the run"
)
"""Note about a student whose accuracy is below chance."""
TEACHER_AT_CHANCE = (
    "the teacher is at chance or below on the held-out data: its accuracy is not measurably "
    "above that of the most frequent label; check that its weights are trained and that its "
    "classes are numbered as the labels"
)
"""Note about a teacher whose accuracy on held-out batches is below that of chance."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Outputs of one batch of held-out data at its scored positions."""

    student: "Tensor"
    """Logits or values of the student; rows, then classes or values."""
    labels: "Tensor | None" = None
    """Classes or values in the data."""
    teacher: "Tensor | None" = None
    """Logits of the finished teacher."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that judges a model on held-out data."""

    name: str
    """Name in records and reports."""
    better: Direction
    """Which values are better."""
    unit: Literal["share", "nats", ""] = ""
    """`share` for numbers between 0 and 1, which reports show in percent."""
    part: Callable[[Scores], object]
    """Function from one batch to the quantities that the metric keeps of it."""
    compute: Callable[[Any, int], float]
    """Function from the sum or the list of parts, and the number of scored positions, to the
    number."""
    keeps: Literal["sum", "parts"] = "parts"
    """Whether parts are numbers that are added, or are kept in a list, one a batch."""
    reads: Literal["classes", "values", "pairs", "teacher"] = "classes"
    """Reference of the comparison: classes or float values of the data, similarities of pairs
    of consecutive texts, or the teacher."""
    least: float = -math.inf
    """Least possible value."""
    most: float = math.inf
    """Largest possible value."""


def _mean(total: float, count: int) -> float:
    return total / count


def _num_correct(scores: Scores) -> int:
    return int((scores.student.argmax(-1) == _required(scores.labels)).sum())


def _nats(scores: Scores) -> float:
    from curricle.objectives.losses import cross_entropy

    return float(cross_entropy(scores.student, _required(scores.labels)))


def _perplexity(total: float, count: int) -> float:
    nats = total / count
    return math.inf if nats > LARGEST_EXPONENT else math.exp(nats)


def _kl(scores: Scores) -> float:
    from curricle.objectives.losses import forward_kl

    teacher = _required(scores.teacher)
    if teacher.shape != scores.student.shape:
        raise DataError(
            f"'kl' needs equal positions and classes of student and teacher; got logits of shape "
            f"{tuple(scores.student.shape)} and {tuple(teacher.shape)}"
        )
    return float(
        forward_kl(scores.student, teacher, student_temperature=1.0, teacher_temperature=1.0)
    )


def _squared_error(scores: Scores) -> float:
    from curricle.objectives.losses import squared_error, value_rows

    return float(squared_error(*value_rows(scores.student, _required(scores.labels))))


def _predictions(scores: Scores) -> tuple[int, list[int], list[int]]:
    """Return the number of classes, the predictions and the labels."""
    predictions = scores.student.argmax(-1).flatten().tolist()
    return scores.student.shape[-1], predictions, _required(scores.labels).flatten().tolist()


def _f1(parts: Sequence[tuple[int, list[int], list[int]]], _count: int, *, average: str) -> float:
    """Return F1; the macro mean is over the classes among labels or predictions.

    Raises:
        DataError: If binary F1 is computed for more than two classes.
    """
    from sklearn.metrics import f1_score

    classes = parts[0][0]
    if average == "binary" and classes > MOST_CLASSES_OF_F1:
        raise DataError(
            f"'f1' is that of two classes; got {classes} classes; choose 'f1_macro', the mean over "
            f"classes"
        )
    predictions = [prediction for part in parts for prediction in part[1]]
    labels = [label for part in parts for label in part[2]]
    return float(f1_score(labels, predictions, average=average, zero_division=0.0))


def _values(scores: Scores) -> tuple[list[float], list[float]]:
    from curricle.objectives.losses import value_rows

    student, labels = value_rows(scores.student, _required(scores.labels))
    return student.double().flatten().tolist(), labels.double().flatten().tolist()


def _correlation(
    parts: Sequence[tuple[list[float], list[float]]],
    _count: int,
    *,
    name: str,
) -> float:
    """Return a correlation of all values; 0 where one side is constant."""
    from scipy import stats

    student = [number for part in parts for number in part[0]]
    labels = [number for part in parts for number in part[1]]
    if len(set(student)) == 1 or len(set(labels)) == 1:
        return 0.0
    return float(getattr(stats, name)(student, labels).statistic)


def _rows(scores: Scores) -> tuple[list[list[float]], list[list[float]]]:
    """Return the values of the student and of the data, row by row."""
    student, labels = scores.student.flatten(0, -2), _required(scores.labels)
    return student.tolist(), labels.reshape(student.shape).tolist()


def _average_precision(
    parts: Sequence[tuple[list[list[float]], list[list[float]]]], _count: int
) -> float:
    """Return the mean of the labels that have examples of both kinds; missing ones are left out.

    Raises:
        DataError: If no label has examples of both kinds.
    """
    from sklearn.metrics import average_precision_score

    student = [row for part in parts for row in part[0]]
    labels = [row for part in parts for row in part[1]]
    precisions = []
    for scores, targets in zip(zip(*student, strict=True), zip(*labels, strict=True), strict=True):
        pairs = [
            (score, target >= HALF)
            for score, target in zip(scores, targets, strict=True)
            if not math.isnan(target)
        ]
        if len({target for _, target in pairs}) > 1:
            precisions.append(
                average_precision_score(*zip(*[(t, s) for s, t in pairs], strict=True))
            )
    if not precisions:
        raise DataError(
            "'average_precision' must find a label with examples of 0 and of 1 in 'evaluation'; "
            "got none"
        )
    return float(sum(precisions) / len(precisions))


def _cosine(scores: Scores) -> float:
    from torch.nn.functional import cosine_similarity

    student, labels = scores.student.flatten(0, -2), _required(scores.labels)
    return float(cosine_similarity(student, labels.reshape(student.shape), dim=-1).double().sum())


def _pair_scores(scores: Scores) -> tuple[list[float], list[float]]:
    """Return the cosine similarities of consecutive texts and those of the data."""
    from torch.nn.functional import cosine_similarity

    student, labels = scores.student.double(), _required(scores.labels)
    first, second = student[0::2], student[1::2]
    similarities = cosine_similarity(first, second, dim=-1)
    return similarities.tolist(), labels.double().reshape(len(student), -1)[0::2, 0].tolist()


def _teacher_cosine(scores: Scores) -> float:
    """Return the sum of the cosine similarities of the embeddings of both models.

    Raises:
        DataError: If their widths differ.
    """
    from torch.nn.functional import cosine_similarity

    teacher = _required(scores.teacher)
    if teacher.shape != scores.student.shape:
        raise DataError(
            f"'teacher_cosine' needs embeddings of the same width; got those of shape "
            f"{tuple(scores.student.shape)} and {tuple(teacher.shape)}; 'teacher_spearman' takes "
            f"any widths"
        )
    cosines = cosine_similarity(scores.student.flatten(0, -2), teacher.flatten(0, -2), dim=-1)
    return float(cosines.double().sum())


def _pairwise(scores: Scores) -> tuple[list[float], list[float]]:
    """Return the cosine similarities of all pairs of a batch, of student and teacher."""
    from curricle.objectives.similarities import cosines

    sides = []
    for embeddings in (scores.student, _required(scores.teacher)):
        matrix = cosines(embeddings.flatten(0, -2).double())
        count = len(matrix)
        places = [row * count + other for row in range(count) for other in range(row)]
        sides.append(matrix.flatten()[places].tolist())
    return sides[0], sides[1]


def _required(tensor: "Tensor | None") -> "Tensor":
    """Return labels or the teacher's logits.

    Raises:
        DataError: If there are none.
    """
    if tensor is None:
        raise DataError("'evaluation' must hold the labels or have the teacher of its metrics")
    return tensor


ACCURACY = Metric(
    name="accuracy",
    better="higher",
    unit="share",
    part=_num_correct,
    compute=_mean,
    keeps="sum",
    least=0.0,
    most=1.0,
)
"""Share of positions whose likeliest class is the label."""
NLL = Metric(
    name="nll", better="lower", unit="nats", part=_nats, compute=_mean, keeps="sum", least=0.0
)
"""Mean negative log-likelihood of the label."""
_ALL: tuple[Metric, ...] = (
    ACCURACY,
    NLL,
    Metric(
        name="perplexity", better="lower", part=_nats, compute=_perplexity, keeps="sum", least=1.0
    ),
    *(
        Metric(
            name=name,
            better="higher",
            unit="share",
            part=_predictions,
            compute=partial(_f1, average=average),
            least=0.0,
            most=1.0,
        )
        for name, average in (("f1", "binary"), ("f1_macro", "macro"))
    ),
    Metric(
        name="mean_squared_error",
        better="lower",
        part=_squared_error,
        compute=_mean,
        keeps="sum",
        reads="values",
        least=0.0,
    ),
    *(
        Metric(
            name=name,
            better="higher",
            part=_values,
            compute=partial(_correlation, name=f"{name}r"),
            reads="values",
            least=-1.0,
            most=1.0,
        )
        for name in ("pearson", "spearman")
    ),
    Metric(
        name="average_precision",
        better="higher",
        unit="share",
        part=_rows,
        compute=_average_precision,
        reads="values",
        least=0.0,
        most=1.0,
    ),
    Metric(
        name="cosine_similarity",
        better="higher",
        part=_cosine,
        compute=_mean,
        keeps="sum",
        reads="values",
        least=-1.0,
        most=1.0,
    ),
    Metric(
        name="similarity_spearman",
        better="higher",
        part=_pair_scores,
        compute=partial(_correlation, name="spearmanr"),
        reads="pairs",
        least=-1.0,
        most=1.0,
    ),
    Metric(
        name="teacher_cosine",
        better="higher",
        part=_teacher_cosine,
        compute=_mean,
        keeps="sum",
        reads="teacher",
        least=-1.0,
        most=1.0,
    ),
    Metric(
        name="teacher_spearman",
        better="higher",
        part=_pairwise,
        compute=partial(_correlation, name="spearmanr"),
        reads="teacher",
        least=-1.0,
        most=1.0,
    ),
    Metric(
        name="kl",
        better="lower",
        unit="nats",
        part=_kl,
        compute=_mean,
        keeps="sum",
        reads="teacher",
        least=0.0,
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""The built-in metrics by name; `kl` is that from the finished teacher, at temperature 1.

`similarity_spearman` is the rank correlation of the cosine similarities of pairs of texts with
those in the data, `teacher_cosine` the mean cosine similarity to the finished teacher's embeddings,
and `teacher_spearman` the rank correlation of the similarities of all pairs of a batch with those
of the teacher, whose embeddings may have another width."""
CLASS_METRICS = (ACCURACY, NLL)
"""Metrics of an evaluation against classes that names no others."""


def metric_of(metric: str | Metric) -> Metric:
    """Return a metric, or the built-in one of a name.

    Raises:
        SpecError: If there is no built-in metric of the name.
    """
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise SpecError(f"'metric' {metric!r} is not built in; {near_names(metric, METRICS)}")
    return METRICS[metric]


def metrics_beside(metric: str | Metric, also: str = "") -> tuple[Metric, ...]:
    """Return the metrics of a run that is judged by one: it, and the usual ones of its labels.

    Args:
        metric: The metric by which the run is judged.
        also: Name of one more metric; empty for none.

    Raises:
        SpecError: If there is no built-in metric of the name, or two read different labels.
    """
    judge = metric_of(metric)
    usual = {"classes": CLASS_METRICS, "values": (METRICS["mean_squared_error"],)}
    by_name = {metric.name: metric for metric in (*usual.get(judge.reads, ()), judge)}
    if also and also not in by_name:
        by_name[also] = metric_of(also)
    labels = {metric.reads for metric in by_name.values()} - {"teacher"}
    if len(labels) > 1:
        raise SpecError(
            f"{also!r} must read the labels that {judge.name!r} reads; one reads classes, the "
            f"other float values"
        )
    return tuple(by_name.values())


def is_at_chance(metrics: Mapping[str, float], chance: float | None) -> bool:
    """Return whether an accuracy is below that of a constant prediction.

    Args:
        metrics: Metrics of a student by name.
        chance: See `RunRecord.chance`; None if unknown.
    """
    accuracy = metrics.get(ACCURACY.name)
    return chance is not None and accuracy is not None and accuracy < chance


def is_reached(metric: str, number: float, goal: float) -> bool:
    """Return whether a value of a built-in metric is the goal or better.

    Args:
        metric: Name of the metric.
        number: The value.
        goal: Value to be reached.
    """
    return number >= goal if METRICS[metric].better == "higher" else number <= goal
