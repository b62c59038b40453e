"""What does a second thread save that makes the next step ready while one runs?

Task: masked tokens of the shipped text (vocabulary 8,192, 15 % hidden), 8 x 64 tokens a step; BERTs
without dropout, the student 4 layers of 128, the teacher as said; one stage on the logits. Runs
without a second thread, with one that reads batches, and with one that also asks the teacher, take
turns; torch has one thread in each. Seconds are those of the clock, since that is what a second
core saves: nothing else may run on it.
Run: python benchmarks/prefetching.py [--quick] [--device cuda] [--precision bfloat16]
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Literal

import torch
from encoders import encoder

import curricle
from curricle.models.tapped import TappedModel
from curricle.tasks import TextTask
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import bind
from curricle.training.loop.stepping import stepping
from curricle.training.setup.settings import Precision, TrainingSettings

Ahead = Literal["none", "batch", "targets"]
WAYS: tuple[Ahead, ...] = ("none", "batch", "targets")
TEACHERS = {"4 x 128": (4, 128), "6 x 256": (6, 256)}
QUICK = {"2 x 32": (2, 32)}


def main() -> None:
    """Print a row for each teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small teacher, few steps")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, {given.device}, {given.precision}")
    print(
        f"{'teacher':10}" + "".join(f"{way:>12}" for way in WAYS) + "   ms a step    targets/none"
    )
    steps, repetitions = (3, 1) if given.quick else (20, 5)
    for name, (layers, width) in (QUICK if given.quick else TEACHERS).items():
        took = timed(layers, width, steps, repetitions, given.device, given.precision)
        each = "".join(f"{seconds * 1e3:12.1f}" for seconds in took)
        print(f"{name:10}{each}{took[2] / took[0]:28.2f}")


def timed(  # noqa: PLR0917 - what the command line gives
    layers: int,
    width: int,
    steps: int,
    repetitions: int,
    device: Literal["cpu", "cuda"],
    precision: Precision,
) -> list[float]:
    """Return the median seconds of a step in each way, taken in turns."""
    task = TextTask(vocabulary_size=8192, window=64, batch_size=8, evaluation_batches=1)
    with tempfile.TemporaryDirectory() as folder:
        data = task.open(seed=0, cache_dir=Path(folder))
        teacher = LiveTeacher(encoder(layers, width, data))

        def once(way: Ahead, student: TappedModel) -> float:
            """Return the seconds of a step after the first."""
            run = bind(
                curricle.one_shot(total=f"{steps + 1} steps"),
                student=student,
                teacher=teacher,
                stream=data.stream,
                optimizer=curricle.AdamW(learning_rate=1e-4),
                settings=TrainingSettings(
                    device=device, precision=precision, threads=1, prefetch=way
                ),
                seed=0,
            )
            (stage,) = run.stages
            optimizer = run.optimizer.build(student.module.parameters())
            teaching = teacher.teaching(run.settings.teacher_inference)
            with teaching, stepping(run, stage, optimizer) as stepper:
                stepper.step(0, stop=steps + 1)
                started = run.settings.placement.now()
                for step in range(1, steps + 1):
                    stepper.step(step, stop=steps + 1)
                return (run.settings.placement.now() - started) / steps

        student = encoder(4, 128, data)
        found: list[list[float]] = [[] for _ in WAYS]
        for _ in range(repetitions):
            for way, taken in zip(WAYS, found, strict=True):
                taken.append(once(way, student))
    return [statistics.median(one) for one in found]


if __name__ == "__main__":
    main()
