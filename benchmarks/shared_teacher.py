"""Cost of twelve students that share a teacher, against one student.

Task: (100,4)-parity in batches of 64. Teacher: MLP, 2,000 wide; students: MLPs, 100 wide, from
different seeds, learning its logits with SGD. One student alone, twelve one after another, twelve
with one pass of the teacher, and twelve as one batched model take turns; the ratios are those of
the medians, evaluation left out. The teacher is not trained, which changes nothing about the time.
Run: python benchmarks/shared_teacher.py [--quick] [--students N]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Sequence

import torch

import curricle
from curricle import seeding
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.optimizers import SGD
from curricle.training.setup.settings import TrainingSettings
from curricle.training.sharing.shared_runs import SharedRun, execute_shared

INPUTS, DEGREE, BATCH, RATE = 100, 4, 64, 0.3
TEACHER, STUDENT = 2000, 100


def main() -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short repetitions")
    parser.add_argument("--students", type=int, default=12, help="students of the teacher")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps, repetitions = (100, 3) if given.quick else (1000, 7)
    alone, apart, shared, batched = [], [], [], []
    for _ in range(repetitions):
        alone.append(timed(runs(1, steps), is_shared=False))
        apart.append(timed(runs(given.students, steps), is_shared=False))
        shared.append(timed(runs(given.students, steps), is_shared=True))
        batched.append(timed(runs(given.students, steps), is_shared=True, batch_students=True))
    reference = statistics.median(alone)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread")
    print(f"{repetitions} interleaved repetitions of {steps} steps")
    rows = {"1 student": alone, "apart": apart, "shared": shared, "batched": batched}
    for name, seconds in rows.items():
        median = statistics.median(seconds)
        print(f"{name:10} {median / steps * 1e6:9.1f} us a step, ratio {median / reference:6.2f}")


def runs(number: int, steps: int) -> list[BoundRun]:
    """Return students of one teacher, bound."""
    teacher = LiveTeacher(network(TEACHER, seed=0))
    return [
        bind(
            curricle.one_shot(total=f"{steps} steps"),
            student=network(STUDENT, seed=seed),
            teacher=teacher,
            stream=curricle.ParityStream(
                num_inputs=INPUTS, degree=DEGREE, batch_size=BATCH, seed=0
            ),
            optimizer=SGD(learning_rate=RATE),
            settings=TrainingSettings(device="cpu", log_every=steps, eval_every=steps, threads=1),
            seed=seed,
        )
        for seed in range(1, number + 1)
    ]


def timed(chosen: Sequence[BoundRun], *, is_shared: bool, batch_students: bool = False) -> float:
    """Return the seconds in which students are taught."""
    started = time.process_time()
    if is_shared:
        seats = [SharedRun(run=run, evaluate=nothing, outputs=Outputs()) for run in chosen]
        execute_shared(seats, metric="none", batch_students=batch_students)
    else:
        for run in chosen:
            execute(run, nothing, metric="none", outputs=Outputs())
    return time.process_time() - started


def nothing(_model: TappedModel) -> dict[str, float]:
    """Return a metric that costs nothing."""
    return {"none": 0.0}


def network(width: int, seed: int) -> TappedModel:
    """Return a network of one hidden layer."""
    with seeding.scoped(seed, "model"):
        return MLP(INPUTS, (width,), 2).tapped()


if __name__ == "__main__":
    main()
