"""Distil an intent classifier: from labeled questions to a folder that ships.

The rows are JSON lines with `text` and `label`, plain or gzip, such as banking77; without files, a
few made-up questions show the steps. A tokenizer and a BERT of 2 layers x 256 are trained on them.
Students of a quarter of the width then learn by six strategies within one budget, and the best on
held-out rows becomes a plain Hugging Face folder. A teacher in `--to` is used again.
Run it with: python examples/intent_classifier.py --train TRAIN.jsonl --test TEST.jsonl
"""

import argparse
import gzip
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

import curricle
from curricle import seeding

WIDTH, STUDENT_WIDTH, LAYERS, HEADS = 256, 64, 2, 4
VOCABULARY, LENGTH, BATCH = 2048, 32, 32
SIMILAR = 20
"""Characters by which the texts of a batch differ."""
STRATEGIES = {
    "labels": {"kind": "from_labels"},
    "one_shot": {"kind": "one_shot"},
    "principal": {"kind": "one_shot", "init": "principal"},
    "least_squares": {"kind": "one_shot", "init": "least_squares"},
    "auto": {"kind": "auto"},
    "extraction": {"kind": "extraction", "pairs": 1},
}
Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def made_up_rows(number: int, purpose: str) -> list[Row]:
    """Return questions made of parts, each with its intent."""
    openings = ("please tell me", "i want to know", "hello ,", "quick question :")
    intents = {
        "card": ("where is my card", "my card was stolen", "i need a new card"),
        "fee": ("why was i charged", "what does a transfer cost", "is there a fee"),
        "limit": ("how much can i withdraw", "raise my limit", "what is my limit"),
    }
    pool = [
        {"text": f"{opening} {question}", "label": label}
        for label, questions in intents.items()
        for opening, question in itertools.product(openings, questions)
    ]
    order = torch.randint(len(pool), (number,), generator=seeding.generator(0, purpose))
    return [pool[index] for index in order.tolist()]


def open_tokenizer(rows: Sequence[Row], folder: Path) -> BertTokenizerFast:
    """Return the tokenizer in the folder, trained on the texts if it is not there yet.

    It stays beside the teacher: a second training may give the same pieces other numbers.
    """
    if (folder / "tokenizer.json").is_file():
        return BertTokenizerFast.from_pretrained(folder)
    pieces = BertWordPieceTokenizer()
    texts = [row["text"] for row in rows]
    pieces.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    pieces.save_model(str(folder))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(width: int, names: Sequence[str], size: int) -> BertForSequenceClassification:
    """Return a BERT of a width with a class for each name."""
    config = BertConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    return BertForSequenceClassification(config)


class SimilarLengths:
    """Batches of texts of similar length in random order, so that little is padding."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Measure the texts."""
        self._lengths = torch.tensor([len(row["text"]) for row in rows])

    def __len__(self) -> int:
        """Return the number of whole batches of an epoch."""
        return len(self._lengths) // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        """Return the rows of each batch; the order is that of torch's generator."""
        order = torch.randperm(len(self._lengths))
        # Lengths are rounded from another start in each epoch, so that batches differ.
        groups = (self._lengths[order] + torch.randint(SIMILAR, ())) // SIMILAR
        order = order[groups.argsort(stable=True)]
        batches = order[: len(self) * BATCH].view(-1, BATCH)
        return iter(batches[torch.randperm(len(batches))].tolist())


def collate(
    rows: Sequence[Row], names: Sequence[str], tokenizer: BertTokenizerFast
) -> dict[str, torch.Tensor]:
    """Return the tokens of rows with the numbers of their labels."""
    tokens = tokenizer(
        [row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt"
    )
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "labels": torch.tensor([names.index(row["label"]) for row in rows]),
    }


def read_batches(
    rows: Sequence[Row], names: Sequence[str], tokenizer: BertTokenizerFast
) -> curricle.Stream:
    """Return training batches."""
    reader = partial(collate, names=names, tokenizer=tokenizer)
    return curricle.stream(DataLoader(rows, batch_sampler=SimilarLengths(rows), collate_fn=reader))


def held_out_batches(
    rows: Sequence[Row], names: Sequence[str], tokenizer: BertTokenizerFast
) -> list[curricle.Batch]:
    """Return all rows in order, the last batch a short one."""
    batches = []
    for start in range(0, len(rows), BATCH):
        inputs = collate(rows[start : start + BATCH], names, tokenizer)
        labels = inputs.pop("labels")
        valid = inputs["attention_mask"].bool()
        batches.append(curricle.Batch(inputs=inputs, labels=labels, valid=valid))
    return batches


def train_teacher(
    folder: Path, names: Sequence[str], size: int, steps: int, **settings: object
) -> BertForSequenceClassification:
    """Return the teacher in the folder, trained from labels if it is not there yet."""
    if (folder / "config.json").is_file():
        return BertForSequenceClassification.from_pretrained(folder)
    with seeding.scoped(0, "teacher"):
        teacher = build(WIDTH, names, size)
    curricle.distill(
        teacher,
        None,
        curricle.from_labels(total=f"{steps} steps"),
        optimizer=curricle.AdamW(learning_rate=1e-3),
        **settings,
    )
    teacher.save_pretrained(folder)
    return teacher


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Distil an intent classifier.")
    parser.add_argument("--train", type=Path, help="JSON lines with text and label")
    parser.add_argument("--test", type=Path, help="JSON lines that choose nothing")
    parser.add_argument("--to", type=Path, default=Path("runs/intents"), help="folder of results")
    parser.add_argument("--teacher-steps", type=int, default=2800)
    parser.add_argument("--student-steps", type=int, default=400)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args(arguments)


def choose(
    comparison: curricle.Comparison,
    held_out: Sequence[curricle.Batch],
    test: Sequence[curricle.Batch],
) -> tuple[str, int]:
    """Return the run that is best on held-out batches; the test batches are printed only."""
    print("\n| strategy | seed | accuracy on test rows | macro F1 |\n| --- | ---: | ---: | ---: |")
    accuracies = {}
    for run, student in comparison.students.items():
        metrics = curricle.evaluate(
            student, test, metrics=("accuracy", "f1_macro"), repetitions=1
        ).student.metrics
        print(f"| {run[0]} | {run[1]} | {metrics['accuracy']:.1%} | {metrics['f1_macro']:.1%} |")
        on_held_out = curricle.evaluate(student, held_out, repetitions=1)
        accuracies[run] = on_held_out.student.metrics["accuracy"]
    return max(accuracies, key=lambda run: accuracies[run])


def main(  # noqa: PLR0914 - a script reads from top to bottom
    steps: int | None = None, arguments: Sequence[str] = ()
) -> dict[str, float]:
    """Return the accuracy of teacher and shipped student on the test rows.

    Args:
        steps: Length of each training; None takes the lengths of the options.
        arguments: Options of the command line.
    """
    options = read_options(arguments)
    rows = read_rows(options.train) if options.train else made_up_rows(512, "train")
    test_rows = read_rows(options.test) if options.test else made_up_rows(128, "test")
    names = sorted({row["label"] for row in rows})
    order = torch.randperm(len(rows), generator=seeding.generator(0, "rows")).tolist()
    # One row in ten is held out and chooses the student; the test rows choose nothing.
    border = len(rows) // 10
    held_out, rows = ([rows[index] for index in part] for part in (order[:border], order[border:]))
    tokenizer = open_tokenizer(rows, options.to / "teacher")
    data = {
        "data": read_batches(rows, names, tokenizer),
        "evaluation": held_out_batches(held_out, names, tokenizer),
    }
    teacher = train_teacher(
        options.to / "teacher", names, len(tokenizer), steps or options.teacher_steps, **data
    )

    length = steps or options.student_steps
    place = options.to / f"students-{length}"
    comparison = curricle.compare(
        lambda _seed: build(STUDENT_WIDTH, names, len(tokenizer)),
        teacher,
        **data,
        budget=f"{length} steps",
        strategies={name: STRATEGIES[name] for name in options.strategies},
        seeds=options.seeds,
        optimizer=curricle.AdamW(learning_rate=3e-3),
        output_dir=place,
        share_teacher=True,
    )
    print(comparison)

    test = held_out_batches(test_rows, names, tokenizer)
    name, seed = best = choose(comparison, data["evaluation"], test)
    student = comparison.students[best]
    evaluation = curricle.evaluate(
        student, test, teacher=teacher, metrics=("accuracy", "f1_macro", "kl")
    )
    print(f"\n{name}, seed {seed}, beside its teacher on the test rows\n\n{evaluation}")
    exported = curricle.export(
        student,
        place / "ship",
        run=place / "students" / name / f"seed-{seed}",
        tokenizer=tokenizer,
        teacher=f"BERT of {LAYERS} layers x {WIDTH}, trained from labels",
    )
    print(f"it ships in {exported.folder}: {', '.join(exported.files)}")
    return {
        "teacher": evaluation.teacher.metrics["accuracy"],
        "student": evaluation.student.metrics["accuracy"],
    }


if __name__ == "__main__":
    main(arguments=sys.argv[1:])
