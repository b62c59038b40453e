"""What does a stage cost that runs the first layers only, against what its FLOPs say?

Task: masked tokens of the shipped text (vocabulary 8,192, 15 % hidden). Teacher and student: BERTs
of 12 layers, 768 to 256 wide, and of 4 layers, 256 to 64 wide. Extraction follows every layer, so
stage i runs i layers of both models and no head; the last stage runs everything. A step of every
stage takes turns. `ratio` is the median processor time of a step over that of the last stage,
`FLOPs` the same for the FLOPs counted, and `excess` the first over the second: 1 means that leaving
layers out saves all that it could.
Run: python benchmarks/early_exit.py [--quick]
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from encoders import encoder

import curricle
from curricle.records import StagePlan
from curricle.tasks import TextTask
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.loop.stepping import stepping
from curricle.training.setup.settings import Precision, TrainingSettings

Size = tuple[int, int, int, int]
SIZES: tuple[Size, ...] = ((12, 768, 256, 4), (12, 768, 256, 16), (4, 256, 64, 32))
"""Layers, width of the teacher and of the student, examples a step."""
QUICK: tuple[Size, ...] = ((2, 32, 16, 4),)


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, few repetitions")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, {given.precision}")
    for size in QUICK if given.quick else SIZES:
        run = bound(size, given.precision)
        seconds = timed(run, 2 if given.quick else 7)
        layers, wide, narrow, examples = size
        print(f"\n{layers} x {wide} to {narrow}, {examples} x 64 tokens")
        print("stage            ms   ratio   FLOPs  excess")
        plans = [stage.plan for stage in run.stages]
        for plan, took in zip(plans, seconds, strict=True):
            ratio, expected = took / seconds[-1], flops(plan) / flops(plans[-1])
            print(
                f"{plan.name:12}{took * 1e3:8.1f}{ratio:8.3f}{expected:8.3f}{ratio / expected:8.2f}"
            )


def bound(size: Size, precision: Precision) -> BoundRun:
    """Return an extraction from every layer, bound."""
    layers, wide, narrow, examples = size
    task = TextTask(vocabulary_size=8192, window=64, batch_size=examples, evaluation_batches=1)
    with tempfile.TemporaryDirectory() as folder:
        data = task.open(seed=0, cache_dir=Path(folder))
        pairs = tuple(curricle.LayerPair(student=tap, teacher=tap) for tap in range(1, layers + 1))
        return bind(
            curricle.extraction(
                total=f"{layers + 1} steps", pairs=pairs, durations=("1 steps",) * layers
            ),
            student=encoder(layers, narrow, data),
            teacher=LiveTeacher(encoder(layers, wide, data)),
            stream=data.stream,
            optimizer=curricle.AdamW(learning_rate=1e-4),
            settings=TrainingSettings(device="cpu", precision=precision, threads=1),
            seed=0,
        )


def timed(run: BoundRun, repetitions: int) -> list[float]:
    """Return the median seconds of a step of each stage, taken in turns."""
    assert run.teacher is not None
    found: list[list[float]] = [[] for _ in run.stages]
    for _ in range(repetitions):
        for stage, taken in zip(run.stages, found, strict=True):
            optimizer = run.optimizer.build(run.student.module.parameters())
            teaching = run.teacher.teaching(run.settings.teacher_inference)
            with teaching, stepping(run, stage, optimizer) as stepper:
                stepper.step(stage.span.start)
                started = time.process_time()
                stepper.step(stage.span.start)
                taken.append(time.process_time() - started)
    return [statistics.median(one) for one in found]


def flops(plan: StagePlan) -> float:
    """Return the FLOPs of a step."""
    return plan.student_flops + plan.teacher_flops


if __name__ == "__main__":
    main()
