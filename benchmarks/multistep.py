"""What do many steps in one compiled call cost, against a loop written by hand?

Student: 100-wide MLP on (100,4)-parity, SGD, in batches of 64 and of single examples; by
cross-entropy of labels, or by the logits of a 2,000-wide teacher (not trained: the time is the
same). The hand-written eager loop reads the same batches and makes the same updates; the engine
takes single steps, or `compiled_steps` of them at once. Repetitions take turns; one torch thread;
ratios are those of the medians of processor time, which other jobs disturb less. Compiling is done
before and told apart; tracing, once a stage, is left out.
Run: python benchmarks/multistep.py [--quick] [--steps-per-call N] [--device cuda] [--teacher WIDTH]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import curricle
from curricle import seeding
from curricle.errors import BindError
from curricle.extras import check_compiler
from curricle.models.mlp import MLP
from curricle.models.tapped import TappedModel
from curricle.records import Record, StepRecord
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import bind
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.setup.settings import TrainingSettings

INPUTS, DEGREE, STUDENT, TEACHER, RATE = 100, 4, 100, 2000, 0.1


def main() -> None:
    """Print medians and ratios for each batch size and curriculum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short repetitions")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps-per-call", type=int, default=10, help="steps that are compiled")
    parser.add_argument("--teacher", type=int, default=TEACHER, help="width of the teacher")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        check_compiler(given.device, setting="compiled_steps", plain=1)
    except BindError as missing:
        print(missing)
        return
    calls, repetitions = (50, 3) if given.quick else (400, 7)
    steps = calls * given.steps_per_call
    print(f"torch {torch.__version__}, {platform.machine()}, {given.device}, 1 thread")
    print(f"{repetitions} interleaved repetitions of {steps} steps")
    for batch in (64, 1):
        for teacher in (None, given.teacher):
            work = Work(batch=batch, teacher=teacher, device=given.device)
            compare(work, steps=steps, ahead=given.steps_per_call, repetitions=repetitions)


@dataclass(frozen=True)
class Work:
    """What is to be learned, and where."""

    batch: int
    """Examples of a step."""
    teacher: int | None
    """Width of the teacher; None for labels."""
    device: str
    """Where it is learned."""


def compare(work: Work, *, steps: int, ahead: int, repetitions: int) -> None:
    """Print what each way of taking some steps costs."""
    ways: dict[str, Callable[[], float]] = {
        "by hand": lambda: by_hand(work, steps),
        "engine": lambda: with_engine(work, steps, 1),
        "compiled": lambda: with_engine(work, steps, ahead),
    }
    started = time.perf_counter()
    with_engine(work, 2 * ahead, ahead)
    compiling = time.perf_counter() - started
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            found[name].append(way() / steps)
    hand = statistics.median(found["by hand"])
    taught = "labels" if work.teacher is None else f"teacher {work.teacher} wide"
    print(f"batch {work.batch}, {taught}; compiled in {compiling:.0f} s", flush=True)
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"  {name:9} {median * 1e6:8.1f} us a step, {hand / median:5.2f} x by hand")


def now(device: str) -> float:
    """Return processor seconds, or on a GPU those that have passed until it is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def by_hand(work: Work, steps: int) -> float:
    """Return the seconds of a plain PyTorch loop."""
    device = work.device
    data, model = stream(work.batch), network(STUDENT).module.to(device)
    taught = None if work.teacher is None else network(work.teacher).module.to(device).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    started = now(device)
    for step in range(steps):
        read = data.batch(step).map(lambda tensor: tensor.to(device))
        optimizer.zero_grad()
        loss = loss_of(model(read.inputs), read, taught)
        loss.backward()
        optimizer.step()
    return now(device) - started


def loss_of(logits: Tensor, read: curricle.Batch, teacher: nn.Module | None) -> Tensor:
    """Return the loss as people write it."""
    if teacher is None:
        return nn.functional.cross_entropy(logits, read.labels)
    with torch.no_grad():
        wanted = teacher(read.inputs).log_softmax(-1)
    return nn.functional.kl_div(
        logits.log_softmax(-1), wanted, reduction="batchmean", log_target=True
    )


def with_engine(work: Work, steps: int, ahead: int) -> float:
    """Return the seconds of as many steps of the engine, after a tenth more in which it opens."""
    before = max(steps // 10, ahead)
    curriculum = curricle.from_labels if work.teacher is None else curricle.one_shot
    run = bind(
        curriculum(total=f"{before + steps} steps"),
        student=network(STUDENT),
        teacher=None if work.teacher is None else LiveTeacher(network(work.teacher)),
        stream=stream(work.batch),
        optimizer=curricle.SGD(learning_rate=RATE),
        settings=TrainingSettings(
            device=work.device,
            compiled_steps=ahead,
            log_every=before,
            eval_every=10**9,
            threads=1,
        ),
        seed=0,
    )
    times: list[float] = []

    def note(record: Record) -> None:
        if isinstance(record, StepRecord):
            times.append(now(work.device))

    execute(run, nothing, metric="none", outputs=Outputs(observers=(note,)))
    return times[-1] - times[0]


def nothing(_model: TappedModel) -> dict[str, float]:
    """Return a metric that costs nothing."""
    return {"none": 0.0}


def stream(batch: int) -> curricle.ParityStream:
    """Return the data, the same in all loops."""
    return curricle.ParityStream(num_inputs=INPUTS, degree=DEGREE, batch_size=batch, seed=0)


def network(width: int) -> TappedModel:
    """Return a network of one hidden layer with the same first weights in all loops."""
    with seeding.scoped(0, "model"):
        return MLP(INPUTS, (width,), 2).tapped()


if __name__ == "__main__":
    main()
