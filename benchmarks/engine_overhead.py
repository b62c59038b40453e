"""Time of a step of the engine, relative to a loop written by hand.

Student: 100-wide MLP on (100,4)-parity, batch 64, SGD, cross-entropy; the hand-written loop reads
the same batches and makes the same updates. One torch thread. Short repetitions of both alternate,
so that a slower clock or another process meets both; each repetition of the engine is compared with
the mean of those before and after it. Printed are the median of these ratios and its quartiles.
Run: python benchmarks/engine_overhead.py [--quick]
"""

import argparse
import platform
import statistics
import time
from itertools import pairwise

import torch
from torch import nn

import curricle
from curricle import seeding
from curricle.models.mlp import MLP

INPUTS, DEGREE, WIDTH, BATCH, RATE = 100, 4, 100, 64, 0.3


def main() -> None:
    """Print the medians and the ratios of neighbors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short repetitions")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    steps, repetitions = (300, 3) if quick else (600, 60)
    by_hand, engine = [hand_written(steps)], []
    for _ in range(repetitions):
        engine.append(with_engine(steps))
        by_hand.append(hand_written(steps))
    ratios = [
        2 * time_ / (before + after)
        for time_, (before, after) in zip(engine, pairwise(by_hand), strict=True)
    ]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread")
    print(f"{repetitions} alternating repetitions of {steps} steps")
    print(f"hand-written {statistics.median(by_hand) * 1e6:7.1f} us a step")
    print(f"curricle     {statistics.median(engine) * 1e6:7.1f} us a step")
    print(f"ratio        {ratio:.3f} (quartiles {low:.3f} and {high:.3f})")


def hand_written(steps: int) -> float:
    """Return the seconds of one step of a plain PyTorch loop."""
    data, model = stream(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    started = time.perf_counter()
    for step in range(steps):
        batch = data.batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch.inputs), batch.labels)
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - started) / steps


def with_engine(steps: int) -> float:
    """Return the seconds of one step of the engine, evaluation left out."""
    result = curricle.distill(
        network(),
        None,
        curricle.from_labels(total=f"{steps} steps"),
        stream(),
        evaluation=[stream("evaluation").batch(0)],
        optimizer=curricle.SGD(learning_rate=RATE),
        settings=curricle.TrainingSettings(eval_every=10**9, log_every=50),
    )
    return result.usage.seconds / steps


def stream(purpose: str = "train") -> curricle.ParityStream:
    """Return the data, the same in both loops."""
    return curricle.ParityStream(
        num_inputs=INPUTS, degree=DEGREE, batch_size=BATCH, seed=0, purpose=purpose
    )


def network() -> MLP:
    """Return the student with the same first weights in both loops."""
    with seeding.scoped(0, "student"):
        return MLP(INPUTS, (WIDTH,), 2)


if __name__ == "__main__":
    main()
