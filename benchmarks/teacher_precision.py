"""What does a teacher gain whose weights are held in bfloat16, against casting them at every pass?

Teacher: a BERT, not trained, read after its last block. A pass in float32, one in bfloat16 by
autocast, and one in the same autocast with the weights of its linear maps held in bfloat16, as
teaching holds them, take turns; the last two give the same numbers to the bit. Times are medians of
processor time. Few tokens a pass gain most: casting costs the same for one as for all.
Run: python benchmarks/teacher_precision.py [--quick]
"""

import argparse
import platform
import statistics
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from curricle import seeding
from curricle.models.hf import HuggingFaceSpec
from curricle.teachers.live import LiveTeacher

VOCABULARY = 8192
Size = tuple[int, int, int, int]
SIZES: tuple[Size, ...] = ((12, 768, 1, 64), (12, 768, 8, 128), (4, 256, 4, 64), (4, 256, 32, 128))
"""Layers, width, examples and tokens of each."""
QUICK: tuple[Size, ...] = ((2, 64, 1, 8),)
WAYS = {
    "float32": (None, None),
    "autocast": (torch.bfloat16, None),
    "held": (torch.bfloat16, torch.bfloat16),
}
"""Precision of the autocast, and that in which weights are held."""


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, few repetitions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread; milliseconds a pass")
    print(f"{'teacher':10}{'tokens':>10}" + "".join(f"{name:>10}" for name in WAYS) + "  held/cast")
    for size in QUICK if given.quick else SIZES:
        layers, width, examples, length = size
        took = timed(size, repetitions=2 if given.quick else 9)
        each = "".join(f"{one * 1e3:10.1f}" for one in took)
        ratio = took[2] / took[1]
        print(f"{f'{layers} x {width}':10}{f'{examples} x {length}':>10}{each}{ratio:11.2f}")


def precision(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return the autocast of a precision; None is float32."""
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def timed(size: Size, repetitions: int) -> list[float]:
    """Return the median seconds of a pass in each way, taken in turns."""
    layers, width, examples, length = size
    config = {
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_size": width,
        "intermediate_size": 4 * width,
    }
    with seeding.scoped(0, "benchmark"):
        model = HuggingFaceSpec(model_type="bert", config=config).build(
            num_inputs=VOCABULARY, num_classes=VOCABULARY, num_positions=length
        )
        ids = torch.randint(VOCABULARY, (examples, length))
    teacher, place = LiveTeacher(model), model.place(layers)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found: list[list[float]] = [[] for _ in WAYS]
    for _ in range(repetitions):
        for (cast, held), taken in zip(WAYS.values(), found, strict=True):
            with (
                teacher.teaching(held),
                teacher.reading("final", [place], logits=False) as read,
            ):
                for _ in range(2):
                    # As in training: autocast forgets its casts at the end of each step.
                    with torch.no_grad(), precision(cast):
                        started = time.process_time()
                        read(inputs)
                        seconds = time.process_time() - started
                taken.append(seconds)
    return [statistics.median(one) for one in found]


if __name__ == "__main__":
    main()
