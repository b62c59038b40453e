"""Seconds of training steps with blocks of student and teacher compiled, and without.

One-shot distillation of masked tokens from a BERT to a narrower one, random tokens and weights, one
torch thread. Compiling is timed apart: it is the first step minus a later one.

Run: python benchmarks/compiled_models.py [--quick] [--device cuda]
"""

import argparse
import statistics
import time

import torch
from transformers import BertConfig, BertForMaskedLM

from curricle import seeding
from curricle.curriculum.strategies import one_shot
from curricle.data.batch import Batch
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import bind
from curricle.training.loop.stepping import stepping
from curricle.training.setup.optimizers import AdamW
from curricle.training.setup.settings import TrainingSettings

VOCABULARY = 1024


class RandomTokens:
    """Stream of random tokens whose labels are the tokens."""

    def __init__(self, batch_size: int, length: int) -> None:
        self.batch_size, self.length = batch_size, length
        self.tokens_per_batch = batch_size * length
        self.fingerprint = f"random tokens {batch_size} x {length}"

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        generator = seeding.generator(0, "benchmark", step)
        shape = (self.batch_size, self.length)
        ids = torch.randint(VOCABULARY, shape, generator=generator)
        return Batch(
            inputs={"input_ids": ids}, labels=ids.flatten(), selected=torch.arange(ids.numel())
        )


def bert(layers: int, width: int) -> TappedModel:
    """Return a BERT without dropout."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with seeding.scoped(0, "model"):
        return tapped(BertForMaskedLM(config))


def measured(arguments: argparse.Namespace, compiled: str, precision: str) -> tuple[float, float]:
    """Return seconds of compiling and the median seconds of a step."""
    width, batch, length, steps = (64, 4, 32, 4) if arguments.quick else (256, 16, 128, 12)
    run = bind(
        one_shot(total=f"{steps} steps"),
        student=bert(4, width // 2),
        teacher=LiveTeacher(bert(4, width)),
        stream=RandomTokens(batch, length),
        optimizer=AdamW(learning_rate=1e-3),
        settings=TrainingSettings(
            device=arguments.device,
            precision=precision,  # type: ignore[arg-type]
            compile=compiled,  # type: ignore[arg-type]
            threads=1,
        ),
        seed=0,
    )
    teacher, times = run.teacher, []
    assert isinstance(teacher, LiveTeacher)
    optimizer = run.optimizer.build(run.student.module.parameters())
    with (
        run.settings.stated_threads(),
        teacher.teaching(run.settings.teacher_inference),
        stepping(run, run.stages[0], optimizer) as stepper,
    ):
        run.student.module.train()
        for step in range(steps):
            begins = time.perf_counter()
            # Reading the loss waits for a GPU.
            stepper.step(step).loss.item()
            times.append(time.perf_counter() - begins)
    median = statistics.median(times[2:])
    return max(times[0] - median, 0.0), median


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, a few steps")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    print("| precision | compile | ms a step | of none | compiling, s |")
    print("|---|---|---:|---:|---:|")
    for precision in ("float32",) if arguments.quick else ("float32", "bfloat16"):
        plain = 0.0
        for compiled in ("none", "student", "teacher", "both"):
            compiling, step = measured(arguments, compiled, precision)
            plain = plain or step
            print(
                f"| {precision} | `{compiled}` | {step * 1e3:.1f} | {step / plain:.2f} | "
                f"{compiling:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
