"""What does a step cost with curricle, and what with other libraries?

Task: BERT with masked tokens, 4 layers, 256 wide to 64, vocabulary 8,192, batch 32 x 128, float32:
mean squared error of all four hidden states through trained maps, and KL of the logits at the
masked positions. Contenders: curricle, TextBrewer, torchdistill, and a Trainer of transformers with
a loss of one's own. Second task: GPT-2 of the same sizes, KL of the logits at all next tokens:
curricle, also in chunks, and TRL's GKD with lmbda=0. How each is used is told in `contenders`.

First weights, batches, masks and optimizer (AdamW) are the same; that the work is the same is
checked by the first loss and by the KL to the teacher on a batch nobody trained on, after the last
step. Each measurement has a process of its own, and they take turns. Seconds are those of the
process from one step to the next, median of a process, then of the repetitions. The peak is that of
the whole process (ru_maxrss). It holds what the C library keeps for later; `needed` is measured in
one more process, in which blocks of 1 MB or more go back to the system at once, above what is held
when models and data are ready. The teacher is not trained, which changes nothing about the time.

The peers are no dependency of curricle:

    python -m venv peers-venv
    peers-venv/bin/pip install -r benchmarks/peers/requirements.txt
    peers-venv/bin/pip install --no-deps -e .
    peers-venv/bin/python benchmarks/peers/steps.py

Those that are not installed are left out; `--quick` then compares what is there. The Trainer needs
`accelerate`.
Run: python benchmarks/peers/steps.py [--quick] [--only NAME ...]
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from contenders import CAUSAL, MASKED, NEEDS
from work import Lesson, Rows, Work, gap

WARMUP, RATE, MEBIBYTE = 2, 1e-3, 2**20
TASKS = {"bert": MASKED, "gpt2": CAUSAL}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a process has found: seconds of a step, MiB, and what tells the work."""

    seconds: float
    peak: float
    grown: float
    first: float
    after: float


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, one repetition")
    parser.add_argument("--corpus", default="sample", help="as in recipes/text-mlm.yaml")
    parser.add_argument("--steps", type=int, default=10, help="steps of a process")
    parser.add_argument("--repetitions", type=int, default=5, help="processes of each")
    parser.add_argument("--only", nargs="*", help="contenders; all that are installed without")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.repetitions = 4, 1
    installed = [name for name in dict.fromkeys(NEEDS.values()) if importlib.util.find_spec(name)]
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, float32")
    print(", ".join(f"{name} {version(name)}" for name in ("transformers", *installed)))
    for family, contenders in TASKS.items():
        chosen = [
            name
            for name in contenders
            if NEEDS.get(name) in {None, *installed} and (not given.only or name in given.only)
        ]
        with tempfile.TemporaryDirectory() as cache:
            work = Work(family=family, corpus=given.corpus, cache=cache)
            if given.quick:
                work = replace(
                    work, layers=2, wide=32, narrow=16, vocabulary=512, window=32, examples=8
                )
            work.windows("valid")
            compare(work, chosen, steps=given.steps, repetitions=given.repetitions)


def compare(work: Work, names: list[str], *, steps: int, repetitions: int) -> None:
    """Measure contenders in turns and print the medians.

    Raises:
        ValueError: If two have not done the same work.
    """
    needed = {name: returning(name, work).grown for name in names}
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for _ in range(repetitions):
        for name in names:
            found[name].append(alone(name, work, steps))
            print(f"{work.family:6} {name:18} {found[name][-1]}", file=sys.stderr, flush=True)
    print(f"\n{work.family}, {work.layers} x {work.wide} to {work.narrow}, {steps} steps")
    print("                    ms a step   ratio    peak  needed (MiB)  first loss  KL after")
    of = {name: [one.seconds for one in each] for name, each in found.items()}
    base = statistics.median(of["curricle"]) if "curricle" in of else float("nan")
    for name, each in found.items():
        seconds = statistics.median(of[name])
        peak = statistics.median(one.peak for one in each)
        print(
            f"{name:18}{seconds * 1e3:11.0f}{seconds / base:8.2f}{peak:8.0f}{needed[name]:8.0f}"
            f"{each[0].first:18.5f}{each[0].after:10.5f}"
        )
    for quality in ("first", "after"):
        values = [getattr(one, quality) for each in found.values() for one in each]
        if max(values) - min(values) > 1e-3 * max(values):
            raise ValueError(f"{quality!r} must be the same for all contenders; got {values}")


def alone(name: str, work: Work, steps: int) -> Measured:
    """Return what a fresh process measures."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        return pool.submit(measured, name, work, steps).result()


def returning(name: str, work: Work) -> Measured:
    """Return what a process measures that returns large blocks of memory at once (glibc)."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(10**6)
    try:
        return alone(name, work, WARMUP + 2)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def measured(name: str, work: Work, steps: int) -> Measured:
    """Return what a contender takes in this process."""
    torch.set_num_threads(1)
    lesson = Lesson.of(work, steps=steps, rate=RATE)
    before = held()
    first = TASKS[work.family][name](lesson)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    unseen = Rows(work.windows("valid"), 1, is_causal=work.is_causal)[0]
    return Measured(
        seconds=lesson.stream.median(warmup=WARMUP, steps=steps),
        peak=peak / MEBIBYTE,
        grown=(peak - before) / MEBIBYTE,
        first=first,
        after=gap(lesson, unseen),
    )


def held() -> float:
    """Return the bytes that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return float(pages * resource.getpagesize())


if __name__ == "__main__":
    main()
