"""What does a step cost with stored targets, against asking the teacher, and what do they weigh?

Steps: masked tokens of the shipped text (vocabulary 8,192, 15 % hidden), 8 x 64 tokens. Teacher and
student: BERTs of 12 layers, 768 wide, and of 4 layers, 128 wide, untrained, which changes nothing
about the time. Two stages, the last hidden state and the logits; steps from the teacher and from
the store take turns, and the ratio is that of the medians. Then the contrast, a teacher that costs
little: (100,4)-parity in batches of 64, an MLP 100 wide taught the logits of one 2,000 wide.
Weight: bytes of a position on disk, keys and headers included, in sequences of 64 positions: states
projected to 768 in bfloat16 and int8, and 12 draws and the 32 likeliest of 131,072 classes, of
random numbers.
Run: python benchmarks/target_store.py [--quick]
"""

import argparse
import platform
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from encoders import encoder
from torch import Tensor

import curricle
from curricle import seeding
from curricle.data.example_keys import example_keys
from curricle.models.tapped import TappedModel
from curricle.tasks import TaskData, TextTask
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import BFloat16, Codec, Exact, Int8, Sampled, TopK
from curricle.teachers.store.manifest import Manifest, TargetSet
from curricle.teachers.store.shards import ShardWriter, uniforms
from curricle.teachers.stored import StoredTeacher, open_targets
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.loop.stepping import Stepper, stepping
from curricle.training.setup.settings import TrainingSettings
from curricle.training.targets.capture import TargetCompression, capture

POSITIONS, CLASSES, WIDTH = 64, 131_072, 768
Size = tuple[int, int, int, int]
FULL: Size = (12, 768, 4, 128)
"""Layers and width of the teacher and of the student."""
QUICK: Size = (4, 128, 2, 32)


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, few repetitions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread")
    print("\nbytes a position, keys included")
    for codec in (BFloat16(), Int8(), Sampled(), Sampled(proposal=0.8), TopK(k=32)):
        print(f"{codec.kind:10}{weight(codec, 2 if given.quick else 16):10.1f}  {codec}")
    size, repetitions = (QUICK, 3) if given.quick else (FULL, 7)
    with tempfile.TemporaryDirectory() as folder:
        print(f"\n{size[0]} x {size[1]} to {size[2]} x {size[3]}, {repetitions} steps in turns")
        print("stage         live ms   stored ms   ratio")
        found = steps(size, repetitions, Path(folder))
        found |= {"parity": parity_steps(100 if given.quick else 500, Path(folder) / "parity")}
        for name, (live, stored) in found.items():
            print(f"{name:12}{live * 1e3:9.1f}{stored * 1e3:12.1f}{live / stored:8.2f}")


def weight(codec: Codec, examples: int) -> float:
    """Return the bytes of a position of sequences of `POSITIONS`."""
    is_hidden = isinstance(codec, (Exact, BFloat16, Int8))
    width = WIDTH if is_hidden else CLASSES
    kind = "hidden" if is_hidden else "logits"
    section = TargetSet(facts={"kind": kind}, selected=False, codec=codec, width=width)
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), Manifest(sections=(section,)))
        for number in range(examples):
            ids = torch.full((1, POSITIONS), number)
            keys = example_keys(curricle.Batch(inputs=ids), selected=False)
            counts = np.array([POSITIONS])
            entries = codec.encode(drawn(number, width), uniforms(section, keys, counts))
            writer.add(section, keys, counts, entries)
        shards = writer.finish([section]).shards
    return sum(shard.size for shard in shards) / sum(shard.rows for shard in shards)


def drawn(number: int, width: int) -> Tensor:
    """Return normal numbers."""
    return torch.randn(POSITIONS, width, generator=seeding.generator(number, "bench"))


def steps(size: Size, repetitions: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Return the median seconds of a step of each stage, from the teacher and from the store."""
    task = TextTask(vocabulary_size=8192, window=64, batch_size=8, evaluation_batches=1)
    data = task.open(seed=0, cache_dir=folder / "cache")
    teacher = LiveTeacher(encoder(*size[:2], data))
    live = bound(size, repetitions, data, teacher)
    capture(
        [live], folder / "store", compression=TargetCompression(hidden=BFloat16(), logits=Sampled())
    )
    stored = bound(size, repetitions, data, open_targets(folder / "store"))
    stages = enumerate(stage.declared.name for stage in live.stages)
    return {name: in_turns(live, stored, number) for number, name in stages}


def parity_steps(number: int, folder: Path) -> tuple[float, float]:
    """Return the median seconds of a step of parity, from the teacher and from the store."""

    def run(teacher: LiveTeacher | StoredTeacher) -> BoundRun:
        return bind(
            curricle.one_shot(total=f"{number} steps"),
            student=network(100),
            teacher=teacher,
            stream=curricle.ParityStream(num_inputs=100, degree=4, batch_size=64, seed=0),
            optimizer=curricle.SGD(learning_rate=0.1),
            settings=TrainingSettings(device="cpu", threads=1),
            seed=0,
        )

    live = run(LiveTeacher(network(2000)))
    capture([live], folder, compression=TargetCompression(logits=BFloat16()))
    return in_turns(live, run(open_targets(folder)), 0)


def network(width: int) -> TappedModel:
    """Return a network of one hidden layer; it is not trained."""
    with seeding.scoped(0, f"width {width}"):
        return curricle.MLP(100, (width,), 2).tapped()


def in_turns(live: BoundRun, stored: BoundRun, number: int) -> tuple[float, float]:
    """Return the median seconds of a step of one stage of two runs."""
    stage = live.stages[number]
    with ExitStack() as stack:
        both = [stack.enter_context(stepping_of(run, number)) for run in (live, stored)]
        taken: tuple[list[float], list[float]] = ([], [])
        for step in range(stage.span.start, stage.span.end):
            for stepper, seconds in zip(both, taken, strict=True):
                started = time.perf_counter()
                stepper.step(step)
                seconds.append(time.perf_counter() - started)
    # The first step of each warms up.
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


def stepping_of(run: BoundRun, number: int) -> AbstractContextManager[Stepper]:
    """Return an open stage of a run."""
    optimizer = run.optimizer.build(run.student.module.parameters())
    return stepping(run, run.stages[number], optimizer)


def bound(
    size: Size, repetitions: int, data: TaskData, teacher: LiveTeacher | StoredTeacher
) -> BoundRun:
    """Return a run of two stages, bound."""
    each = f"{repetitions + 1} steps"
    pair = curricle.LayerPair(student=size[2], teacher=size[0])
    hidden = curricle.Stage(
        name="hidden", duration=each, objectives=(curricle.MatchHidden(pair=pair),)
    )
    logits = replace(hidden, name="logits", objectives=(curricle.MatchLogits(),))
    return bind(
        curricle.Curriculum(name="two stages", stages=(hidden, logits)),
        student=encoder(*size[2:], data),
        teacher=teacher,
        stream=data.stream,
        optimizer=curricle.AdamW(learning_rate=1e-4),
        settings=TrainingSettings(device="cpu", threads=1),
        seed=0,
    )


if __name__ == "__main__":
    main()
