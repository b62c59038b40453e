"""Metrics: numbers by hand, from scikit-learn and from scipy, over batches of several sizes."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torch import Tensor

from curricle.errors import DataError, SpecError
from curricle.metrics import (
    ACCURACY,
    METRICS,
    NLL,
    Metric,
    Scores,
    is_at_chance,
    is_reached,
    metric_of,
    metrics_beside,
)

CLASSES = 4


def computed(metric: Metric, batches: list[Scores]) -> float:
    count = sum(scores.student.shape[0] for scores in batches)
    parts = [metric.part(scores) for scores in batches]
    return metric.compute(sum(parts) if metric.keeps == "sum" else parts, count)


def class_scores(num_classes: int = CLASSES) -> list[Scores]:
    generator = torch.Generator().manual_seed(3)
    return [
        Scores(
            student=torch.randn(rows, num_classes, generator=generator),
            labels=torch.randint(num_classes, (rows,), generator=generator),
            teacher=torch.randn(rows, num_classes, generator=generator),
        )
        for rows in (7, 3, 12)
    ]


def value_scores(width: int | None = None) -> list[Scores]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(rows,) if width is None else (rows, width) for rows in (5, 9)]
    return [
        Scores(
            student=torch.randn(shape[0], width or 1, generator=generator),
            labels=torch.randn(shape, generator=generator),
        )
        for shape in shapes
    ]


def pair_scores() -> list[Scores]:
    """Return embeddings of pairs; the labels are those of their texts."""
    generator = torch.Generator().manual_seed(5)
    return [
        Scores(
            student=torch.randn(rows, 3, generator=generator),
            labels=torch.rand(rows // 2, generator=generator).repeat_interleave(2).unsqueeze(1),
            teacher=torch.randn(rows, 4, generator=generator),
        )
        for rows in (8, 6)
    ]


def cosine_of(first: Tensor, second: Tensor) -> float:
    return float(first @ second / first.norm() / second.norm())


def test_similarities_of_pairs_are_ranked_as_by_scipy() -> None:
    batches = pair_scores()
    labels = joined([scores.labels for scores in batches])[::2, 0]
    student = [
        cosine_of(*scores.student[row : row + 2])
        for scores in batches
        for row in range(0, len(scores.student), 2)
    ]
    expected = stats.spearmanr(student, labels).statistic
    assert computed(METRICS["similarity_spearman"], batches) == pytest.approx(expected)


def test_similarities_within_batches_are_ranked_as_those_of_the_teacher() -> None:
    batches = pair_scores()
    sides: list[list[float]] = [[], []]
    for scores in batches:
        for side, rows in zip(sides, (scores.student, scores.teacher), strict=True):
            assert rows is not None
            count = len(rows)
            side += [cosine_of(rows[i], rows[j]) for i in range(count) for j in range(i)]
    expected = stats.spearmanr(*sides).statistic
    assert computed(METRICS["teacher_spearman"], batches) == pytest.approx(expected)


def test_embeddings_of_one_width_are_compared_with_the_teacher() -> None:
    batches = class_scores(3)
    cosines = [
        cosine_of(student, teacher)
        for scores in batches
        for student, teacher in zip(scores.student, scores.teacher, strict=True)  # type: ignore[arg-type]
    ]
    expected = sum(cosines) / len(cosines)
    assert computed(METRICS["teacher_cosine"], batches) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match=r"embeddings of the same width; .*'teacher_spearman'"):
        computed(METRICS["teacher_cosine"], pair_scores())


def joined(tensors: list[Tensor | None]) -> np.ndarray:
    return np.asarray(torch.cat([tensor for tensor in tensors if tensor is not None]))


@pytest.mark.parametrize("name", ["accuracy", "nll", "perplexity", "f1_macro"])
def test_class_metrics_are_those_of_scikit_learn(name: str) -> None:
    batches = class_scores()
    logits = torch.from_numpy(joined([scores.student for scores in batches]))
    labels = joined([scores.labels for scores in batches])
    predictions = logits.argmax(-1).numpy()
    nats = reference.log_loss(labels, logits.double().softmax(-1).numpy(), labels=range(CLASSES))
    expected = {
        "accuracy": reference.accuracy_score(labels, predictions),
        "nll": nats,
        "perplexity": math.exp(nats),
        "f1_macro": reference.f1_score(labels, predictions, average="macro"),
    }
    assert computed(METRICS[name], batches) == pytest.approx(expected[name], rel=1e-6)


def test_binary_f1_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    scores = Scores(student=logits, labels=torch.tensor([1, 0, 1, 0]))
    # One hit, one false alarm, one miss: precision and recall are 1/2.
    assert computed(METRICS["f1"], [scores]) == 0.5


def test_binary_f1_of_more_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"^'f1' is that of two classes; got 4 classes; choose 'f1"):
        computed(METRICS["f1"], class_scores())


def test_kl_is_that_from_the_teacher() -> None:
    batches = class_scores()
    total = 0.0
    for scores in batches:
        assert scores.teacher is not None
        teacher, student = scores.teacher.double().softmax(-1), scores.student.double().softmax(-1)
        total += float(sum(stats.entropy(p, q) for p, q in zip(teacher, student, strict=True)))
    assert computed(METRICS["kl"], batches) == pytest.approx(total / 22, rel=1e-6)


def test_kl_of_other_classes_is_refused() -> None:
    scores = Scores(student=torch.zeros(2, 3), teacher=torch.zeros(2, 4))
    with pytest.raises(DataError, match=r"^'kl' needs equal positions and classes .* \(2, 3\) and"):
        computed(METRICS["kl"], [scores])


@pytest.mark.parametrize("width", [None, 1, 3])
def test_value_metrics_are_those_of_scikit_learn_and_scipy(width: int | None) -> None:
    batches = value_scores(width)
    student = joined([scores.student for scores in batches]).ravel()
    labels = joined([scores.labels for scores in batches]).ravel()
    expected = {
        "mean_squared_error": reference.mean_squared_error(labels, student),
        "pearson": stats.pearsonr(student, labels).statistic,
        "spearman": stats.spearmanr(student, labels).statistic,
    }
    for name, number in expected.items():
        assert computed(METRICS[name], batches) == pytest.approx(number, rel=1e-5)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_constant_correlates_with_nothing(name: str) -> None:
    scores = Scores(student=torch.ones(4, 1), labels=torch.arange(4.0))
    assert computed(METRICS[name], [scores]) == 0.0


def test_values_of_another_number_are_refused() -> None:
    scores = Scores(student=torch.ones(4, 2), labels=torch.arange(4.0))
    with pytest.raises(DataError, match=r"^'labels' must have one value for each value of"):
        computed(METRICS["mean_squared_error"], [scores])


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_lies_within_its_limits(name: str) -> None:
    metric = METRICS[name]
    two = class_scores(2)
    kinds = {"classes": two, "teacher": two, "values": value_scores(2), "pairs": pair_scores()}
    batches = kinds[metric.reads]
    assert metric.least <= computed(metric, batches) <= metric.most
    assert metric.name == name


def test_missing_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"^'evaluation' must hold the labels"):
        NLL.part(Scores(student=torch.zeros(2, 3)))


def test_metrics_go_by_name() -> None:
    assert metric_of("nll") is NLL
    assert metric_of(ACCURACY) is ACCURACY
    with pytest.raises(SpecError, match=r"^'metric' 'acuracy' is not built in; did you mean 'accu"):
        metric_of("acuracy")


def test_usual_metrics_stand_beside_the_judging_one() -> None:
    names = {
        metric: [beside.name for beside in metrics_beside(metric)]
        for metric in ("nll", "f1", "pearson", "kl")
    }
    assert names == {
        "nll": ["accuracy", "nll"],
        "f1": ["accuracy", "nll", "f1"],
        "pearson": ["mean_squared_error", "pearson"],
        "kl": ["kl"],
    }


def test_a_target_is_reached_in_the_direction_of_the_metric() -> None:
    assert is_reached("f1", 0.6, 0.5)
    assert not is_reached("f1", 0.4, 0.5)
    assert is_reached("kl", 0.4, 0.5)
    assert not is_reached("kl", 0.6, 0.5)


def test_chance_is_a_matter_of_accuracy() -> None:
    assert is_at_chance({"accuracy": 0.4}, 0.5)
    assert not is_at_chance({"accuracy": 0.5}, 0.5)
    assert not is_at_chance({"accuracy": 0.4}, None)
    assert not is_at_chance({"nll": 0.4}, 0.5)


def test_average_precision_is_the_mean_over_labels_of_both_kinds() -> None:
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, math.nan, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
    batches = [
        Scores(student=student[rows], labels=labels[rows]) for rows in (slice(3), slice(3, None))
    ]
    kept = [0, 2, 3]
    expected = [
        reference.average_precision_score(labels[:, 0].numpy(), student[:, 0].numpy()),
        reference.average_precision_score(labels[kept, 1].numpy(), student[kept, 1].numpy()),
    ]
    assert computed(METRICS["average_precision"], batches) == pytest.approx(sum(expected) / 2)
    with pytest.raises(DataError, match="'average_precision' must find a label with examples of 0"):
        computed(METRICS["average_precision"], [Scores(student=student, labels=torch.ones(4, 3))])


def test_cosine_similarity_is_the_mean_of_all_rows() -> None:
    batches = value_scores(3)
    student, labels = (
        np.concatenate([np.asarray(tensor) for tensor in tensors])
        for tensors in ([s.student for s in batches], [s.labels for s in batches])
    )
    norms = np.linalg.norm(student, axis=1) * np.linalg.norm(labels, axis=1)
    expected = float(np.mean((student * labels).sum(1) / norms))
    assert computed(METRICS["cosine_similarity"], batches) == pytest.approx(expected, rel=1e-5)
