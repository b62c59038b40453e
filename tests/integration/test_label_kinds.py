"""Training and judging on labels other than classes, and by metrics other than accuracy."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import curricle
from curricle import seeding
from curricle.errors import BindError
from curricle.metrics import METRICS, Metric, Scores
from curricle.objectives.labels import LabelLossName

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
MATRIX = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
TARGETS: dict[LabelLossName, Tensor] = {
    "cross_entropy": (INPUTS @ MATRIX).argmax(-1),
    "binary": (INPUTS @ MATRIX > 0).float(),
    "squared_error": INPUTS @ MATRIX,
    "cosine": INPUTS @ MATRIX,
}


def linear(seed: int) -> nn.Module:
    with seeding.scoped(seed, "model"):
        return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))


def loader(labels: Tensor) -> DataLoader[object]:
    rows: list[object] = list(zip(INPUTS, labels, strict=True))
    return DataLoader(rows, batch_size=16)  # type: ignore[arg-type]


def held_out(labels: Tensor) -> list[curricle.Batch]:
    halves = (slice(40), slice(40, None))
    return [curricle.Batch(inputs=INPUTS[half], labels=labels[half]) for half in halves]


def judged(
    loss: LabelLossName, metric: str | Metric, teacher: nn.Module | None = None, **arguments: object
) -> curricle.Result:
    return curricle.distill(
        linear(0),
        teacher,
        curricle.from_labels(total="80 steps", loss=loss),
        curricle.stream(loader(TARGETS[loss])),
        evaluation=held_out(TARGETS[loss]),
        metric=metric,
        optimizer=curricle.AdamW(learning_rate=0.02),
        **arguments,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("loss", "metric", "reached", "names"),
    [
        ("cross_entropy", "f1_macro", 0.9, ["accuracy", "nll", "f1_macro"]),
        ("squared_error", "pearson", 0.99, ["mean_squared_error", "pearson"]),
        ("squared_error", "mean_squared_error", 0.05, ["mean_squared_error"]),
        ("cosine", "spearman", 0.9, ["mean_squared_error", "spearman"]),
        ("binary", "spearman", 0.8, ["mean_squared_error", "spearman"]),
    ],
)
def test_a_student_learns_each_kind_of_label(
    loss: LabelLossName, metric: str, reached: float, names: Sequence[str]
) -> None:
    metrics = judged(loss, metric).metrics
    assert [*metrics] == names
    is_higher = METRICS[metric].better == "higher"
    assert metrics[metric] > reached if is_higher else metrics[metric] < reached


@pytest.mark.parametrize("num_values", [1, 3])
@pytest.mark.parametrize("strategy", ["one_shot", "extraction"])
def test_a_regression_teacher_is_matched_without_labels_in_the_loss(
    strategy: str, num_values: int
) -> None:
    with seeding.scoped(0, "model"):
        teacher, student = (
            nn.Sequential(nn.Linear(6, width), nn.Linear(width, num_values)) for width in (16, 8)
        )
    taught = teacher(INPUTS).detach()
    values = curricle.MatchLogits(divergence={"kind": "squared_error"})  # type: ignore[arg-type]
    pair = curricle.LayerPair(student="0", teacher="0")
    curriculum = (
        curricle.one_shot(total="200 steps", objective=values)
        if strategy == "one_shot"
        else curricle.extraction(total="200 steps", pairs=(pair,), final_objective=values)
    )
    before = float(((student(INPUTS).detach() - taught) ** 2).mean())
    result = curricle.distill(
        student,
        teacher,
        curriculum,
        # Labels of the data are other numbers: only the teacher can have taught the values.
        curricle.stream(loader(torch.zeros(64, num_values))),
        evaluation=held_out(taught),
        metric="mean_squared_error",
        optimizer=curricle.AdamW(learning_rate=0.02),
    )
    assert result.metrics["mean_squared_error"] < before / 20


def test_kl_compares_with_the_finished_teacher() -> None:
    teacher = linear(1)
    metrics = judged("cross_entropy", "kl", teacher).metrics
    student = linear(0)
    evaluated = judged("cross_entropy", "kl", student).metrics["kl"]
    assert metrics.keys() == {"kl"}
    assert metrics["kl"] > 0
    assert evaluated != metrics["kl"]


def test_kl_needs_a_model_that_teaches() -> None:
    with pytest.raises(BindError, match=r"^'metric' must not read a teacher, as 'kl' does, where"):
        judged("cross_entropy", "kl")


def largest_error(scores: Scores) -> float:
    assert scores.labels is not None
    return float((scores.student - scores.labels).abs().max())


def test_a_metric_of_ones_own_declares_its_direction() -> None:
    largest = Metric(
        name="worst",
        better="lower",
        part=largest_error,
        compute=lambda parts, count: max(parts),
        reads="values",
    )
    records: list[object] = []
    metrics = judged("squared_error", largest, observers=[records.append]).metrics
    opening = records[0]
    assert [*metrics] == ["mean_squared_error", "worst"]
    assert (opening.metric, opening.better) == ("worst", "lower")  # type: ignore[attr-defined]
    with pytest.raises(BindError, match=r"^'better' must be 'lower' or None for the metric 'wors"):
        judged("squared_error", largest, better="higher")
