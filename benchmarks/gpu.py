"""Time of a training step on a GPU, and where it goes: curricle, a loop by hand, the Trainer.

Tasks: BERT 12 x 768 to 12 x 256 with masked tokens, 64 x 128 (`bert-512`: 16 x 512), Llama
12 x 768 to 6 x 512 with next tokens, 8 x 1,024, and ModernBERT 6 x 512 to 6 x 128, 64 x 128; bf16
by autocast, AdamW; weights and tokens are random. Stages: the early and the late layer stage of
extraction (fixed projections), its logits stage, one-shot, and labels.

FLOPs are those of the plan, which `torch.utils.flop_counter` counts in a trial step: forward passes
of both models and the backward pass of the student, each as deep as the stage reaches. All ways are
charged with them, whatever they compute beyond. `share` divides them by the time and by the rate of
a bf16 matrix product that is measured first.

A measurement is the median of three repetitions that wait for the GPU at their ends only. Each task
has a process of its own and each measurement a time limit. Results are appended to
`OUTPUT_DIR/gpu.jsonl` as they come; a table follows at the end. Groups, in this order: `plain`
(ways and stages), `where` (profiles, and lines that wait), `prefetch`, `trainer`, `compiled`.
Run: python benchmarks/gpu.py [--quick] [--device cuda] [--tasks bert ...] [--groups plain ...]
"""

import argparse
import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from on_gpu.profiles import (
    Step,
    host_parts,
    matrix_rate,
    profiled,
    synchronize,
    waiting_places,
)
from on_gpu.tasks import TASKS
from on_gpu.ways import (
    STAGES,
    Models,
    bound,
    by_hand,
    engine_steps,
    number_of,
    train_with_trainer,
    with_curricle,
)

from curricle.training.binding.bound_run import BoundRun

GROUPS = ("plain", "where", "prefetch", "trainer", "chunked", "compiled")
WARMUP, REPETITIONS = 4, 3
RESULTS = "gpu.jsonl"


class OvertimeError(Exception):
    """A measurement has reached its limit."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement."""

    group: str
    way: str
    stage: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return the settings in words."""
        return ", ".join(f"{name}={entry}" for name, entry in self.settings.items()) or "-"


def cases() -> list[Case]:
    """Return the measurements of a task, in order of worth."""
    both = [
        Case(group="plain", way=way, stage=stage)
        for stage in ("logits", "early", "labels", "late", "one_shot")
        for way in ("curricle", "by hand")
        if (way, stage) != ("by hand", "one_shot")
    ]
    both.append(
        Case(group="plain", way="by hand", stage="labels", settings={"optimizer": "foreach"})
    )
    where = [
        Case(group="where", way=way, stage=stage)
        for stage in ("logits", "early", "labels")
        for way in ("curricle", "by hand")
    ]
    prefetch = [
        Case(group="prefetch", way="curricle", stage=stage, settings={"prefetch": prefetch})
        for stage, prefetch in (("logits", "targets"), ("early", "targets"), ("logits", "batch"))
    ]
    trainer = [
        Case(group="trainer", way="trainer", stage=stage) for stage in ("one_shot", "labels")
    ]
    chunked = [
        Case(group="chunked", way="curricle", stage="logits", settings={"chunk": "auto"}),
    ]
    compiled = [
        Case(group="compiled", way="curricle", stage=stage, settings=settings)
        for stage, settings in (
            ("logits", {"compile": "both", "chunk": "auto"}),
            ("early", {"compile": "both"}),
            ("logits", {"compile": "both"}),
            ("late", {"compile": "both"}),
            ("logits", {"compile": "both", "prefetch": "targets"}),
            ("logits", {"compile": "student"}),
            ("logits", {"compile": "teacher"}),
        )
    ]
    return [*both, *where, *prefetch, *trainer, *chunked, *compiled]


def main() -> None:
    """Measure each task in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, few steps, on a CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--tasks", nargs="*", help="default: bert llama modernbert")
    parser.add_argument("--groups", nargs="*", help="parts to measure; default: all")
    parser.add_argument("--seconds", type=float, default=420.0, help="limit of all tasks together")
    parser.add_argument("--case-seconds", type=float, default=90.0, help="limit of a measurement")
    parser.add_argument("--output-dir", type=Path, help="default: a temporary folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    has_gpu = torch.cuda.is_available() and not arguments.quick
    arguments.device = arguments.device or ("cuda" if has_gpu else "cpu")
    # Compiling takes a CPU minutes, so that it has to be named in small runs.
    arguments.groups = arguments.groups or GROUPS[: -1 if arguments.quick else None]
    tasks = ["modernbert"] if arguments.quick else ["bert", "llama", "modernbert"]
    arguments.tasks = arguments.tasks or tasks
    if arguments.child:
        measure_task(arguments)
        sys.stdout.flush()
        # Processes that still compile for a measurement that was stopped are not waited for.
        os._exit(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output_dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"torch {torch.__version__}, transformers {transformers.__version__}", end=", ")
        print(f"Python {platform.python_version()}, {device_name(arguments.device)}", flush=True)
        run_tasks(arguments, folder)
        print_tables(folder / RESULTS)


def device_name(device: str) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}"


def run_tasks(arguments: argparse.Namespace, folder: Path) -> None:
    """Run a process for each task; what is left of the time is divided among the tasks left."""
    ends = time.monotonic() + arguments.seconds
    for number, task in enumerate(arguments.tasks):
        limit = (ends - time.monotonic()) / (len(arguments.tasks) - number)
        command = [
            *(sys.executable, __file__, "--child", task, "--device", arguments.device),
            *("--groups", *arguments.groups, "--seconds", str(limit)),
            *("--case-seconds", str(arguments.case_seconds), "--output-dir", str(folder)),
            *(("--quick",) if arguments.quick else ()),
        ]
        try:
            # The process watches its time itself; this limit is for one that hangs.
            code = subprocess.run(command, check=False, timeout=limit + 30).returncode
        except subprocess.TimeoutExpired:
            code = 124
        if code:
            print(f"{task}: the process ended with {code}", flush=True)


def measure_task(arguments: argparse.Namespace) -> None:
    """Measure the cases of a task in this process, and append each result to the file."""
    ends, device = time.monotonic() + arguments.seconds, arguments.device
    task = TASKS[arguments.child]
    if arguments.quick:
        task = task.small()
        torch.set_num_threads(1)
    facts = {"task": arguments.child, "device": device_name(device), "torch": torch.__version__}
    rate = matrix_rate(device, size=256 if arguments.quick else 8192)
    bench = Bench(Models.of(task, device), rate, is_quick=arguments.quick)
    note(arguments.output_dir, {**facts, "matrix_tflops": round(rate / 1e12, 2)})
    for case in cases():
        if case.group not in arguments.groups:
            continue
        seconds = min(ends - time.monotonic(), arguments.case_seconds)
        fields = {**facts, "group": case.group, "way": case.way, "stage": case.stage}
        fields["settings"] = case.label
        if seconds < 1:
            note(arguments.output_dir, {**fields, "error": "no time left"})
            continue
        started = time.monotonic()
        try:
            with limited(seconds):
                result = bench.measure(case)
        except Exception as error:  # noqa: BLE001 - the next measurement goes on
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
            bench.forget()
        result["took_s"] = round(time.monotonic() - started, 1)
        note(arguments.output_dir, {**fields, **result})
        clean()


def note(folder: Path, fields: dict[str, object]) -> None:
    """Print a result and append it to the file."""
    line = json.dumps(fields)
    hidden = {"device", "torch", "repetitions_ms", "longest_kernels", "flops"}
    print(" ".join(f"{name}={entry}" for name, entry in fields.items() if name not in hidden))
    sys.stdout.flush()
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End a block after some time.

    Raises:
        OvertimeError: If the time is over.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        raise OvertimeError(f"more than {seconds:.0f} s")

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def clean() -> None:
    """Free what a measurement has left, compiled graphs included."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Bench:
    """Measurements of one task."""

    def __init__(self, models: Models, rate: float, *, is_quick: bool) -> None:
        """Take the models, and the rate of matrix products in FLOPs a second."""
        self._models, self._rate, self._is_quick = models, rate, is_quick
        self._runs: dict[str, BoundRun] = {}
        self._least = 0.02 if is_quick else 0.5

    def forget(self) -> None:
        """Bind anew, since a measurement that failed may have left something open."""
        self._runs.clear()

    def run(self, stage: str) -> BoundRun:
        """Return the bound run of a stage with plain settings, which all its measurements share."""
        name = stage if stage in {"one_shot", "labels"} else "extraction"
        if name not in self._runs:
            self._runs[name] = bound(self._models, stage, {})
        return self._runs[name]

    def flops(self, stage: str) -> int:
        """Return the FLOPs of a step, from the plan."""
        plan = self.run(stage).stages[number_of(stage)].plan
        return plan.student_flops + plan.teacher_flops

    def measure(self, case: Case) -> dict[str, object]:
        """Return the result of a measurement."""
        device, flops = self._models.device, self.flops(case.stage)
        if case.group == "where":
            return self._where(case)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        first, times = self._times(case)
        ms = 1e3 * statistics.median(times)
        result: dict[str, object] = {
            "ms": round(ms, 3),
            "repetitions_ms": [round(1e3 * seconds, 3) for seconds in times],
            "first_step_s": round(first, 2),
            "flops": flops,
            "share": round(flops / (ms / 1e3) / self._rate, 4),
            "tokens_per_s": round(self._models.task.stream.tokens_per_batch / (ms / 1e3)),
        }
        if device == "cuda":
            result["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        return result

    def _times(self, case: Case) -> tuple[float, list[float]]:
        """Return the seconds of the first step, and those of a step in each repetition."""
        if case.way == "trainer":
            return self._trainer_times(case)
        with self._opened(case) as step:
            return self._timed(step)

    @contextmanager
    def _opened(self, case: Case) -> Iterator[Step]:
        if case.way == "by hand":
            opening = by_hand(self._models, case.stage, case.settings)
        else:
            run = None if case.settings else self.run(case.stage)
            opening = with_curricle(self._models, case.stage, case.settings, run=run)
        with opening as step:
            yield step

    def _timed(self, step: Step) -> tuple[float, list[float]]:
        device = self._models.device

        def seconds_of(number: int) -> float:
            synchronize(device)
            started = time.perf_counter()
            for _ in range(number):
                step()
            synchronize(device)
            return (time.perf_counter() - started) / number

        first = seconds_of(1)
        warm = seconds_of(WARMUP)
        number = max(2, min(200, round(self._least / max(warm, 1e-6))))
        return first, [seconds_of(number) for _ in range(REPETITIONS)]

    def _trainer_times(self, case: Case) -> tuple[float, list[float]]:
        length = 3 if self._is_quick else 40
        device, ends = self._models.device, [time.perf_counter()]

        def after(step: int) -> None:
            if step == 1 or (step > WARMUP and (step - WARMUP - 1) % length == 0):
                synchronize(device)
                ends.append(time.perf_counter())

        steps = WARMUP + 1 + REPETITIONS * length
        train_with_trainer(self._models, case.stage, steps=steps, after=after)
        first, marks = ends[1] - ends[0], ends[2:]
        return first, [(later - earlier) / length for earlier, later in pairwise(marks)]

    def _where(self, case: Case) -> dict[str, object]:
        """Return the profile of a case; that of curricle with host times."""
        device, steps = self._models.device, 2 if self._is_quick else 5
        with self._opened(case) as step:
            for _ in range(WARMUP):
                step()
            result = profiled(step, device, steps=steps)
            if device == "cuda":
                result["waits_at"] = waiting_places(step, steps=3)
        if case.way == "curricle":
            with engine_steps(self.run(case.stage), case.stage) as stepper:
                stepper.take(stepper.start, stepper.start)
                result["host"] = host_parts(stepper, steps=3 if self._is_quick else 20)
        return result


def print_tables(path: Path) -> None:
    """Print the times, and the profiles below them."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rates = {line["task"]: line["matrix_tflops"] for line in lines if "matrix_tflops" in line}
    print(f"\nbf16 matrix product, TFLOP/s: {rates}")
    timed = [line for line in lines if "share" in line]
    hand = {(line["task"], line["stage"]): line["ms"] for line in timed if is_base(line)}
    print("| task | stage | way | settings | ms | of by hand | share | first step, s | MiB |")
    print("|---|---|---|---|---:|---:|---:|---:|---:|")
    order = {stage: number for number, stage in enumerate(STAGES)}
    for line in sorted(timed, key=lambda line: (line["task"], order[line["stage"]])):
        base = hand.get((line["task"], line["stage"].replace("one_shot", "logits")))
        print(
            f"| {line['task']} | {line['stage']} | {line['way']} | {line['settings']} | "
            f"{line['ms']:.2f} | {line['ms'] / base if base else float('nan'):.2f} | "
            f"{line['share']:.1%} | {line['first_step_s']:.1f} | {line.get('peak_mib', '-')} |"
        )
    print("\n| task | stage | way | ms | host ms | GPU busy | launches | kernels, ms |")
    print("|---|---|---|---:|---:|---:|---:|---|")
    for line in lines:
        if "kernel_ms" in line:
            kernels = ", ".join(f"{name} {ms:.2f}" for name, ms in line["kernel_ms"].items())
            print(
                f"| {line['task']} | {line['stage']} | {line['way']} | {line['ms']:.2f} | "
                f"{line['host_ms']:.2f} | {line.get('busy_share', '-')} | "
                f"{line.get('launches', '-')} | {kernels} |"
            )
    for line in lines:
        if "error" in line:
            print(f"not measured: {line['task']} {line['stage']} {line['way']}: {line['error']}")


def is_base(line: Mapping[str, object]) -> bool:
    """Return whether a result is that of the hand-written loop with its usual optimizer."""
    return line["way"] == "by hand" and line["settings"] == "-"


if __name__ == "__main__":
    main()
