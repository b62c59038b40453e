"""Small feed-forward networks, with weights as after training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.least_squares.fitting import CalibrationBatch
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped

EDGE, CLASSES = 6, 3


def convolutional(*channels: int, seed: int = 0, kernel: int = 3) -> nn.Module:
    """Return convolutions with normalizations, pooling after the first, and a linear head."""
    with seeding.scoped(seed, "convolutional network"):
        sizes, layers = (2, *channels), list[nn.Module]()
        for number in range(len(channels)):
            before, after = sizes[number : number + 2]
            padding = kernel // 2
            layers += [
                nn.Conv2d(before, after, kernel, padding=padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            layers += [nn.MaxPool2d(2)] if not number else []
        layers += [nn.Flatten(), nn.Linear(channels[-1] * (EDGE // 2) ** 2, CLASSES)]
        network = nn.Sequential(*layers)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.2, 0.6)
    return network.eval()


def perceptron(*widths: int, seed: int = 0, num_inputs: int = 8) -> nn.Module:
    """Return linear maps with GELU between."""
    with seeding.scoped(seed, "perceptron"):
        sizes, layers = (num_inputs, *widths), list[nn.Module]()
        for number in range(len(widths)):
            layers += [nn.Linear(sizes[number], sizes[number + 1]), nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES)).eval()


def images(seed: int, examples: int = 8) -> Tensor:
    """Return a batch of images."""
    generator = seeding.generator(seed, "images")
    return torch.randn(examples, 2, EDGE, EDGE, generator=generator)


def vectors(seed: int, examples: int = 16, width: int = 8) -> Tensor:
    """Return a batch of vectors."""
    generator = seeding.generator(seed, "vectors")
    return torch.randn(examples, width, generator=generator)


def calibration(batches: Sequence[Tensor]) -> list[CalibrationBatch]:
    """Return batches that both networks read."""
    return [CalibrationBatch(student=batch, teacher=batch) for batch in batches]


def open_networks(student: nn.Module, teacher: nn.Module) -> tuple[TappedModel, TappedModel]:
    """Return two networks as models without numbered blocks."""
    return tapped(student), tapped(teacher)


def error(student: nn.Module, teacher: nn.Module, batch: Tensor) -> float:
    """Return the squared error of logits relative to the variance of the teacher's."""
    with torch.no_grad():
        logits, targets = student(batch), teacher(batch)
    return float((logits - targets).square().mean() / targets.var(0).mean())
