"""Quality of a student before and after training, by its start.

A decoder (Llama, 4 x 48) learns next tokens of WikiText-2 from a teacher (Llama, 4 x 128) in one
shot, from a random start, from the principal components or the strongest channels of the teacher's
embeddings, and from all blocks fitted by least squares; extraction stands beside them. All
students read the same batches; a seed draws their weights. Printed are held-out cross-entropy in
nats a token and accuracy, before the first step and at evaluations, with the FLOPs by then, those
of the start included. One thread.
Run: python benchmarks/least_squares.py CORPUS [--steps N] [--seeds N] [--quick]
CORPUS is a folder with train and valid files; without it, the text shipped with the package is
read. The teacher is kept in the folder `--teacher`, if given, for a second call.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import curricle
from curricle import seeding
from curricle.data.text import open_corpus, open_tokenizer
from curricle.data.text.pieces import pieces
from curricle.records import EvaluationRecord, Record

TOKENS, WINDOW, BATCH, EVALUATED, EVALUATIONS = 1024, 128, 8, 40, 12
RATES = {"teacher": 3e-3, "student": 6e-3}
METHODS = ("random", "principal", "selection", "least_squares", "extraction")


def main() -> None:
    """Train a teacher and its students."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", default="sample", help="folder of train and valid")
    parser.add_argument("--teacher", type=Path, help="folder of the teacher")
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.teacher_steps, arguments.steps = 12, 12
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = open_tokenizer(arguments.corpus, vocabulary_size=TOKENS, cache_dir=Path(cache))
    streams = {
        split: curricle.text_stream(
            [line for text in open_corpus(arguments.corpus, split) for line in pieces([text])],
            tokenizer,
            window=WINDOW,
            batch_size=BATCH,
        )
        for split in ("train", "valid")
    }
    number = 2 if arguments.quick else EVALUATED
    data = Data(streams["train"], [streams["valid"].batch(step) for step in range(number)])
    teacher = taught(data, arguments)
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            learn(method, teacher, data, steps=arguments.steps, seed=seed)


class Data(NamedTuple):
    """Training data, and held-out batches."""

    train: curricle.Stream
    held_out: list[curricle.Batch]


def model(seed: int, *, width: int, neurons: int) -> LlamaForCausalLM:
    """Return a decoder of four blocks with four heads."""
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=neurons,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=None,
        eos_token_id=None,
    )
    with seeding.scoped(seed, f"weights of width {width}"):
        return LlamaForCausalLM(config)


def taught(data: Data, arguments: argparse.Namespace) -> LlamaForCausalLM:
    """Return a teacher that has learned from labels, or the one that was kept."""
    folder = arguments.teacher
    if folder is not None and (folder / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(folder)
    module = model(0, width=128, neurons=320)
    curriculum = curricle.from_labels(total=f"{arguments.teacher_steps} steps")
    run(("teacher", 0), (module, None), curriculum, data, rate=RATES["teacher"])
    if folder is not None:
        module.save_pretrained(folder)
    return module


def learn(method: str, teacher: LlamaForCausalLM, data: Data, *, steps: int, seed: int) -> None:
    """Train a student and print its quality on the way."""
    if method != "extraction":
        # A step of no size, to see the start.
        learner = model(seed + 1, width=48, neurons=128)
        start = curricle.one_shot(total="1 step", init=None if method == "random" else method)
        run((method, seed), (learner, teacher), start, data, rate=1e-12)
    total = f"{steps} steps"
    if method == "extraction":
        curriculum = curricle.extraction(
            total=total, pairs=2, layer_fraction=0.3, shared_projection=True
        )
    else:
        curriculum = curricle.one_shot(total=total, init=None if method == "random" else method)
    student = model(seed + 1, width=48, neurons=128)
    run((method, seed), (student, teacher), curriculum, data, rate=RATES["student"])


def run(
    name: tuple[str, int],
    models: tuple[LlamaForCausalLM, LlamaForCausalLM | None],
    curriculum: curricle.Curriculum,
    data: Data,
    *,
    rate: float,
) -> None:
    """Train a student of a teacher, or from labels, and print its quality on the way."""
    label, seed = name

    def show(record: Record) -> None:
        if isinstance(record, EvaluationRecord):
            usage, metrics = record.usage, record.metrics
            flops = usage.student_flops + usage.teacher_flops
            print(
                f"{label:14} seed {seed}  {usage.steps:5} steps  {flops / 1e12:7.3f} TFLOP  "
                f"{metrics['nll']:.4f} nats  accuracy {metrics['accuracy']:.4f}  "
                f"{usage.seconds:.0f} s",
                flush=True,
            )

    steps = sum(int(stage.duration.number) for stage in curriculum.stages)
    curricle.distill(
        *models,
        curriculum,
        data.train,
        evaluation=data.held_out,
        optimizer=curricle.AdamW(
            learning_rate=rate, schedule=curricle.Schedule(warmup=0.03, decay="cosine")
        ),
        settings=curricle.TrainingSettings(
            threads=1, eval_every=max(steps // EVALUATIONS, 1), max_grad_norm=1.0
        ),
        observers=[show],
        seed=seed,
    )


if __name__ == "__main__":
    main()
