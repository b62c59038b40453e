"""Start by least squares of networks without a stream of states: quality before and after training.

Students of the digits of scikit-learn and of a (100,4)-parity learn in one shot from a random start
and from all maps fitted by least squares; on the parity the start of the first map alone stands
beside them. Printed are held-out accuracy and cross-entropy before the first step and at
evaluations, with the examples by then, those of the start included. One thread.
Run: python benchmarks/least_squares_chains.py [NAMES] [--steps N] [--seeds N] [--quick]
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.example_tasks import TensorsTask
from curricle.models.cnn import CNN
from curricle.models.tapped import TappedModel
from curricle.records import EvaluationRecord, Record
from curricle.task_data import TaskData
from curricle.tasks import ParityTask

PIXELS, CLASSES = 64, 10


class Images(nn.Module):
    """Layers that read images under the name of the task."""

    def __init__(self, *layers: nn.Module) -> None:
        """Take the layers in order."""
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.layers(pixel_values)
        return logits


def pooled(*channels: int) -> nn.Module:
    """Return convolutions with batch normalization and pooling, and a linear head."""
    sizes, layers = (1, *channels), list[nn.Module]()
    for before, after in zip(sizes[:-1], channels, strict=True):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    places = PIXELS // 4 ** len(channels)
    return Images(*layers, nn.Flatten(), nn.Linear(channels[-1] * places, CLASSES))


def flat(*widths: int) -> nn.Module:
    """Return linear maps and ReLU on the pixels."""
    return Images(
        nn.Flatten(), *curricle.MLP(PIXELS, widths, CLASSES).blocks, nn.Linear(widths[-1], CLASSES)
    )


def plain(*channels: int) -> TappedModel:
    """Return the `cnn` of run specs."""
    return CNN(1, channels, CLASSES).tapped()


class Case(NamedTuple):
    """A teacher and a student."""

    task: str
    teacher: Callable[[], nn.Module | TappedModel]
    student: Callable[[], nn.Module | TappedModel]


CASES = {
    "parity": Case(
        "parity", lambda: curricle.MLP(100, (2000,), 2), lambda: curricle.MLP(100, (100,), 2)
    ),
    "mlp": Case("digits", lambda: flat(256, 128), lambda: flat(32, 16)),
    "mlp-shallow": Case("digits", lambda: flat(256, 128), lambda: flat(32)),
    "cnn": Case("digits", lambda: plain(32, 64, 64), lambda: plain(8, 16, 16)),
    "cnn-pooled": Case("digits", lambda: pooled(32, 64), lambda: pooled(4, 8)),
    "cnn-mlp": Case("digits", lambda: pooled(32, 64), lambda: flat(32)),
}
TASKS: Mapping[str, ParityTask | TensorsTask] = {
    "parity": ParityTask(num_inputs=100, degree=4, batch_size=64),
    "digits": TensorsTask(data="digits", encoding="image", batch_size=32),
}
STARTS = {"parity": (None, "random", "least_squares"), "digits": (None, "least_squares")}
TEACHER_STEPS = {"parity": 25_000, "digits": 1500}


def main() -> None:
    """Train teachers and their students."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as cache:
            data = TASKS[case.task].open(seed=0, cache_dir=Path(cache))
            teacher = drawn(case.teacher, 0)
            steps = 12 if arguments.quick else TEACHER_STEPS[case.task]
            learn(f"{name} teacher", (teacher, None), data, case.task, steps=steps)
            for seed in range(arguments.seeds):
                data = TASKS[case.task].open(seed=seed, cache_dir=Path(cache))
                for start in STARTS[case.task]:
                    for steps in (1, 12 if arguments.quick else arguments.steps):
                        student = drawn(case.student, seed + 1)
                        label, models = f"{name} {start or 'drawn'} {seed}", (student, teacher)
                        learn(label, models, data, case.task, steps=steps, start=start)


def drawn(network: Callable[[], nn.Module | TappedModel], seed: int) -> nn.Module | TappedModel:
    """Return a network with the weights of a seed."""
    with seeding.scoped(seed, "weights"):
        return network()


def learn(
    label: str,
    models: tuple[nn.Module | TappedModel, nn.Module | TappedModel | None],
    data: TaskData,
    task: str,
    *,
    steps: int,
    start: str | None = None,
) -> None:
    """Train a network and print its quality on the way; a single step has no size."""
    total = f"{steps} steps"
    curriculum = (
        curricle.from_labels(total=total)
        if models[1] is None
        else curricle.one_shot(total=total, init=start)
    )

    def show(record: Record) -> None:
        if isinstance(record, EvaluationRecord):
            usage, metrics = record.usage, record.metrics
            print(
                f"{label:28} {usage.steps if steps > 1 else 0:5} steps  {usage.examples:8,} "
                f"examples  accuracy {metrics['accuracy']:.4f}  {metrics['nll']:.4f} nats  "
                f"{usage.seconds:.1f} s",
                flush=True,
            )

    schedule = curricle.Schedule(warmup=0.06, decay="cosine")
    rate = 1e-12 if steps == 1 else 0.3 if task == "parity" else 5e-3
    curricle.distill(
        *models,
        curriculum,
        data.stream,
        evaluation=list(data.evaluation),
        optimizer=curricle.SGD(learning_rate=rate)
        if task == "parity"
        else curricle.AdamW(learning_rate=rate, schedule=schedule),
        settings=curricle.TrainingSettings(threads=1, eval_every=max(steps // 6, 1)),
        observers=[show],
        seed=0,
    )


if __name__ == "__main__":
    main()
