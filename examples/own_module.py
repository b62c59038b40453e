"""Distil your own `nn.Module`: name its layers by path, and its data by a DataLoader.

A small convolutional network learns from a wider one to tell noisy stripes from noisy checks.
Run it with: python examples/own_module.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import curricle
from curricle import seeding


def main(steps: int = 300) -> dict[str, float]:
    """Return the metrics of the student.

    Args:
        steps: Length of the teacher's and of the student's training.
    """
    train, held_out = images(2048, "train"), images(512, "held out")
    data = curricle.stream(DataLoader(train, batch_size=32, shuffle=True))
    settings = {
        "evaluation": [curricle.Batch(inputs=held_out.tensors[0], labels=held_out.tensors[1])],
        "optimizer": curricle.AdamW(learning_rate=3e-3),
    }

    teacher, student = network(32, "teacher"), network(4, "student")
    curricle.distill(teacher, None, curricle.from_labels(total=f"{steps} steps"), data, **settings)
    # Module paths as in `named_modules`. The channels of a convolution are on axis 1.
    curriculum = curricle.extraction(
        total=f"{steps} steps",
        pairs=(
            curricle.LayerPair(student="first", teacher="first"),
            curricle.LayerPair(student="second", teacher="second"),
        ),
    )
    result = curricle.distill(
        curricle.tapped(student, width_axis=1),
        curricle.tapped(teacher, width_axis=1),
        curriculum,
        data,
        **settings,
    )
    print(f"student {result.metrics['accuracy']:.3f}, {result.usage.total_flops:.2e} FLOPs")
    return result.metrics


class Network(nn.Module):
    """Two convolutions, an average over the image, and a linear head."""

    def __init__(self, channels: int) -> None:
        """Make the layers."""
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(channels, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.second(self.first(image)).mean((2, 3)))
        return logits


def network(channels: int, purpose: str) -> Network:
    """Return a network whose first weights depend on the purpose only."""
    with seeding.scoped(0, purpose):
        return Network(channels)


def images(number: int, purpose: str) -> TensorDataset:
    """Return noisy 12 x 12 images of stripes (class 0) and checks (class 1)."""
    generator = seeding.generator(0, purpose)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    patterns = torch.stack([columns % 2, (rows + columns) % 2]).float()
    labels = torch.randint(2, (number,), generator=generator)
    noise = torch.randn(number, 12, 12, generator=generator)
    return TensorDataset((patterns[labels] + noise).unsqueeze(1), labels)


if __name__ == "__main__":
    main()
