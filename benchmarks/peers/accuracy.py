"""How soon does a curriculum reach the accuracy at which a Trainer ends?

Task: masked tokens, ModernBERT 4 x 256 to 4 x 64, vocabulary 4,096, as in `recipes/text-mlm.yaml`;
with BERT's absolute positions students stay on a plateau for longer than this budget
(docs/journal.md). The teacher is the one that the recipe trains. Contenders, each in a process of
its own: a Trainer of transformers in one shot (divergence of the logits at masked positions, as
people write it), curricle in one shot, and curricle's extraction (as in the recipe: blocks 1 and 2
for 30 % of the steps, one projection). One-shot has rate 0.003, which it likes best, extraction
0.012, likewise. First weights, batches, masks, warm-up and cosine, clipping at 1, float32 and one
thread are the same. Seconds are those of the process from the beginning of training, evaluations
left out.

What the engine gives is the Trainer's time over that of curricle in one shot, for the same steps;
what the curriculum gives is the rest.
Run: python benchmarks/peers/accuracy.py --corpus FOLDER --teacher RUN/teacher/model [--quick]
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from work import BETAS, Clock, Lesson, Work

import curricle
from curricle.training.loop.evaluation import label_metrics

ONE_SHOT, EXTRACTION = 0.003, 0.012
Curve = list[tuple[int, float, float]]
"""Steps, seconds and accuracy."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long is trained, and how often evaluated."""

    steps: int
    every: int
    batches: int


def main() -> None:
    """Print who is where when."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, few steps")
    parser.add_argument("--corpus", default="sample", help="as in recipes/text-mlm.yaml")
    parser.add_argument("--teacher", help="folder of the finished teacher")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--output", help="file for the curves, as JSON")
    given = parser.parse_args()
    budget = Budget(steps=given.steps, every=25, batches=20)
    work = Work(
        family="modernbert",
        heads=4,
        expansion=2,
        vocabulary=4096,
        window=64,
        corpus=given.corpus,
        teacher=given.teacher,
    )
    if given.quick:
        budget = Budget(steps=20, every=5, batches=2)
        work = replace(work, layers=2, wide=32, narrow=16, vocabulary=512, window=32, examples=8)
    print(
        f"torch {torch.__version__}, transformers {version('transformers')}, "
        f"{platform.machine()}, 1 thread, float32, {budget.steps} steps"
    )
    with tempfile.TemporaryDirectory() as cache:
        work = replace(work, cache=cache)
        work.windows("train")
        curves = curves_of(work, budget, jobs=given.jobs)
    if given.output:
        Path(given.output).write_text(json.dumps(curves), encoding="utf-8")
    compare(curves)


def compare(curves: dict[str, Curve]) -> None:
    """Print seconds to the Trainer's last accuracy, and their ratios."""
    _, whole, target = curves["Trainer"][-1]
    print(f"target: {target:.4f}, where the Trainer ends")
    print("                        steps   seconds   ratio   whole run   ends at")
    for name, curve in curves.items():
        steps, seconds = next(
            ((steps, seconds) for steps, seconds, found in curve if found >= target),
            (0, float("nan")),
        )
        print(
            f"{name:22}{steps:7}{seconds:10.1f}{seconds / whole:8.3f}{curve[-1][1]:12.1f}"
            f"{curve[-1][2]:10.4f}"
        )


def curves_of(work: Work, budget: Budget, *, jobs: int) -> dict[str, Curve]:
    """Return the curves of all contenders; each has a fresh process."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawning, max_tasks_per_child=1) as pool:
        running = {name: pool.submit(curve_of, name, work, budget) for name in CONTENDERS}
        return {name: one.result() for name, one in running.items()}


def curve_of(name: str, work: Work, budget: Budget) -> Curve:
    """Return the curve of a contender."""
    torch.set_num_threads(1)
    evaluate = label_metrics(work.held_out(budget.batches))
    rate = EXTRACTION if name == "curricle, extraction" else ONE_SHOT
    lesson = Lesson.of(work, steps=budget.steps, rate=rate)
    model, curve = curricle.tapped(lesson.student), Curve()
    clock = lesson.clock = Clock()

    def look(steps: int) -> dict[str, float]:
        with clock.pause(), torch.no_grad():
            lesson.student.eval()
            metrics = evaluate(model)
            lesson.student.train()
        curve.append((steps, clock.seconds, metrics["accuracy"]))
        print(f"{name:22}{steps:6} steps {curve[-1][1]:8.1f} s {curve[-1][2]:.4f}", flush=True)
        return metrics

    CONTENDERS[name](lesson, budget, look)
    return curve


Look = Callable[[int], dict[str, float]]


def trainer(lesson: Lesson, budget: Budget, look: Look) -> None:
    """Train in one shot with a Trainer."""
    from hf_trainer import Distilling, Watching, arguments  # noqa: PLC0415
    from transformers import TrainingArguments  # noqa: PLC0415

    def done(steps: int) -> None:
        if steps % budget.every == 0:
            look(steps)

    with tempfile.TemporaryDirectory() as folder:
        given = arguments(
            folder,
            max_steps=budget.steps,
            learning_rate=lesson.rate,
            lr_scheduler_type="cosine",
            warmup_steps=int(0.06 * budget.steps),
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
        )
        settings = TrainingArguments(**given)
        Distilling(lesson, [], args=settings, callbacks=[Watching(done)]).train()


def one_shot(lesson: Lesson, budget: Budget, look: Look) -> None:
    """Train in one shot with curricle."""
    _distill(lesson, curricle.one_shot(total=f"{budget.steps} steps"), budget, look)


def extraction(lesson: Lesson, budget: Budget, look: Look) -> None:
    """Train by extraction, as in the recipe."""
    pairs = tuple(curricle.LayerPair(student=tap, teacher=tap) for tap in (1, 2))
    curriculum = curricle.extraction(
        total=f"{budget.steps} steps", pairs=pairs, shared_projection=True, layer_fraction=0.3
    )
    _distill(lesson, curriculum, budget, look)


def _distill(lesson: Lesson, curriculum: curricle.Curriculum, budget: Budget, look: Look) -> None:
    # The engine evaluates at every interval and once more at the end.
    steps = iter([*range(budget.every, budget.steps + 1, budget.every), budget.steps])
    curricle.distill(
        lesson.student,
        lesson.teacher,
        curriculum,
        lesson.stream,
        evaluation=lambda _model: look(next(steps)),
        optimizer=curricle.AdamW(learning_rate=lesson.rate, betas=BETAS),
        settings=curricle.TrainingSettings(
            device="cpu", eval_every=budget.every, threads=1, max_grad_norm=1.0
        ),
    )


CONTENDERS: dict[str, Callable[[Lesson, Budget, Look], None]] = {
    "Trainer": trainer,
    "curricle, one-shot": one_shot,
    "curricle, extraction": extraction,
}


if __name__ == "__main__":
    main()
