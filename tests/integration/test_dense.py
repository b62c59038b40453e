"""Dense prediction: classes on axis 1 and labels of pixels, from the data to the metrics."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import seeding
from curricle.errors import BindError, CurricleError
from curricle.records import EvaluationRecord, StepRecord
from tests.parts import drawn

pytestmark = pytest.mark.integration
CLASSES, SIDE = 3, 6
STILL = curricle.TrainingSettings(device="cpu", log_every=1, eval_every=1)


class Segmenter(nn.Module):
    """Two convolutions that give the scores of each pixel, classes on axis 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Conv2d(1, width, 3, padding=1)
        self.out = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.out(self.block(images).relu())
        return scores


def build(width: int, seed: int = 0) -> Segmenter:
    with seeding.scoped(seed, "test model"):
        return Segmenter(width)


def tapped(module: nn.Module) -> Any:
    return curricle.tapped(module, width_axis=1)


def scenes(number: int = 8) -> tuple[Tensor, Tensor]:
    """Return images and the class of each pixel by its brightness; borders are ignored."""
    images = drawn(number, 1, SIDE, SIDE)
    labels = torch.bucketize(images[:, 0], torch.tensor([-0.5, 0.5]))
    labels[:, 0] = -100
    return images, labels


def first_step(curriculum: Any, data: Any, **options: Any) -> tuple[float, dict[str, float]]:
    """Return the first loss and the first metrics of a run."""
    records: list[Any] = []
    curricle.distill(
        tapped(build(4)), tapped(build(8, seed=1)), curriculum, data,
        settings=STILL, observers=[records.append], optimizer=curricle.AdamW(learning_rate=1e-30),
        **options,
    )  # fmt: skip
    (loss, *_) = [record.loss for record in records if isinstance(record, StepRecord)]
    (metrics, *_) = [record.metrics for record in records if isinstance(record, EvaluationRecord)]
    return loss, metrics


def whole() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*scenes()), batch_size=8)


def test_the_divergence_is_over_classes_not_over_columns() -> None:
    images, labels = scenes()
    with torch.no_grad():
        student, teacher = build(4)(images), build(8, seed=1)(images)
    log_student, log_teacher = student.log_softmax(1), teacher.log_softmax(1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    # The wrong axis gives another number, without any error.
    over_columns = functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    is_labeled = labels != -100
    expected = divergence[is_labeled].mean().item()
    assert expected != pytest.approx(over_columns.mean().item(), rel=0.05)
    loss, metrics = first_step(curricle.one_shot(total="1 steps"), whole(), evaluation=whole())
    assert loss == pytest.approx(expected, rel=1e-5)
    right = (student.argmax(1) == labels)[is_labeled].float().mean().item()
    assert metrics["accuracy"] == pytest.approx(right, abs=1e-6)
    nll = functional.cross_entropy(student, labels).item()
    assert metrics["nll"] == pytest.approx(nll, rel=1e-5)


def test_labels_of_pixels_are_fitted_as_torch_fits_them() -> None:
    images, labels = scenes()
    expected = functional.cross_entropy(build(4)(images), labels).item()
    loss, _ = first_step(curricle.from_labels(total="1 steps"), whole(), evaluation=whole())
    assert loss == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_batch_add_up_where_pixels_are_ignored() -> None:
    images, labels = scenes()
    labels[0] = -100
    expected = functional.cross_entropy(build(4)(images), labels).item()
    data = DataLoader(TensorDataset(images, labels), batch_size=8)
    records: list[Any] = []
    curricle.distill(
        tapped(build(4)), None, curricle.from_labels(total="1 steps"), data, evaluation=whole(),
        settings=curricle.TrainingSettings(
            device="cpu", log_every=1, gradient_accumulation_steps=4
        ),
        observers=[records.append],
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_values_of_pixels_are_fitted_where_they_are_declared() -> None:
    images, _ = scenes()
    depths = drawn(8, SIDE, SIDE, seed=1)
    with seeding.scoped(0, "test model"):
        student = nn.Conv2d(1, 1, 3, padding=1)
    expected = (student(images)[:, 0] - depths).square().mean().item()
    loader = DataLoader(TensorDataset(images, depths), batch_size=8)
    with pytest.raises(CurricleError, match=r"positions='token' of curricle.stream must declare"):
        curricle.stream(loader).batch(0)
    data = curricle.stream(loader, positions="token")
    records: list[Any] = []
    curricle.distill(
        tapped(student), None, curricle.from_labels(total="1 steps", loss="squared_error"), data,
        evaluation=lambda _: {"accuracy": 0.0}, settings=STILL, observers=[records.append],
    )  # fmt: skip
    (loss,) = [record.loss for record in records if isinstance(record, StepRecord)]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_small_student_learns_pixels_by_layers_and_logits() -> None:
    teacher, student = build(8, seed=1), build(4)
    data, settings = whole(), curricle.TrainingSettings(device="cpu")
    optimizer = curricle.AdamW(learning_rate=3e-2)
    options: dict[str, Any] = {"evaluation": whole(), "settings": settings, "optimizer": optimizer}
    curricle.distill(tapped(teacher), None, curricle.from_labels(total="80 steps"), data, **options)
    curriculum = curricle.extraction(
        total="80 steps", pairs=(curricle.LayerPair(student="block", teacher="block"),)
    )
    before = curricle.evaluate(tapped(build(4)), whole(), repetitions=1).student.metrics
    result = curricle.distill(tapped(student), tapped(teacher), curriculum, data, **options)
    assert result.metrics["accuracy"] > before["accuracy"] + 0.2


def test_logits_of_another_resolution_are_refused() -> None:
    class Coarse(Segmenter):
        def forward(self, images: Tensor) -> Tensor:
            return functional.avg_pool2d(super().forward(images), 2)

    with seeding.scoped(0, "test model"):
        student = Coarse(4)
    with pytest.raises(
        BindError, match=r"place with logits .* of shape \(8, 9\); got shape \(8, 36\)"
    ):
        curricle.distill(
            tapped(student), None, curricle.from_labels(total="1 steps"), whole(),
            evaluation=whole(), settings=STILL,
        )  # fmt: skip
