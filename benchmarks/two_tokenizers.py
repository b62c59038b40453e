"""Gain by a teacher with another tokenizer, as a share of the gain with the same tokenizer.

A decoder student with a byte-level BPE of 8,192 tokens learns next tokens of WikiText-2 for the
same number of steps from labels alone, from labels and a teacher with its own tokenizer, and from
labels and a teacher with a BPE of 4,096 tokens: by sorted probabilities, by groups of tokens, and
by groups after a stage on aligned hidden states. All students read the same batches from the same
first weights. The gain is the difference of held-out cross-entropy to labels alone, in nats a
token. One thread, one seed.
Run: python benchmarks/two_tokenizers.py CORPUS [--teacher-steps N] [--student-steps N] [--quick]
CORPUS is a folder with train and valid files; without it, the text shipped with the package is
read.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import curricle
from curricle import seeding
from curricle.data.text import open_corpus, open_tokenizer
from curricle.data.text.pieces import pieces
from curricle.objectives.base import Objective
from curricle.objectives.vocabulary_groups import SortedProbabilities

STUDENT_TOKENS, TEACHER_TOKENS, WINDOW, BATCH, POSITIONS = 8192, 4096, 64, 8, 192
EVALUATED = 24
"""Held-out batches."""
RATE = 2e-3


def main() -> None:
    """Train teachers and students, and print losses and gains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", default="sample", help="folder of train and valid")
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--student-steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.teacher_steps, arguments.student_steps
    compare(arguments.corpus, *((12, 8) if arguments.quick else steps))


def compare(corpus: str, teacher_steps: int, student_steps: int) -> None:
    """Print losses and gains of all ways to learn."""
    with tempfile.TemporaryDirectory() as cache:
        own, other = (
            open_tokenizer(corpus, vocabulary_size=size, cache_dir=Path(cache))
            for size in (STUDENT_TOKENS, TEACHER_TOKENS)
        )
    texts = {split: lines(corpus, split) for split in ("train", "valid")}
    paired = {split: pairs(texts[split], own, other) for split in texts}
    print(paired["train"].note, flush=True)
    alone: Streams = {split: Alone(stream) for split, stream in paired.items()}
    of_other: Streams = {split: Alone(pairs(texts[split], other, other)) for split in texts}
    teachers = {
        "same": teacher(STUDENT_TOKENS, alone, teacher_steps),
        "other": teacher(TEACHER_TOKENS, of_other, teacher_steps),
    }
    arms = ways(alone, paired, (own, other))
    losses = {}
    for name, (taught_by, streams, objective) in arms.items():
        student = model(STUDENT_TOKENS, layers=2, width=64)
        stages = curriculum(student_steps, objective, is_staged="hidden" in name)
        losses[name] = learn(name, (student, teachers.get(taught_by or "")), stages, streams)
        gain = losses["labels alone"] - losses[name]
        form = "hidden + logits" if "hidden" in name else "logits"
        same = losses.get(f"same tokenizer, {form}", float("nan"))
        share = gain / (losses["labels alone"] - same)
        print(f"{'':33} gain {gain:+.4f}, {share:.0%} of the same tokenizer's", flush=True)


def ways(
    alone: "Streams", paired: "Streams", tokenizers: tuple[Tokenizer, Tokenizer]
) -> "dict[str, tuple[str | None, Streams, Objective | None]]":
    """Return for each way its teacher, its batches and its objective beside the labels."""
    ranks = curricle.MatchPairedLogits(comparison=SortedProbabilities(num_largest=512), weight=1.5)
    groups = curricle.MatchPairedLogits(comparison=curricle.token_groups(*tokenizers))
    return {
        "labels alone": (None, alone, None),
        "same tokenizer, logits": ("same", alone, curricle.MatchLogits()),
        "other tokenizer, groups": ("other", paired, groups),
        "other tokenizer, sorted": ("other", paired, ranks),
        "same tokenizer, hidden + logits": ("same", alone, curricle.MatchLogits()),
        "other tokenizer, hidden + groups": ("other", paired, groups),
    }


Streams = dict[str, curricle.Stream]
"""Training and held-out batches."""


class Alone:
    """The student's side of paired texts."""

    def __init__(self, stream: curricle.PairedTexts) -> None:
        """Take the stream of both sides."""
        self._stream = stream
        self.batch_size, self.tokens_per_batch = stream.batch_size, stream.tokens_per_batch
        self.fingerprint = f"{stream.fingerprint} alone"

    def batch(self, step: int) -> curricle.Batch:
        """Return the batch of a step without the teacher's tokens."""
        batch = self._stream.batch(step)
        return curricle.Batch(inputs=batch.inputs, labels=batch.labels, selected=batch.selected)


def lines(corpus: str, split: str) -> list[str]:
    """Return the lines of a split."""
    return [line for text in open_corpus(corpus, split) for line in pieces([text])]


def pairs(texts: list[str], own: Tokenizer, other: Tokenizer) -> curricle.PairedTexts:
    """Return the batches of a text in the tokens of two tokenizers."""
    return curricle.paired_texts(texts, own, other, window=WINDOW, batch_size=BATCH)


def model(size: int, *, layers: int, width: int) -> GPT2LMHeadModel:
    """Return a decoder with first weights that depend on its sizes only."""
    config = GPT2Config(
        vocab_size=size,
        n_positions=POSITIONS,
        n_embd=width,
        n_layer=layers,
        n_head=width // 32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    with seeding.scoped(0, f"weights {size} {layers} {width}"):
        return GPT2LMHeadModel(config)


def curriculum(
    steps: int, objective: Objective | None, *, is_staged: bool = False
) -> curricle.Curriculum:
    """Return a stage of labels and an objective, after one on hidden states if it is staged."""
    first = steps // 4 if is_staged else 0
    hidden = curricle.MatchHidden(pair=curricle.LayerPair(student=0.5, teacher=0.5))
    stages = [
        curricle.Stage(
            name=name,
            duration=curricle.Duration(number=length, unit="steps"),
            objectives=(curricle.LabelLoss(), *([] if term is None else [term])),
        )
        for name, length, term in (("hidden", first, hidden), ("logits", steps - first, objective))
        if length
    ]
    return curricle.Curriculum(name="two tokenizers", stages=tuple(stages))


def teacher(size: int, streams: Streams, steps: int) -> GPT2LMHeadModel:
    """Return a teacher that has learned from labels."""
    module = model(size, layers=4, width=128)
    learn(f"teacher of {size}", (module, None), curriculum(steps, None), streams)
    return module


def learn(
    name: str,
    models: tuple[GPT2LMHeadModel, GPT2LMHeadModel | None],
    stages: curricle.Curriculum,
    streams: Streams,
) -> float:
    """Return the held-out loss of a student in nats a token, after it has learned.

    Args:
        name: Name in the output.
        models: Student and teacher.
        stages: How it learns.
        streams: Training and held-out batches.
    """
    started, used = time.perf_counter(), time.process_time()
    result = curricle.distill(
        *models,
        stages,
        streams["train"],
        evaluation=[streams["valid"].batch(step) for step in range(EVALUATED)],
        optimizer=curricle.AdamW(learning_rate=RATE),
        settings=curricle.TrainingSettings(threads=1, eval_every=100_000),
    )
    loss = float(result.metrics["nll"])
    passed, busy = time.perf_counter() - started, time.process_time() - used
    print(f"{name:33} {loss:.4f} nats a token; {passed:.0f} s, processor {busy:.0f} s", flush=True)
    return loss


if __name__ == "__main__":
    main()
