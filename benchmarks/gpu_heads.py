"""Time and memory of losses on a large vocabulary on a GPU, beside the matrix products they need.

Task: loss and gradients (states, head weight) of a student's head against a teacher's of the same
width, both random, in bfloat16. `products` are the four matrix products alone: logits of both
models and two gradients, with nothing between them. `plain` and `kl_div` compare all logits by our
losses and by that of torch; `chunked` is `curricle.objectives.chunked` with its kernel and
`chunked, torch` without; `liger` is `LigerFusedLinearJSDLoss` of liger-kernel, eager and compiled;
`trl` is `ChunkedDivergenceFunction` of trl. Rows named `lanes ...` and `rows ...` are other shapes
of our kernel and other sizes of its chunks; `kernel ...` is the kernel alone, without products.
`precision` are relative errors of the gradients against float64, at a size that fits.

A row is a way with a divergence. Rows run one after the other in a process, which is replaced if a
row takes longer than `--limit`; each result is printed and appended to `--out` at once. Times are
medians after two calls that compile and tune. The peak is that of torch's allocator beyond what was
held before the heads were made, so it counts weights, gradients and workspaces of cuBLAS.
Run: python benchmarks/gpu_heads.py [--rows REGEX] [--out FILE] [--site FOLDER] ...
     TRITON_INTERPRET=1 python benchmarks/gpu_heads.py --device cpu --quick
"""

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from curricle.models.heads import LinearHead
from curricle.objectives import fused
from curricle.objectives.chunked import chunked_divergence
from curricle.objectives.divergences import JSD, Divergence, ForwardKL, ReverseKL
from curricle.objectives.fused import FusedLoss, Tiling

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": ForwardKL(),
    "reverse_kl": ReverseKL(),
    "jsd": JSD(),
}
BETAS = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
TILINGS = [
    Tiling(lanes=lanes, num_warps=warps, num_stages=stages)
    for lanes, warps, stages in (
        (1024, 16, 1),
        (512, 8, 1),
        (256, 8, 1),
        (512, 16, 1),
        (1024, 32, 1),
        (2048, 32, 1),
        (512, 8, 3),
    )
]
"""Shapes of the kernel, first that of the package."""
SIZES = [(512, 256), (512, 128), (256, 256), (256, 128), (512, 512), (1024, 256)]
"""MiB of the student's and of the teacher's products in a chunk; first those of the package."""
GIBIBYTE = 2**30
SEVERAL_WAYS = ("plain", "chunked", "liger", "trl")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of the task, and where it runs."""

    positions: int
    vocabulary: int
    width: int
    repetitions: int
    device: str
    site: str | None


Row = tuple[str, str]
"""Way and divergence."""


def rows_of_all_ways() -> list[Row]:
    """Return all rows, those that compile longest last."""
    shapes = [f"{shape.lanes} x {shape.num_warps} x {shape.num_stages}" for shape in TILINGS]
    tilings = [f"lanes {shape}" for shape in shapes[1:]]
    kernels = [f"kernel {shape}" for shape in shapes]
    sizes = [f"rows {student} + {teacher} MiB" for student, teacher in SIZES[1:]]
    return [
        ("products", ""),
        *((way, kind) for way in SEVERAL_WAYS for kind in DIVERGENCES),
        ("kl_div", "forward_kl"),
        ("chunked, torch", "forward_kl"),
        ("chunked, float32 weights", "forward_kl"),
        *((way, kind) for way in kernels for kind in DIVERGENCES),
        *((way, "forward_kl") for way in sizes),
        *((way, kind) for way in tilings for kind in ("forward_kl", "jsd")),
        ("precision", "forward_kl"),
        ("products, again", ""),
        *(("liger compiled", kind) for kind in DIVERGENCES),
    ]


def main() -> None:
    """Print a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=128 * 1024)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", default="", help="expression that names of rows must match")
    parser.add_argument("--limit", type=float, default=45.0, help="seconds of a row")
    parser.add_argument("--out", type=Path, help="file to which results are appended as JSON")
    parser.add_argument("--site", help="folder that holds liger_kernel and trl")
    options = parser.parse_args()
    size = Size(
        positions=options.positions,
        vocabulary=options.vocabulary,
        width=options.width,
        repetitions=options.repetitions,
        device=options.device,
        site=options.site,
    )
    if options.quick:
        size = replace(size, positions=64, vocabulary=640, width=32, repetitions=1)
    rows = [row for row in rows_of_all_ways() if re.search(options.rows, " ".join(row).strip())]
    print(f"{size}, torch {torch.__version__}", flush=True)

    def report(row: Row, result: dict[str, Any]) -> None:
        seconds, peak = result.pop("seconds", None), result.pop("peak", None)
        numbers = [] if seconds is None else [f"{seconds * 1e3:9.2f} ms"]
        numbers += [] if peak is None else [f"{peak / GIBIBYTE:6.2f} GiB"]
        notes = [f"{name} {value}" for name, value in result.items()]
        print(f"{row[0]:26} {row[1]:10} {' '.join([*numbers, *notes])}", flush=True)
        if options.out:
            line = {"way": row[0], "divergence": row[1], "seconds": seconds, "peak": peak} | result
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    run_rows(size, rows, limit=options.limit, report=report)


def run_rows(
    size: Size,
    rows: list[Row],
    *,
    limit: float,
    report: Callable[[Row, dict[str, Any]], None],
) -> None:
    """Measure rows in a process that is replaced when a row takes too long.

    Args:
        size: Shape of the task.
        rows: The rows.
        limit: Seconds of a row, the start of a process included.
        report: Receives each row with its result.
    """
    spawning = multiprocessing.get_context("spawn")
    waiting = list(rows)
    while waiting:
        receiver, sender = spawning.Pipe(duplex=False)
        process = spawning.Process(target=measure_rows, args=(size, waiting, sender), daemon=True)
        process.start()
        sender.close()
        while waiting:
            result: dict[str, Any] = {"failed": f"took more than {limit:.0f} s"}
            is_lost = not receiver.poll(limit)
            if not is_lost:
                try:
                    result = receiver.recv()
                except EOFError:
                    result, is_lost = {"failed": "the process ended"}, True
            report(waiting.pop(0), result)
            if is_lost:
                process.kill()
                break
        process.join()


def measure_rows(size: Size, rows: list[Row], sender: Connection) -> None:
    """Send the result of each row.

    Args:
        size: Shape of the task.
        rows: The rows.
        sender: Where results go.
    """
    torch.set_num_threads(1)
    if size.site is not None:
        sys.path.insert(0, size.site)
    for row in rows:
        started = time.perf_counter()
        try:
            result = precision(size) if row[0] == "precision" else measure(size, row)
        except Exception as error:  # noqa: BLE001 - the next row may work
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {error}"[:200]}
        result["took"] = f"{time.perf_counter() - started:.1f} s"
        sender.send(result)


def measure(size: Size, row: Row) -> dict[str, Any]:
    """Return median seconds and the peak of a row.

    Args:
        size: Shape of the task.
        row: Way and divergence.
    """
    way = row[0]
    is_gpu = size.device != "cpu"
    fused.TILING, fused.STUDENT_BYTES, fused.TEACHER_BYTES = tiling_of(way), *sizes_of(way)
    fused.PROCESSORS = () if way == "chunked, torch" else (size.device,)
    task = WAYS[re.split(r"[ ,]", way)[0]](size, row)
    before = 0
    if is_gpu:
        torch.cuda.empty_cache()
        # Workspaces count in every row, and not only in the first of a process.
        torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    student, teacher = heads(size)
    if way == "chunked, float32 weights":
        weight = student.weight.detach().float().requires_grad_()
        student = replace(student, weight=weight)
    seconds: list[float] = []
    for _ in range(2 + size.repetitions):
        student.states.grad = student.weight.grad = None
        started = clock(size.device)
        task(student, teacher)
        seconds.append(clock(size.device) - started)
    result: dict[str, Any] = {"seconds": statistics.median(seconds[2:])}
    if is_gpu:
        result["peak"] = torch.cuda.max_memory_allocated() - before
        result["least"] = f"{min(seconds[2:]) * 1e3:.2f} ms"
    return result


def tiling_of(way: str) -> Tiling:
    """Return the shape of the kernel that a way names."""
    match = re.match(r"(?:lanes|kernel) (\d+) x (\d+) x (\d+)", way)
    if match is None:
        return TILINGS[0]
    lanes, warps, stages = map(int, match.groups())
    return Tiling(lanes=lanes, num_warps=warps, num_stages=stages)


def sizes_of(way: str) -> tuple[int, int]:
    """Return the bytes of the products that a way names."""
    match = re.match(r"rows (\d+) \+ (\d+) MiB", way)
    student, teacher = SIZES[0] if match is None else map(int, match.groups())
    return student * 2**20, teacher * 2**20


def clock(device: str) -> float:
    """Return seconds, after all work that was started."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def heads(size: Size) -> tuple[LinearHead, LinearHead]:
    """Return the heads of student and teacher; logits are about normal."""
    generator = torch.Generator(size.device).manual_seed(0)

    def draw(rows: int, scale: float) -> Tensor:
        wide = torch.empty(rows, size.width, dtype=torch.bfloat16, device=size.device)
        return wide.normal_(0, scale, generator=generator)

    scale = size.width**-0.5
    student = LinearHead(
        states=draw(size.positions, 1.0).requires_grad_(),
        weight=draw(size.vocabulary, scale).requires_grad_(),
    )
    return student, LinearHead(
        states=draw(size.positions, 1.0), weight=draw(size.vocabulary, scale)
    )


Task = Callable[[LinearHead, LinearHead], None]


def products(size: Size, row: Row) -> Task:
    """Return the four matrix products, each at its largest: all logits fit."""
    del size, row

    def run(student: LinearHead, teacher: LinearHead) -> None:
        with torch.no_grad():
            teacher.product()
            logits = student.product()
            student.states.grad = logits @ student.weight
            student.weight.grad = logits.T @ student.states

    return run


def plain(size: Size, row: Row) -> Task:
    """Return the loss on all logits, with its gradients."""
    divergence = DIVERGENCES[row[1]]

    def run(student: LinearHead, teacher: LinearHead) -> None:
        with torch.no_grad():
            target = teacher.logits()
        total = divergence(
            student.logits(), target, student_temperature=1.0, teacher_temperature=1.0
        )
        (total / size.positions).backward()

    return run


def kl_div(size: Size, row: Row) -> Task:
    """Return forward KL on all logits as written with torch, with its gradients."""
    del row

    def run(student: LinearHead, teacher: LinearHead) -> None:
        with torch.no_grad():
            target = teacher.logits().log_softmax(-1)
        total = torch.nn.functional.kl_div(
            student.logits().log_softmax(-1), target, reduction="sum", log_target=True
        )
        (total / size.positions).backward()

    return run


def chunked(size: Size, row: Row) -> Task:
    """Return the loss in chunks, with its gradients."""

    def run(student: LinearHead, teacher: LinearHead) -> None:
        total = chunked_divergence(
            student,
            teacher,
            DIVERGENCES[row[1]],
            student_temperature=1.0,
            teacher_temperature=1.0,
        )
        (total / size.positions).backward()

    return run


def kernel(size: Size, row: Row) -> Task:
    """Return the kernel alone, on the products of one chunk, as often as there are chunks."""
    losses: list[tuple[FusedLoss, Tensor, Tensor]] = []

    def run(student: LinearHead, teacher: LinearHead) -> None:
        if not losses:
            loss = FusedLoss(
                student=student.detached, teacher=teacher, divergence=DIVERGENCES[row[1]]
            )
            rows = slice(0, min(loss.chunk_rows, size.positions))
            losses.append((loss, loss.product(rows), loss._product("t", teacher.at(rows), teacher)))  # noqa: SLF001
        loss, product, target = losses[0]
        for start in range(0, size.positions, len(product)):
            rows = slice(start, start + len(product))
            fused._launch(loss, product, target, rows)  # noqa: SLF001

    return run


def liger(size: Size, row: Row) -> Task:
    """Return Liger's loss on the same heads; labels are there, but have no weight."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: PLC0415

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=BETAS[row[1]],
        compiled=row[0] == "liger compiled",
    )
    labels = torch.zeros(size.positions, dtype=torch.int64, device=size.device)

    def run(student: LinearHead, teacher: LinearHead) -> None:
        loss(student.states, student.weight, teacher.states, teacher.weight, labels).backward()

    return run


def trl(size: Size, row: Row) -> Task:
    """Return trl's loss on the same heads, without its trainers and their requirements."""
    trainers: Any = ModuleType("trl.trainer.utils")
    # Gathers a head that DeepSpeed has split; here there is nothing to gather.
    trainers.maybe_gather_lm_head_ctx = lambda *_: nullcontext()
    sys.modules.setdefault("trl.trainer.utils", trainers)
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # noqa: PLC0415

    def run(student: LinearHead, teacher: LinearHead) -> None:
        inputs = (student.states, student.weight, None, teacher.states, teacher.weight, None)
        divergence, _ = ChunkedDivergenceFunction.apply(*inputs, BETAS[row[1]])
        (divergence.sum() / size.positions).backward()

    return run


WAYS: dict[str, Callable[[Size, Row], Task]] = {
    "products": products,
    "plain": plain,
    "kl_div": kl_div,
    "chunked": chunked,
    "lanes": chunked,
    "rows": chunked,
    "kernel": kernel,
    "liger": liger,
    "trl": trl,
}


def precision(size: Size) -> dict[str, Any]:
    """Return relative errors of value and gradients against float64.

    Args:
        size: Shape of the task; at most 8,192 classes and a width of 1,024 are compared.
    """
    size = replace(size, vocabulary=min(size.vocabulary, 8192), width=min(size.width, 1024))
    divergence, settings = ForwardKL(), {"student_temperature": 1.0, "teacher_temperature": 1.0}
    student, teacher = heads(size)

    def solve(student: LinearHead, total: Tensor) -> list[Tensor]:
        return [total, *torch.autograd.grad(total, [student.states, student.weight])]

    def solve_chunked(number: int) -> list[Tensor]:
        chunk = -(-size.positions // number)
        total = chunked_divergence(student, teacher, divergence, chunk=chunk, **settings)
        return solve(student, total / size.positions)

    wide = [
        LinearHead(states=head.states.detach().double(), weight=head.weight.detach().double())
        for head in (student, teacher)
    ]
    for leaf in (wide[0].states, wide[0].weight):
        leaf.requires_grad_()
    total = divergence(wide[0].logits(), wide[1].logits(), **settings)
    expected = solve(wide[0], total / size.positions)
    fused.TILING, fused.STUDENT_BYTES, fused.TEACHER_BYTES = tiling_of(""), *sizes_of("")
    results: dict[str, list[Tensor]] = {}
    plain_total = divergence(student.logits(), teacher.logits().detach(), **settings)
    results["plain"] = solve(student, plain_total / size.positions)
    fused.PROCESSORS = ()
    results["torch in 16"] = solve_chunked(16)
    fused.PROCESSORS = (size.device,)
    for number in (1, 4, 16, 17):
        results[f"kernel in {number}"] = solve_chunked(number)
    return {
        name: "/".join(
            f"{((actual.double() - exact).norm() / exact.norm()).item():.1e}"
            for actual, exact in zip(result, expected, strict=True)
        )
        for name, result in results.items()
    }


if __name__ == "__main__":
    main()
