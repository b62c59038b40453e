"""Distil an image classifier: from labeled images to a folder that ships.

The images are the 1,797 handwritten digits of scikit-learn: three in five train, one in five
chooses the student, one in five is the test. A residual network of 32 and 64 channels is trained on
them. Students of a quarter of the channels, at half the resolution, then learn by six strategies
within one budget, and the best on held-out images is exported, with an ONNX file.
Run it with: python examples/image_classifier.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import seeding

CHANNELS, STUDENT_CHANNELS, BATCH = 32, 8, 32
SOFT = {
    "kind": "logits",
    "teacher_temperature": 4.0,
    "student_temperature": 4.0,
    "scale": "temperature_squared",
}
"""Soft targets of Hinton et al. 2015."""


def layers(reading: str) -> dict[str, object]:
    """Return extraction of the two stages of the teacher, read pooled or on a common grid."""
    pairs = [
        {"student": name, "teacher": name, "reading": reading} for name in ("layer1", "layer2")
    ]
    # States behind a ReLU have no common scale with projected ones.
    return {
        "kind": "extraction", "pairs": pairs, "layer_fraction": 0.1, "normalize": "layernorm",
    }  # fmt: skip


STRATEGIES = {
    "labels": {"kind": "from_labels"},
    "one_shot": {"kind": "one_shot"},
    "soft_and_labels": {"kind": "one_shot", "objective": SOFT, "label_weight": 1.0},
    # Closed-form starts do not fit networks with shortcuts, so that this is one-shot from random.
    "auto": {"kind": "auto"},
    "extraction_pooled": layers("pooled"),
    "extraction_grid": layers("grid"),
}


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        """Make the layers."""
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, width, 1, stride=stride)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        """Return a map of features."""
        inner = functional.relu(self.norms[0](self.first(images)))
        return functional.relu(self.norms[1](self.second(inner)) + self.shortcut(images))


class Network(nn.Module):
    """A residual network with two stages, an average over the map, and a linear head."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        """Make the layers; a stride of 2 halves both sides of all maps."""
        super().__init__()
        self.layer1 = Block(1, channels, stride)
        self.layer2 = Block(channels, 2 * channels, 2)
        self.fc = nn.Linear(2 * channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.fc(self.layer2(self.layer1(images)).mean((2, 3)))
        return logits


def parts() -> list[TensorDataset]:
    """Return training, held-out and test images with their digits."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(data.target)
    order = torch.randperm(len(images), generator=seeding.generator(0, "images"))
    fifth = len(images) // 5
    sizes = [len(images) - 2 * fifth, fifth, fifth]
    return [TensorDataset(images[rows], labels[rows]) for rows in order.split(sizes)]


def whole(data: TensorDataset) -> list[curricle.Batch]:
    """Return a part as a batch."""
    images, labels = data.tensors
    return [curricle.Batch(inputs=images, labels=labels)]


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Distil an image classifier.")
    parser.add_argument("--to", type=Path, default=Path("runs/digits"), help="folder of results")
    parser.add_argument("--teacher-steps", type=int, default=600)
    parser.add_argument("--student-steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--onnx", action="store_true", help="write an ONNX file, too")
    return parser.parse_args(arguments)


def main(  # noqa: PLR0914 - a script reads from top to bottom
    steps: int | None = None, arguments: Sequence[str] = ()
) -> dict[str, float]:
    """Return the accuracy of teacher and shipped student on the test images.

    Args:
        steps: Length of each training; None takes the lengths of the options.
        arguments: Options of the command line.
    """
    options = read_options(arguments)
    train, held_out, test = parts()
    loader = DataLoader(train, batch_size=BATCH, shuffle=True, drop_last=True)
    data = {"data": curricle.stream(loader), "evaluation": whole(held_out)}
    with seeding.scoped(0, "teacher"):
        teacher = Network(CHANNELS)
    curricle.distill(
        teacher,
        None,
        curricle.from_labels(total=f"{steps or options.teacher_steps} steps"),
        optimizer=curricle.AdamW(learning_rate=3e-3),
        **data,
    )

    length = steps or options.student_steps
    place = options.to / f"students-{length}"
    # The channels of a convolution are on axis 1.
    comparison = curricle.compare(
        lambda _seed: curricle.tapped(Network(STUDENT_CHANNELS, stride=2), width_axis=1),
        curricle.tapped(teacher, width_axis=1),
        **data,
        budget=f"{length} steps",
        strategies=STRATEGIES,
        seeds=options.seeds,
        optimizer=curricle.AdamW(learning_rate=1e-2),
        output_dir=place,
        share_teacher=True,
    )
    print(comparison)

    print("\n| strategy | seed | accuracy on test images |\n| --- | ---: | ---: |")
    accuracies = {}
    for run, student in comparison.students.items():
        metrics = curricle.evaluate(student, whole(test), repetitions=1).student.metrics
        print(f"| {run[0]} | {run[1]} | {metrics['accuracy']:.1%} |")
        on_held_out = curricle.evaluate(student, whole(held_out), repetitions=1)
        accuracies[run] = on_held_out.student.metrics["accuracy"]
    name, seed = best = max(accuracies, key=lambda run: accuracies[run])
    student = comparison.students[best]
    evaluation = curricle.evaluate(
        student, whole(test), teacher=teacher, metrics=("accuracy", "nll", "kl")
    )
    print(f"\n{name}, seed {seed}, beside its teacher on the test images\n\n{evaluation}")
    exported = curricle.export(
        student,
        place / "ship",
        run=place / "students" / name / f"seed-{seed}",
        teacher=f"residual network of {CHANNELS} and {2 * CHANNELS} channels, trained from labels",
        onnx=whole(test)[0] if options.onnx else None,
    )
    print(f"it ships in {exported.folder}: {', '.join(exported.files)}")
    return {
        "teacher": evaluation.teacher.metrics["accuracy"],
        "student": evaluation.student.metrics["accuracy"],
    }


if __name__ == "__main__":
    main(arguments=sys.argv[1:])
