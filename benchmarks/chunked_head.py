"""What does a loss on a large vocabulary cost in chunks, against all logits at once?

Task: loss and gradients (states, head weight) of a student's head against a teacher's of the same
width, both drawn at random. `plain` multiplies all logits out and compares them with our losses,
`kl_div` with that of torch; `chunked` is `curricle.objectives.chunked`; `liger` is
`LigerFusedLinearJSDLoss` of liger-kernel with its eager and its compiled loss, if `--liger` names a
folder into which `pip install --no-deps --target` has put it. Each measurement has a process of its
own, and they take turns. On the CPU seconds are those of the processor, which other jobs disturb
less than those of the clock. The peak is that of the process beyond what it held before the heads
were made, so it counts weights and gradients; on a GPU, that of the allocator.

At most `--plain-positions` are compared plainly, since all logits may not fit: what the plain way
takes at more positions is the line through two smaller numbers.
Run: python benchmarks/chunked_head.py [--quick] [--liger FOLDER] [--positions N] ...
"""

import argparse
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from curricle.models.heads import LinearHead
from curricle.objectives.chunked import Chunk, chunked_divergence
from curricle.objectives.divergences import JSD, Divergence, ForwardKL, ReverseKL, TotalVariation

DIVERGENCES: dict[str, Divergence] = {
    one.kind: one for one in (ForwardKL(), ReverseKL(), JSD(), TotalVariation())
}
LIGER_BETAS = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}
MEBIBYTE = 2**20
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement."""

    way: str
    positions: int
    vocabulary: int
    width: int
    divergence: str
    chunk: Chunk
    repetitions: int
    dtype: torch.dtype
    device: str
    liger: str | None


@dataclass(frozen=True)
class Measured:
    """Median seconds of loss and gradients, and the peak in MiB."""

    seconds: float
    peak: float


def main() -> None:
    """Print times, peaks and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--plain-positions", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=128 * 1024)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--divergence", choices=DIVERGENCES, default="forward_kl")
    parser.add_argument("--chunk", default="auto", help="positions of a chunk")
    parser.add_argument("--repetitions", type=int, default=3, help="processes of each way")
    parser.add_argument("--inner", type=int, default=1, help="repetitions in a process")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--liger", help="folder that holds liger_kernel")
    given = parser.parse_args()
    if given.quick:
        given.positions, given.plain_positions = 256, 128
        given.vocabulary, given.width, given.repetitions = 2048, 32, 1
    case = Case(
        way="plain",
        positions=min(given.positions, given.plain_positions),
        vocabulary=given.vocabulary,
        width=given.width,
        divergence=given.divergence,
        chunk="auto" if given.chunk == "auto" else int(given.chunk),
        repetitions=given.inner,
        dtype=getattr(torch, given.dtype),
        device=given.device,
        liger=given.liger,
    )
    if given.quick:
        case = replace(case, chunk=32)
    print(f"torch {torch.__version__}, {platform.machine()}, {case.device}, 1 thread, {case.dtype}")
    print(f"{case.divergence}, {case.vocabulary} classes, {case.width} wide, chunk {case.chunk}")
    compare(cases(case, given.positions), repetitions=given.repetitions)


def cases(plain: Case, positions: int) -> list[Case]:
    """Return what is measured: all ways at the size of the plain one, and the others at full."""
    ways = ["chunked"]
    usual = [replace(plain, way="kl_div")] if plain.divergence == "forward_kl" else []
    if plain.liger and plain.divergence in LIGER_BETAS:
        ways += ["liger", "liger compiled"]
    same = [plain, *usual, *(replace(plain, way=way) for way in ways)]
    if positions == plain.positions:
        return same
    full = [replace(plain, way=way, positions=positions) for way in ways if " " not in way]
    return [replace(plain, positions=plain.positions // 2), *same, *full]


def compare(chosen: list[Case], *, repetitions: int) -> None:
    """Measure cases in turns and print the medians, beside those of the plain way."""
    found: dict[Case, list[Measured]] = {case: [] for case in chosen}
    for _ in range(repetitions):
        for case in chosen:
            found[case].append(alone(case))
            print(
                f"{case.positions:6} {case.way:14} {found[case][-1]}", file=sys.stderr, flush=True
            )
    medians = {
        case: Measured(
            statistics.median(one.seconds for one in each),
            statistics.median(one.peak for one in each),
        )
        for case, each in found.items()
    }
    for case, median in medians.items():
        plain, note = plain_at(case.positions, medians)
        print(
            f"{case.positions:6} positions {case.way:14} {median.seconds * 1e3:10.1f} ms "
            f"{median.peak:9.0f} MiB; of plain{note}: time {median.seconds / plain.seconds:5.2f}, "
            f"peak 1/{plain.peak / median.peak:.1f}"
        )


def plain_at(positions: int, medians: dict[Case, Measured]) -> tuple[Measured, str]:
    """Return what the plain way takes, on the line through two numbers where it was not run."""
    known = {case.positions: one for case, one in medians.items() if case.way == "plain"}
    if positions in known:
        return known[positions], ""
    (few, low), (many, high) = sorted(known.items())
    steps = (positions - many) / (many - few)
    return (
        Measured(
            high.seconds + steps * (high.seconds - low.seconds),
            high.peak + steps * (high.peak - low.peak),
        ),
        f" on the line ({high.peak + steps * (high.peak - low.peak):.0f} MiB)",
    )


def alone(case: Case) -> Measured:
    """Return what a fresh process measures."""
    return in_process(measured, case)


def in_process(function: Callable[..., T], *args: object) -> T:
    """Return what a function returns in a fresh process."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        return pool.submit(function, *args).result()


def measured(case: Case) -> Measured:
    """Return what one way takes in this process."""
    torch.set_num_threads(1)
    if case.liger is not None:
        sys.path.insert(0, case.liger)
    # Loads what the first product loads.
    (torch.ones(64, 64) @ torch.ones(64, 64)).exp().sum()
    task = TASKS[case.way](case)
    before = peak_from_now(case.device)
    student, teacher = heads(case, case.positions)
    if case.way == "liger compiled" or case.repetitions > 1:
        task(student, teacher)
    seconds: list[float] = []
    for _ in range(case.repetitions):
        student.states.grad = student.weight.grad = None
        started = clock(case.device)
        task(student, teacher)
        seconds.append(clock(case.device) - started)
    return Measured(statistics.median(seconds), (peak(case.device) - before) / MEBIBYTE)


Task = Callable[[LinearHead, LinearHead], None]


def plain(case: Case) -> Task:
    """Return the loss on all logits, with its gradients."""
    divergence = DIVERGENCES[case.divergence]

    def run(student: LinearHead, teacher: LinearHead) -> None:
        with torch.no_grad():
            target = teacher.logits()
        total = divergence(
            student.logits(), target, student_temperature=1.0, teacher_temperature=1.0
        )
        (total / case.positions).backward()

    return run


def usual(case: Case) -> Task:
    """Return forward KL on all logits as people write it with torch, with its gradients."""

    def run(student: LinearHead, teacher: LinearHead) -> None:
        with torch.no_grad():
            target = teacher.logits().log_softmax(-1)
        total = torch.nn.functional.kl_div(
            student.logits().log_softmax(-1), target, reduction="sum", log_target=True
        )
        (total / case.positions).backward()

    return run


def chunked(case: Case) -> Task:
    """Return the loss in chunks, with its gradients."""

    def run(student: LinearHead, teacher: LinearHead) -> None:
        total = chunked_divergence(
            student,
            teacher,
            DIVERGENCES[case.divergence],
            student_temperature=1.0,
            teacher_temperature=1.0,
            chunk=case.chunk,
        )
        (total / case.positions).backward()

    return run


def liger(case: Case) -> Task:
    """Return Liger's loss on the same heads; labels are there, but have no weight."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: PLC0415

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=LIGER_BETAS[case.divergence],
        compiled=case.way == "liger compiled",
        **({} if case.chunk == "auto" else {"chunk_size": case.chunk}),
    )
    labels = torch.zeros(case.positions, dtype=torch.int64, device=case.device)

    def run(student: LinearHead, teacher: LinearHead) -> None:
        loss(student.states, student.weight, teacher.states, teacher.weight, labels).backward()

    return run


TASKS: dict[str, Callable[[Case], Task]] = {
    "plain": plain,
    "kl_div": usual,
    "chunked": chunked,
    "liger": liger,
    "liger compiled": liger,
}


def heads(case: Case, positions: int) -> tuple[LinearHead, LinearHead]:
    """Return the heads of student and teacher; logits are about normal."""
    generator = torch.Generator(case.device).manual_seed(0)

    def drawn(rows: int, scale: float) -> Tensor:
        wide = torch.empty(rows, case.width, dtype=case.dtype, device=case.device)
        return wide.normal_(0, scale, generator=generator)

    scale = case.width**-0.5
    student = LinearHead(
        states=drawn(positions, 1.0).requires_grad_(),
        weight=drawn(case.vocabulary, scale).requires_grad_(),
    )
    return student, LinearHead(states=drawn(positions, 1.0), weight=drawn(case.vocabulary, scale))


def clock(device: str) -> float:
    """Return the seconds of work until all that was started is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_from_now(device: str) -> float:
    """Return what is held now, in bytes, and let the peak begin anew."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Linux: 5 sets the high-water mark back to what is resident.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak(device)


def peak(device: str) -> float:
    """Return the peak of this process, in bytes."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
