"""How does cost grow with everything that can be made larger?

A table for each size: what was measured, the exponent that is expected, and the one of the line
through the logarithms of all rows and through those of the last two. Seconds are medians of
processor time; MiB are the peak of a process of its own above what it held before its first
step. The text tables are of BERTs without dropout, 4 layers of 256 to 4 of 64 (12 layers where the
depth counts), on masked tokens of the shipped text with 8,192 classes.
Run: python benchmarks/growth.py [--quick] [--only NAME ...]
"""

import argparse
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import shared_teacher
import target_store
import torch
from chunked_head import MEBIBYTE, Case, alone, in_process, peak, peak_from_now
from encoders import encoder
from target_store import POSITIONS

import curricle
from curricle.models.tapped import TappedModel
from curricle.tasks import TextTask
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import BFloat16, Sampled
from curricle.training.binding.bound_run import bind
from curricle.training.distill import execute
from curricle.training.loop.run_outputs import Outputs
from curricle.training.loop.stepping import stepping
from curricle.training.setup.settings import TrainingSettings

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One size that grows."""

    size: str
    """What grows, and in which unit."""
    sizes: Sequence[int]
    """The rows."""
    quick: Sequence[int]
    """The rows of a quick look."""
    expected: str
    """The exponents that are expected, in words."""
    row: Callable[[int], Row]
    """Measures one."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small sizes each")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread")
    for name in given.only:
        show(name, TABLES[name], TABLES[name].quick if given.quick else TABLES[name].sizes)


def show(name: str, table: Table, sizes: Sequence[int]) -> None:
    """Measure a table and print it."""
    print(f"\n{name}; expected: {table.expected}")
    rows: list[Row] = []
    for size in sizes:
        rows.append(table.row(size))
        if len(rows) == 1:
            print(line([table.size, *rows[0]]))
            print(line(["---:"] * (len(rows[0]) + 1)))
        print(line([f"{size:,}", *(f"{one:.4g}" for one in rows[-1].values())]), flush=True)
    for words, number in (("exponent", len(rows)), ("of the last two", 2)):
        slopes = (slope(sizes[-number:], [row[key] for row in rows[-number:]]) for key in rows[0])
        print(line([words, *(f"{one:.2f}" for one in slopes)]))


def line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the exponent of the power law that fits best in logarithms."""
    if min(values) <= 0:
        return math.nan
    return statistics.linear_regression(
        [math.log(one) for one in sizes], [math.log(one) for one in values]
    ).slope


def vocabulary(classes: int) -> Row:
    """Return what the forward KL of 1,024 positions costs, with its gradients."""
    found: Row = {}
    for way in ("plain", "chunked"):
        case = Case(
            way=way,
            positions=1024,
            vocabulary=classes,
            width=128,
            divergence="forward_kl",
            chunk=256,
            repetitions=3,
            dtype=torch.float32,
            device="cpu",
            liger=None,
        )
        measured = alone(case)
        found |= {f"{way}, s": measured.seconds, f"{way}, MiB": measured.peak}
    return found


def text(size: int, *, varies: str) -> Row:
    """Return what a step on the logits of a text costs, of a certain batch or length."""
    batch, length = (size, 64) if varies == "batch" else (4, size)
    seconds, most = in_process(text_step, 4, batch, length, -1)
    return {"s a step": seconds, "MiB": most}


def depth(tap: int) -> Row:
    """Return what a step costs that matches the states of a tap."""
    return {"s a step": in_process(text_step, 12, 8, 64, tap - 1)[0]}


def text_step(layers: int, batch: int, length: int, stage: int) -> tuple[float, float]:
    """Return the median seconds of a step of a stage, and the peak in MiB."""
    torch.set_num_threads(1)
    task = TextTask(vocabulary_size=8192, window=length, batch_size=batch, evaluation_batches=1)
    with tempfile.TemporaryDirectory() as folder:
        data = task.open(seed=0, cache_dir=Path(folder))
        pairs = tuple(curricle.LayerPair(student=tap, teacher=tap) for tap in range(1, layers + 1))
        run = bind(
            curricle.extraction(
                total=f"{layers + 1} steps", pairs=pairs, durations=("1 steps",) * layers
            ),
            student=encoder(layers, 64, data),
            teacher=LiveTeacher(encoder(layers, 256, data)),
            stream=data.stream,
            optimizer=curricle.AdamW(learning_rate=1e-4),
            settings=TrainingSettings(device="cpu", threads=1),
            seed=0,
        )
        chosen, taken = run.stages[stage], list[float]()
        optimizer = run.optimizer.build(run.student.module.parameters())
        before = peak_from_now("cpu")
        with stepping(run, chosen, optimizer) as stepper:
            for _ in range(6):
                started = time.process_time()
                stepper.step(chosen.span.start)
                taken.append(time.process_time() - started)
        return statistics.median(taken[1:]), (peak("cpu") - before) / MEBIBYTE


def students(number: int) -> Row:
    """Return what a step of some students of one 2,000-wide teacher costs, all together."""
    ways: dict[str, dict[str, Any]] = {
        "one after another": {"is_shared": False},
        "shared teacher": {"is_shared": True},
        "batched": {"is_shared": True, "batch_students": True},
    }
    found: Row = {}
    for name, way in ways.items():
        taken = [
            shared_teacher.timed(shared_teacher.runs(number, 100), **way) / 100 for _ in range(3)
        ]
        found[f"{name}, ms"] = statistics.median(taken) * 1e3
    return found


def examples(number: int) -> Row:
    """Return what a run on so many examples of parity costs."""
    seconds, most = in_process(parity_run, number)
    return {"s": seconds, "MiB": most}


def parity_run(number: int) -> tuple[float, float]:
    """Return the seconds of a run from labels with a batch of 1,000, and the peak in MiB."""
    torch.set_num_threads(1)
    steps = number // 1000
    run = bind(
        curricle.from_labels(total=f"{steps} steps"),
        student=target_store.network(100),
        teacher=None,
        stream=curricle.ParityStream(num_inputs=100, degree=4, batch_size=1000, seed=0),
        optimizer=curricle.SGD(learning_rate=0.1),
        settings=TrainingSettings(device="cpu", threads=1, eval_every=steps),
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        before = peak_from_now("cpu")
        started = time.process_time()
        execute(run, nothing, metric="none", outputs=Outputs(folder=Path(folder)))
        return time.process_time() - started, (peak("cpu") - before) / MEBIBYTE


def nothing(_model: TappedModel) -> Row:
    """Return a metric that costs nothing."""
    return {"none": 0.0}


def store(positions: int) -> Row:
    """Return the MiB on disk of targets of so many positions, in sequences of 64."""
    of = partial(target_store.weight, examples=positions // POSITIONS)
    return {
        "states, 768 wide, bfloat16, MiB": of(BFloat16()) * positions / MEBIBYTE,
        "12 draws of 131,072 classes, MiB": of(Sampled()) * positions / MEBIBYTE,
    }


TABLES = {
    "vocabulary": Table(
        size="classes",
        sizes=[2**power for power in range(13, 19)],
        quick=[512, 1024],
        expected="1 in all, less where weights are few",
        row=vocabulary,
    ),
    "sequence": Table(
        size="tokens of a sequence",
        sizes=[2**power for power in range(6, 12)],
        quick=[8, 16],
        expected="1 to 2, since attention compares all pairs; 4 sequences a step",
        row=partial(text, varies="sequence"),
    ),
    "batch": Table(
        size="sequences of 64 tokens a step",
        sizes=[2**power for power in range(7)],
        quick=[1, 2],
        expected="0 where weights are updated, then 1",
        row=partial(text, varies="batch"),
    ),
    "depth": Table(
        size="tap",
        sizes=[1, 2, 3, 4, 6, 8, 10, 12],
        quick=[1, 2],
        expected="1",
        row=depth,
    ),
    "students": Table(
        size="students",
        sizes=[1, 2, 4, 8, 16],
        quick=[1, 2],
        expected="1 one after another, less with a shared teacher, near 0 batched",
        row=students,
    ),
    "examples": Table(
        size="examples",
        sizes=[10**5, 10**6, 10**7],
        quick=[1000, 2000],
        expected="1 for seconds, 0 for memory",
        row=examples,
    ),
    "store": Table(
        size="positions",
        sizes=[2**power for power in (10, 12, 14)],
        quick=[128, 256],
        expected="1",
        row=store,
    ),
}
"""By name."""


if __name__ == "__main__":
    main()
