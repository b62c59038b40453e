"""Times of a step on a GPU: kernels, launches, the work of the host, and lines that wait.

Units: milliseconds a step, unless a name has another.
"""

import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from curricle.training.loop.stepping import Stepper

Step = Callable[[], object]
KINDS = (
    ("copy", r"memcpy|memset"),
    ("attention", r"flash|fmha|attention|mem_eff|cudnn.*sdpa|sdpa"),
    ("matmul", r"gemm|nvjet|cutlass|xmma|gemv|splitk|addmm|matmul|::mm|::bmm|::linear"),
    ("optimizer", r"multi_tensor|fused_adam|fusedadam"),
    ("index", r"index|gather|scatter|embedding|sort|radix"),
    ("norm and softmax", r"layer_norm|layernorm|rms_norm|softmax|reduce"),
    ("elementwise", r"elementwise|triton|vectorized|copy|fill"),
)
"""Kinds of kernels with the patterns of their names, the first match counts."""


@dataclass(frozen=True)
class Span:
    """An event of a profile, in microseconds."""

    name: str
    is_on_gpu: bool
    start: float
    end: float


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: str, *, size: int) -> float:
    """Return the FLOPs a second of a square bf16 matrix product; the median of five."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    times: list[float] = []
    for _ in range(5):
        left @ right
        synchronize(device)
        started = time.perf_counter()
        for _ in range(10):
            left @ right
        synchronize(device)
        times.append((time.perf_counter() - started) / 10)
    return 2 * size**3 / sorted(times)[2]


def profiled(step: Step, device: str, *, steps: int) -> dict[str, object]:
    """Return where the time of steps goes.

    Args:
        step: Takes a step; warm.
        device: The device.
        steps: Number of steps.
    """
    is_gpu = device == "cuda"
    # On a GPU operators of torch are left out: noting each of them would slow the host down.
    activity = ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU
    synchronize(device)
    with profile(activities=[activity]) as profiler:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        queued = time.perf_counter() - started
        synchronize(device)
        seconds = time.perf_counter() - started
    spans = [
        Span(
            event.name,
            event.device_type == DeviceType.CUDA,
            event.time_range.start,
            event.time_range.end,
        )
        for event in profiler.events()
    ]
    return {
        "ms": round(1e3 * seconds / steps, 3),
        "host_ms": round(1e3 * queued / steps, 3),
        **summary(spans, steps=steps, seconds=seconds, on_gpu=is_gpu),
    }


def summary(
    spans: Sequence[Span], *, steps: int, seconds: float, on_gpu: bool = True
) -> dict[str, object]:
    """Return times by kind of kernel, busy share of the GPU, launches and copies.

    Args:
        spans: Events of a profile.
        steps: Number of steps in it.
        seconds: Time of all steps.
        on_gpu: Whether kernels are those of a GPU; on a CPU they are operators, and overlap.
    """
    kernels = [span for span in spans if span.is_on_gpu == on_gpu]
    kinds: Counter[str] = Counter()
    for span in kernels:
        kinds[kind_of(span.name)] += span.end - span.start
    result: dict[str, object] = {
        "kernel_ms": {name: round(us / 1e3 / steps, 3) for name, us in kinds.most_common()},
        "kernels": round(len(kernels) / steps, 1),
    }
    if on_gpu:
        calls = [span for span in spans if not span.is_on_gpu]
        launches = [span for span in calls if "launch" in span.name.lower()]
        copies = [span for span in calls if "memcpyasync" in span.name.lower()]
        result |= {
            "busy_share": round(union(kernels) / 1e6 / seconds, 3),
            "launches": round(len(launches) / steps, 1),
            "launch_ms": _total(launches, steps),
            "copies": round(len(copies) / steps, 1),
            "copy_call_ms": _total(copies, steps),
            "longest_kernels": _longest(kernels, steps),
        }
    return result


def kind_of(name: str) -> str:
    """Return the kind of a kernel."""
    kinds = (kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE))
    return next(kinds, "other")


def union(spans: Iterable[Span]) -> float:
    """Return the microseconds in which at least one span runs."""
    total, end = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(span.end - max(span.start, end), 0.0)
        end = max(end, span.end)
    return total


def _total(spans: Iterable[Span], steps: int) -> float:
    return round(sum(span.end - span.start for span in spans) / 1e3 / steps, 3)


def _longest(kernels: Iterable[Span], steps: int) -> dict[str, float]:
    """Return the ten names of kernels that take most time together."""
    times: Counter[str] = Counter()
    for span in kernels:
        times[span.name[:90]] += span.end - span.start
    return {name: round(us / 1e3 / steps, 3) for name, us in times.most_common(10)}


def host_parts(stepper: Stepper, *, steps: int) -> dict[str, float]:
    """Return the time that the host takes for parts of a step of the engine, each by itself.

    Args:
        stepper: An open stage without prefetch, whose gradients are there.
        steps: Number of repetitions.
    """
    run, placement = stepper.run, stepper.run.settings.placement
    batch = run.stream.batch(stepper.start)

    def optimize() -> None:
        stepper.optimizer.step()

    calls: dict[str, Step] = {
        "data": lambda: run.stream.batch(stepper.start),
        "counts": lambda: stepper.loss.counts(batch),
        "transfer": lambda: placement.part_of(batch),
        "optimizer": optimize,
    }
    times: dict[str, float] = {}
    for name, call in calls.items():
        call()
        synchronize(placement.kind)
        started = time.perf_counter()
        for _ in range(steps):
            call()
        times[f"{name}_host_ms"] = round(1e3 * (time.perf_counter() - started) / steps, 3)
        synchronize(placement.kind)
        times[f"{name}_ms"] = round(1e3 * (time.perf_counter() - started) / steps, 3)
    return times


def waiting_places(step: Step, *, steps: int) -> dict[str, float]:
    """Return the places in Python where steps wait for the GPU, with their number a step.

    Only waits that torch itself reports are seen: a copy from memory that is not pinned is none.

    Args:
        step: Takes a step; warm.
        steps: Number of steps.
    """
    places: Counter[str] = Counter()

    def note(message: object, *_: object, **__: object) -> None:
        if "synchronizing" in str(message):
            places[_place(traceback.extract_stack(sys._getframe(1)))] += 1  # noqa: SLF001

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {place: count / steps for place, count in places.most_common()}


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the innermost frame of a library, and the innermost of curricle if it is another."""
    frames = [frame for frame in frames if "/warnings.py" not in frame.filename]
    places = [
        f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno} {frame.line}"
        for frame in (frames[-1], *(f for f in frames[:-1] if "/curricle/" in f.filename))
    ]
    return places[0] if len(places) == 1 else f"{places[0]} < {places[-1]}"
