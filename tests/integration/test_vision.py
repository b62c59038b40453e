"""Networks for images as torchvision and timm build them, taught by module path and pooled taps."""

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.objectives.projections import Identity
from curricle.records import StepRecord
from tests.parts import Listed, drawn

pytestmark = pytest.mark.integration
CLASSES = 3


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, with its names in torchvision and timm."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, images: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(images)))
        state = self.bn2(self.conv2(inner))
        state += self.downsample(images)
        result: Tensor = self.relu(state)
        return result


class TorchvisionLike(nn.Module):
    """Stem, stages, pooling and `fc` in the order of torchvision's ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        state = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        state = self.avgpool(self.layer2(self.layer1(state)))
        logits: Tensor = self.fc(torch.flatten(state, 1))
        return logits


class TimmLike(nn.Module):
    """Stages in a sequence, and a head with pooling, normalization and `fc`, as in ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.stages = nn.Sequential(
            nn.Sequential(BasicBlock(width, width, 1)), nn.Sequential(BasicBlock(width, width, 2))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward_features(self, images: Tensor) -> Tensor:
        state: Tensor = self.stages(self.stem(images))
        return state

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.forward_features(images).mean((2, 3))))
        return logits


def cnn(make: Any, width: int, seed: int = 0) -> Any:
    with seeding.scoped(seed, "test model"):
        return curricle.tapped(make(width), width_axis=1)


def vit(width: int = 8) -> Any:
    # As in a configuration file: labels are no argument of the class.
    make: Any = hf.ViTConfig
    config = make(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=CLASSES, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with seeding.scoped(0, "test model"):
        return hf.ViTForImageClassification(config)


def images(size: int = 16) -> Batch:
    labels = torch.arange(6) % CLASSES
    return Batch(inputs=drawn(6, 3, size, size), labels=labels)


class Named(nn.Module):
    """A model of transformers that takes images without a name, as a network of torchvision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def losses(student: Any, teacher: Any, pair: Any, **fields: Any) -> list[float]:
    """Return the losses of three steps on a pair and three on the logits."""
    records: list[Any] = []
    curriculum = curricle.extraction(
        total="6 steps", layer_fraction=0.5, pairs=(curricle.LayerPair(**pair),), **fields
    )
    curricle.distill(
        student, teacher, curriculum, Listed(images()), evaluation=[images()],
        settings=curricle.TrainingSettings(device="cpu", log_every=1),
        optimizer=curricle.AdamW(learning_rate=3e-3), observers=[records.append],
    )  # fmt: skip
    return [record.loss for record in records if isinstance(record, StepRecord)]


@pytest.mark.parametrize("make", [TorchvisionLike, TimmLike])
@pytest.mark.parametrize("reading", ["positions", "grid", "pooled"])
def test_a_narrow_network_learns_from_a_wide_one(make: Any, reading: str) -> None:
    path = "layer1" if make is TorchvisionLike else "stages.0"
    pair = {"student": path, "teacher": path, "reading": reading}
    found = losses(cnn(make, 4), cnn(make, 8, seed=1), pair)
    assert found[2] < found[0]
    assert found[5] < found[3]


def test_the_first_loss_of_pooled_maps_is_that_of_their_means() -> None:
    student, teacher = cnn(TorchvisionLike, 4), cnn(TorchvisionLike, 4, seed=1)
    inputs: Any = images().inputs
    states = []
    for model in (student.module.train(), teacher.module.eval()):
        stem = model.maxpool(model.relu(model.bn1(model.conv1(inputs))))
        states.append(model.layer1(stem).mean((2, 3)))
    # The pass above has moved the statistics of the student.
    student = cnn(TorchvisionLike, 4)
    expected = (states[0] - states[1]).square().mean().item()
    pair = {"student": "layer1", "teacher": "layer1", "reading": "pooled"}
    found = losses(student, teacher, pair, projection=Identity(), normalize="none")
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_a_convolutional_network_teaches_a_vision_transformer() -> None:
    pair = {"student": "model.vit.layers.0", "teacher": "layer1", "reading": "pooled"}
    student = Named(vit())
    paths = [path for path, _ in student.named_modules()]
    block = next(path for path in paths if path.endswith(".0") and "layer" in path)
    found = losses(student, cnn(TorchvisionLike, 8), pair | {"student": block})
    assert found[2] < found[0]
    assert found[5] < found[3]


def test_a_vision_transformer_teaches_a_convolutional_network() -> None:
    teacher = Named(vit())
    block = next(
        path for path, _ in teacher.named_modules() if path.endswith(".0") and "layer" in path
    )
    pair = {"student": "layer2", "teacher": block, "reading": "pooled"}
    found = losses(cnn(TorchvisionLike, 4), teacher, pair)
    assert found[2] < found[0]


def test_networks_of_other_resolution_learn_on_a_grid_and_are_refused_without() -> None:
    pair = {"student": "layer2", "teacher": "layer1", "reading": "grid"}
    found = losses(cnn(TorchvisionLike, 4), cnn(TorchvisionLike, 8, seed=1), pair)
    assert found[2] < found[0]
    with pytest.raises(BindError, match=r"got \(6, 2, 2\) and \(6, 4, 4\); LayerPair\(reading='po"):
        losses(
            cnn(TorchvisionLike, 4),
            cnn(TorchvisionLike, 8, seed=1),
            pair | {"reading": "positions"},
        )


def test_an_axis_of_channels_that_is_not_named_is_refused_with_its_name() -> None:
    with seeding.scoped(0, "test model"):
        student, teacher = TorchvisionLike(4), TorchvisionLike(8)
    with pytest.raises(BindError, match=r"curricle.tapped\(model, width_axis=1\) names axis 1"):
        losses(student, teacher, {"student": "layer1", "teacher": "layer1", "reading": "pooled"})


def test_stored_targets_of_pooled_taps_give_the_loss_of_a_live_teacher(tmp_path: Any) -> None:
    teacher = cnn(TorchvisionLike, 8, seed=1)
    curriculum = curricle.extraction(
        total="8 steps",
        layer_fraction=0.5,
        pairs=(curricle.LayerPair(student="layer2", teacher="layer1", reading="pooled"),),
    )

    def run(source: Any) -> list[float]:
        records: list[Any] = []
        curricle.distill(
            cnn(TorchvisionLike, 4), source, curriculum, Listed(images()), evaluation=[images()],
            settings=curricle.TrainingSettings(device="cpu", log_every=1),
            observers=[records.append],
        )  # fmt: skip
        return [record.loss for record in records if isinstance(record, StepRecord)]

    curricle.capture_targets(
        cnn(TorchvisionLike, 4), teacher, curriculum, Listed(images()),
        folder=tmp_path / "targets", settings=curricle.TrainingSettings(device="cpu"),
    )  # fmt: skip
    # The layer stage; stored logits are rounded.
    stored, live = run(curricle.open_targets(tmp_path / "targets"))[:4], run(teacher)[:4]
    assert stored == pytest.approx(live, rel=1e-3)
