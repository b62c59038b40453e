"""What does a teacher gain by lower precision, by weights held in it and by compiled blocks?

Teacher: a BERT, not trained, read after its last block. Passes take turns: in float32, the same
with compiled blocks, in bfloat16 by autocast, the same with the weights of its linear maps held in
bfloat16, as teaching holds them (which gives the same numbers to the bit), and that with compiled
blocks. Times are medians of processor time; `compiling` is what the first two passes of both
compiled ways take. Few tokens a pass gain most: casting costs the same for one as for all.
Run: python benchmarks/teacher_inference.py [--quick]
"""

import argparse
import platform
import statistics
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from curricle import seeding
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.inference import Inference
from curricle.teachers.live import LiveTeacher

VOCABULARY = 8192
Size = tuple[int, int, int, int]
SIZES: tuple[Size, ...] = ((12, 768, 1, 64), (12, 768, 8, 128), (4, 256, 4, 64), (4, 256, 32, 128))
"""Layers, width, examples and tokens of each."""
QUICK: tuple[Size, ...] = ((2, 64, 1, 8),)
LOW = torch.bfloat16
WAYS: dict[str, tuple[torch.dtype | None, Inference]] = {
    "float32": (None, Inference()),
    "compiled": (None, Inference(compiled=True)),
    "autocast": (LOW, Inference()),
    "held": (LOW, Inference(linear=LOW)),
    "held, compiled": (LOW, Inference(linear=LOW, compiled=True)),
}
"""Precision of the autocast, and what is done to the teacher."""


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, few repetitions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread; milliseconds a pass")
    names = "".join(f"{name:>16}" for name in WAYS)
    print(f"{'teacher':10}{'tokens':>10}{names}  compiling, s")
    for size in QUICK if given.quick else SIZES:
        layers, width, examples, length = size
        took, compiling = timed(size, repetitions=2 if given.quick else 9)
        each = "".join(f"{one * 1e3:16.1f}" for one in took)
        print(f"{f'{layers} x {width}':10}{f'{examples} x {length}':>10}{each}{compiling:14.0f}")


def precision(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return the autocast of a precision; None is float32."""
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def timed(size: Size, repetitions: int) -> tuple[list[float], float]:
    """Return the median seconds of a pass in each way, taken in turns, and those of compiling."""
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

    def passes(cast: torch.dtype | None, inference: Inference) -> tuple[float, float]:
        """Return the seconds of two passes, and those of the second."""
        began = time.process_time()
        with (
            teacher.teaching(inference),
            teacher.open_taps("final", [place], logits=False) as forward,
        ):
            for _ in range(2):
                # As in training: autocast forgets its casts at the end of each step.
                with torch.no_grad(), precision(cast):
                    started = time.process_time()
                    forward(inputs, None, None)
                    ended = time.process_time()
        return ended - began, ended - started

    torch.compiler.reset()
    compiling = sum(passes(*way)[0] for way in WAYS.values() if way[1].compiled)
    found: list[list[float]] = [[] for _ in WAYS]
    for _ in range(repetitions):
        for way, taken in zip(WAYS.values(), found, strict=True):
            taken.append(passes(*way)[1])
    return [statistics.median(one) for one in found], compiling


if __name__ == "__main__":
    main()
