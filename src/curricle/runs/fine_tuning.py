"""Fine-tuning of a Hugging Face folder on classified texts, and its accuracy on other texts.

The usual check of a language model's representations: a fresh head for the classes, all weights
trained from labels, accuracy and macro F1 on texts that were not trained on, over seeds. A seed
sets the new weights, the order of the texts and dropout.

Source:
    None; the procedure of GLUE (Wang et al. 2019, arXiv 1804.07461) with settings of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from curricle import seeding
from curricle.curriculum.strategies import from_labels
from curricle.data.batch import Batch
from curricle.data.dataloaders import stream
from curricle.data.table_files import READERS, rows_of, tables_in
from curricle.errors import DataError, SpecError, near_names
from curricle.metrics import METRICS
from curricle.models.huggingface import open_classifier
from curricle.models.restoring import evaluation_mode
from curricle.models.wrapping import tapped
from curricle.protocols import Tokenizer
from curricle.reports.evaluation_tables import accuracy_grid
from curricle.reports.tables import Grid, to_markdown
from curricle.training.distill import distill
from curricle.training.loop.evaluation import label_metrics
from curricle.training.setup.optimizers import AdamW, Schedule
from curricle.training.setup.settings import TrainingSettings
from curricle.values import Plain

MOST_TOKENS = 128
"""Tokens of a text that are read, if the model has room for them."""
SCHEDULE = Schedule(warmup=0.1, decay="linear")
"""Learning rate over a fine-tuning."""
METRICS_OF_TEXTS = ("accuracy", "f1_macro")
"""Metrics on the test texts."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """How a model is fine-tuned."""

    epochs: int = 3
    """Passes over the training texts."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW, with warm-up and linear decay."""
    batch_size: int = 32
    """Texts of a step."""
    text_column: str = "text"
    """Field with the text."""
    label_column: str = "label"
    """Field with the class."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SpecError: If one is not positive.
        """
        for name in ("epochs", "learning_rate", "batch_size"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name!r} must be positive; got {getattr(self, name)}")

    def steps(self, num_texts: int) -> int:
        """Return the steps for a number of training texts; a short last batch is left out."""
        return self.epochs * (num_texts // self.batch_size)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """Result of a fine-tuning; its text is a table."""

    by_seed: Mapping[int, Mapping[str, float]]
    """Accuracy and macro F1 on the test texts."""
    classes: tuple[str, ...]
    """Classes of the training texts."""
    train_texts: int
    """Number of training texts."""
    test_texts: int
    """Number of test texts."""
    steps: int
    """Steps of each seed."""
    new_weights: tuple[str, ...]
    """Weights that the folder lacked, the head among them."""

    @property
    def means(self) -> dict[str, float]:
        """Return the means over seeds."""
        return {
            name: mean(metrics[name] for metrics in self.by_seed.values())
            for name in METRICS_OF_TEXTS
        }

    def plain(self) -> Plain:
        """Return plain data, as JSON has it."""
        return {
            "by_seed": {str(seed): dict(metrics) for seed, metrics in self.by_seed.items()},
            "mean": self.means,
            "classes": len(self.classes),
            "train_texts": self.train_texts,
            "test_texts": self.test_texts,
            "steps": self.steps,
            "new_weights": list(self.new_weights),
        }

    def grid(self, title: str = "fine-tuning") -> Grid:
        """Return one row a seed, and the mean.

        Args:
            title: Heading.
        """
        rows = {str(seed): list(metrics.values()) for seed, metrics in self.by_seed.items()}
        rows["mean"] = list(self.means.values())
        return accuracy_grid(("seed", "accuracy", "macro F1"), rows, title=title, total=True)

    def __str__(self) -> str:
        """Return the table."""
        return to_markdown(self.grid())


@final
@dataclass(frozen=True, slots=True)
class Text:
    """A text with its class."""

    text: str
    """The text."""
    label: str
    """Name of the class."""


def split_files(folder: Path) -> tuple[Path, Path]:
    """Return the files `train` and `test` of a folder.

    Args:
        folder: Folder with one table of each name, such as `train.jsonl.gz`.

    Raises:
        DataError: If one is missing, or there are two of a name.
    """
    train, test = (
        [path for path in tables_in(folder) if path.name.partition(".")[0] == split]
        for split in ("train", "test")
    )
    if len(train) != 1 or len(test) != 1:
        raise DataError(
            f"{str(folder)!r} must hold one file 'train' and one file 'test', each "
            f"{', '.join(READERS)} or such with .gz; got "
            f"{', '.join(path.name for path in (*train, *test)) or 'none'}"
        )
    return train[0], test[0]


def fine_tune(
    folder: str | Path,
    train: str | Path,
    test: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    tuning: FineTuning = FineTuning(),
    settings: TrainingSettings = TrainingSettings(),
) -> FineTuned:
    """Fine-tune a model on classified texts once for each seed, and return its scores.

    Args:
        folder: Hugging Face folder of a model with its tokenizer; it stays as it is.
        train: Table with a text and its class, such as JSON lines or CSV.
        test: Texts that are not trained on, in the same form.
        seeds: Seeds of new weights, order and dropout.
        tuning: Length, learning rate and names of the fields.
        settings: Device, precision and intervals.

    Returns:
        Accuracy and macro F1 of each seed.

    Raises:
        DataError: If a file lacks a field, has fewer texts than a batch, or the test texts have
            another class.
        SpecError: If there are no seeds, or two are equal.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise SpecError(f"'seeds' must be different numbers, at least one; got {list(seeds)}")
    train_texts, test_texts = (read_texts(path, tuning) for path in (train, test))
    classes = sorted({text.label for text in train_texts})
    for text in test_texts:
        if text.label not in classes:
            raise DataError(
                f"{str(test)!r} must have the classes of the training texts; got {text.label!r}; "
                f"{near_names(text.label, classes)}"
            )
    if len(train_texts) < tuning.batch_size:
        raise DataError(
            f"{str(train)!r} must hold at least {tuning.batch_size} texts, those of a batch; got "
            f"{len(train_texts)}"
        )
    results = {
        seed: _tune(Path(folder), (train_texts, test_texts), classes, seed, tuning, settings)
        for seed in seeds
    }
    first = next(iter(results.values()))
    return FineTuned(
        by_seed={seed: result.metrics for seed, result in results.items()},
        classes=tuple(classes),
        train_texts=len(train_texts),
        test_texts=len(test_texts),
        steps=tuning.steps(len(train_texts)),
        new_weights=first.new_weights,
    )


@final
@dataclass(frozen=True, slots=True)
class _Scores:
    """Result of one seed."""

    metrics: dict[str, float]
    new_weights: tuple[str, ...]


def _tune(  # noqa: PLR0917 - private, called once
    folder: Path,
    texts: tuple[list[Text], list[Text]],
    classes: Sequence[str],
    seed: int,
    tuning: FineTuning,
    settings: TrainingSettings,
) -> _Scores:
    """Return the scores of a seed on the second texts after training on the first."""
    train_texts, test_texts = texts
    with seeding.scoped(seed, "fine-tuning"):
        bundle = open_classifier(folder, classes)
    collate = partial(
        _collate, tokenizer=bundle.tokenizer, classes=classes, length=bundle.longest(MOST_TOKENS)
    )
    loader: DataLoader[object] = DataLoader(
        train_texts,  # type: ignore[arg-type]  # a list is a data set
        batch_size=tuning.batch_size,
        shuffle=True,
        collate_fn=collate,
    )
    held_out = [
        _batch(collate(test_texts[start : start + tuning.batch_size]))
        for start in range(0, len(test_texts), tuning.batch_size)
    ]
    distill(
        bundle.module,
        None,
        from_labels(total=f"{tuning.steps(len(train_texts))} steps"),
        stream(loader, seed=seed),
        # The test texts choose nothing: one batch is watched, and all are read after the last step.
        evaluation=held_out[:1],
        optimizer=AdamW(learning_rate=tuning.learning_rate, schedule=SCHEDULE),
        settings=settings,
        seed=seed,
    )
    metrics = [METRICS[name] for name in METRICS_OF_TEXTS]
    judge = label_metrics(held_out, settings.placement, metrics=metrics)
    with evaluation_mode(bundle.module):
        return _Scores(judge(tapped(bundle.module)), bundle.new_weights)


def read_texts(path: str | Path, tuning: FineTuning = FineTuning()) -> list[Text]:
    """Return the texts of a table with their classes.

    Args:
        path: The file, plain or gzip.
        tuning: Names of the fields.

    Raises:
        DataError: If there is no text, or a field is missing.
    """
    texts: list[Text] = []
    for number, row in enumerate(rows_of(Path(path)), start=1):
        text, label = row.get(tuning.text_column), row.get(tuning.label_column)
        if not isinstance(text, str) or not isinstance(label, str | int):
            raise DataError(
                f"row {number} of {str(path)!r} must have a text {tuning.text_column!r} and a "
                f"class {tuning.label_column!r}; it has {', '.join(map(repr, row)) or 'no field'}"
            )
        texts.append(Text(text, str(label)))
    if not texts:
        raise DataError(f"{str(path)!r} must hold texts with classes; got none")
    return texts


def _collate(
    texts: Sequence[Text], *, tokenizer: Tokenizer, classes: Sequence[str], length: int
) -> dict[str, Tensor]:
    tokens = tokenizer(
        [text.text for text in texts],
        padding=True,
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "labels": torch.tensor([classes.index(text.label) for text in texts]),
    }


def _batch(inputs: dict[str, Tensor]) -> Batch:
    labels = inputs.pop("labels")
    return Batch(inputs=inputs, labels=labels, valid=inputs["attention_mask"].bool())
