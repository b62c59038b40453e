"""Tasks of run specs on labeled examples: rows of a table with texts, and tensors.

`ExamplesTask` reads JSON lines, CSV, Parquet and data sets of the Hub through a tokenizer;
`TensorsTask` reads tensors of a file, the digits of scikit-learn, or MNIST-1D.

References:
    Greydanus and Kobak 2020 (arXiv 2011.14439): MNIST-1D, 4,000 training and 1,000 held-out signals
    of 40 numbers in ten classes.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Literal, final

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from curricle import seeding
from curricle.data.encoding import GROUPS, Encoded, Encoding, TextKind, encode, texts_of
from curricle.data.examples import (
    ExampleSplit,
    ExampleStream,
    files_of,
    open_table,
    part_of_rows,
)
from curricle.data.table_files import Row
from curricle.data.text.corpora import Documents
from curricle.errors import BindError, DataError, SpecError
from curricle.extras import imported
from curricle.models.huggingface import open_tokenizer, wrapped_tokenizer
from curricle.objectives.labels import LabelLossName
from curricle.protocols import Tokenizer
from curricle.task_data import (
    EVALUATION_SEED,
    LANGUAGE_MODELS,
    OF_VALUES,
    SENTENCE_MODELS,
    BaseTask,
    TaskData,
)
from curricle.values import Plain, value

DIGITS = "digits"
"""Name of the data of scikit-learn's `load_digits`."""
MNIST1D = "mnist1d"
"""Name of the signals of the package `mnist1d`."""
DIGITS_HELD_OUT = 5
"""One digit of so many is held out."""
DIGIT_LEVELS = 16
"""Largest gray level of a digit."""
IMAGE_AXES = (3, 4)
"""Numbers of axes of signals and images: example, channel, then position or row and column."""
IMAGE_MODELS = ("cnn", "mlp")
"""Kinds of models of images beside those of transformers."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """Facts about a kind of task."""

    heads: tuple[str, ...] = ()
    metric: str = "accuracy"
    label_loss: LabelLossName = "cross_entropy"
    models: tuple[str, ...] = LANGUAGE_MODELS
    matching: str | None = None
    """Kind of the objective on embeddings; None for outputs of other kinds."""
    is_labeled: bool = True


UNLABELED: Mapping[TextKind, str] = MappingProxyType(
    {"sentences": "similarities", "triplets": "margins"}
)
"""Objectives on embeddings by kind of task without labels."""
FACTS: Mapping[TextKind, _Facts] = MappingProxyType(
    {
        "classification": _Facts(heads=("sequence_classification",)),
        "several_labels": _Facts(
            heads=("sequence_classification",), metric="average_precision", label_loss="binary"
        ),
        "regression": _Facts(
            heads=("sequence_classification",),
            metric="mean_squared_error",
            label_loss="squared_error",
        ),
        "embedding": _Facts(
            heads=("sequence_classification",),
            metric="cosine_similarity",
            label_loss="cosine",
            models=(*LANGUAGE_MODELS, *SENTENCE_MODELS),
        ),
        "token_classification": _Facts(heads=("token_classification",), metric="f1_macro"),
        "question_answering": _Facts(heads=("question_answering",)),
        "seq2seq": _Facts(heads=("seq2seq_lm",)),
        "instructions": _Facts(heads=("causal_lm",)),
        "similarity": _Facts(
            metric="similarity_spearman",
            label_loss="similarity",
            models=SENTENCE_MODELS,
            matching="similarities",
        ),
        **{
            kind: _Facts(
                metric="teacher_spearman",
                label_loss="similarity",
                models=SENTENCE_MODELS,
                matching=matching,
                is_labeled=False,
            )
            for kind, matching in UNLABELED.items()
        },
    }
)
"""Head, metric and label loss of each kind of task on texts."""
OF_LABELS: Mapping[str, _Facts] = MappingProxyType(
    {
        "classes": _Facts(heads=("image_classification",)),
        "several": FACTS["several_labels"],
        "values": FACTS["regression"],
        "embedding": FACTS["embedding"],
    }
)
"""Metric and label loss of each kind of labels of tensors."""


@final
@value
class ExamplesTask(BaseTask):
    """Texts with labels, answers or translations, from the rows of a table."""

    kind: TextKind = "classification"
    """Kind of labels of the rows."""
    data: str = Field(min_length=1)
    """A .jsonl, .csv, .tsv (each also .gz) or .parquet file, a folder with files `train` and
    `valid` of these formats, or `datasets:NAME` or `datasets:NAME:CONFIG`. Without a part `valid`,
    every twentieth row is held out."""
    columns: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Names of columns where they are not the usual ones, by role: `text` (two names for two texts)
    and `label` (several names for several columns), `tokens` and `tags`, `source` and `target`,
    `prompt` and `completion`, `messages`, `question`, `context` and `answers`, `query`, `positive`
    and `negative`. `a.b` is the entry b inside a."""
    tokenizer: str | None = None
    """Local Hugging Face folder with a tokenizer; None trains one on the training rows."""
    vocabulary_size: int = Field(default=4096, gt=0)
    """Entries of the vocabulary of a tokenizer that is trained."""
    window: int = Field(default=64, gt=1)
    """Tokens of an example; shorter ones are padded, longer ones cut."""
    batch_size: int = Field(default=32, gt=0)
    """Examples a step."""
    evaluation_batches: int = Field(default=100, gt=0)
    """Maximum number of held-out batches."""
    start_token: str | None = None
    """First token that a decoder reads, for `seq2seq`; None for the padding token, as in T5."""
    largest_score: float = Field(default=1.0, gt=0)
    """Score of two texts with the same meaning, for `similarity`, by which scores are divided."""

    def __post_init__(self) -> None:
        """Check that batches hold whole groups, and that scores are divided only if there are any.

        Raises:
            SpecError: If not.
        """
        group = GROUPS.get(self.kind, 1)
        if self.batch_size % group:
            raise SpecError(
                f"'batch_size' must be a multiple of {group} for the task {self.kind!r}, whose "
                f"rows have {group} texts, each of them an example; got {self.batch_size}"
            )
        if self.largest_score != 1.0 and self.kind != "similarity":
            raise SpecError(
                f"'largest_score' must be left out for the task {self.kind!r}; got "
                f"{self.largest_score:g}"
            )

    @property
    def models(self) -> tuple[str, ...]:
        """Return the kinds of models that can read the data."""
        return FACTS[self.kind].models

    @property
    def matching(self) -> Plain:
        """Return the objective on outputs that are values, not scores of classes."""
        kind = FACTS[self.kind].matching
        return dict(OF_VALUES) if kind is None else {"kind": kind}

    @property
    def is_labeled(self) -> bool:
        """Return whether the data have labels."""
        return FACTS[self.kind].is_labeled

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the heads of Hugging Face models that give the task's outputs."""
        return FACTS[self.kind].heads

    @property
    def metric(self) -> str:
        """Return the name of the metric by which the task is judged if the spec names none."""
        return FACTS[self.kind].metric

    @property
    def label_loss(self) -> LabelLossName:
        """Return the loss that fits the task's labels."""
        return FACTS[self.kind].label_loss

    @property
    def tokens_per_batch(self) -> int:
        """Return the tokens a step."""
        return self.batch_size * self.window

    def tokenizer_of(self, cache_dir: Path) -> Tokenizer:
        """Return the tokenizer.

        Args:
            cache_dir: Where trained tokenizers are kept.
        """
        if self.tokenizer is not None:
            return open_tokenizer(self.tokenizer)
        return self._trained(open_table(self.data, "train"), cache_dir)

    def tokenizer_digest(self, cache_dir: Path) -> str:
        """Return the SHA-256 of the vocabulary, in hexadecimal.

        Args:
            cache_dir: Where trained tokenizers are kept.
        """
        vocabulary = sorted(self.tokenizer_of(cache_dir).get_vocab().items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()

    def write_tokenizer(self, folder: Path, *, cache_dir: Path) -> None:
        """Write the tokenizer as `AutoTokenizer.from_pretrained` reads it.

        Args:
            folder: Where a model lies.
            cache_dir: Where trained tokenizers are kept.
        """
        self.tokenizer_of(cache_dir).save_pretrained(folder)

    def open(self, *, seed: int, cache_dir: Path, reader: str = "train") -> TaskData:
        """Return the data of a seed.

        Args:
            seed: Seed of the order of the training data.
            cache_dir: Where trained tokenizers are kept.
            reader: Name of the reader; two readers of a seed get different orders.
        """
        training = open_table(self.data, "train")
        tokenizer = (
            self._trained(training, cache_dir)
            if self.tokenizer is None
            else open_tokenizer(self.tokenizer)
        )
        start = None if self.start_token is None else self._start(tokenizer)
        encoding = Encoding(
            kind=self.kind,
            tokenizer=tokenizer,
            window=self.window,
            columns=self.columns,
            start_token=start,
            largest_score=self.largest_score,
        )
        learned = encode(training, encoding, training)
        held_out = encode(open_table(self.data, "valid"), encoding, training)
        size = len(tokenizer)
        # A token that also ends texts is data, where tokens are predicted.
        is_data = learned.num_classes == 0 and tokenizer.pad_token_id == tokenizer.eos_token_id
        return TaskData(
            stream=self._stream(learned, seed, reader, held_out.dropped),
            evaluation=self._stream(held_out, EVALUATION_SEED, "evaluation").held_out(
                self.evaluation_batches
            ),
            num_inputs=size,
            num_classes=learned.num_classes or size,
            num_positions=self.window,
            name=f"{self.kind.replace('_', ' ')} of {Path(self.data).name}",
            class_names=learned.class_names,
            padding_token=None if is_data else tokenizer.pad_token_id,
        )

    def _start(self, tokenizer: Tokenizer) -> int:
        """Return the id of the first token of a decoder.

        Raises:
            BindError: If the tokenizer does not have it.
        """
        if self.start_token not in tokenizer.get_vocab():
            raise BindError(
                f"'start_token' must be a token of the tokenizer; got {self.start_token!r}"
            )
        return tokenizer.convert_tokens_to_ids(self.start_token)

    def _stream(
        self, encoded: Encoded, seed: int, purpose: str, num_dropped_held_out: int = 0
    ) -> ExampleStream:
        dropped = (
            f"data: {encoded.dropped} training rows and {num_dropped_held_out} held-out rows have "
            f"no answer within {self.window} tokens and are left out of training and metrics"
        )
        return ExampleStream(
            encoded.inputs,
            encoded.labels,
            batch_size=self.batch_size,
            seed=seed,
            purpose=purpose,
            positions=encoded.positions,
            next_token=encoded.next_token,
            group=GROUPS.get(self.kind, 1),
            note=dropped if encoded.dropped or num_dropped_held_out else "",
        )

    def _trained(self, training: Sequence[Row], cache_dir: Path) -> Tokenizer:
        module = _text_module()
        texts = texts_of(training, self.kind, self.columns)
        documents = Documents(
            read=lambda: ((text,) for text in texts),
            digest=hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        )
        tokenizer = module.tokenizer_of(documents, self.vocabulary_size, cache_dir)
        return wrapped_tokenizer(
            module.with_start_tokens(tokenizer), special=dict(module.SPECIAL_NAMES)
        )


@final
@value
class TensorsTask(BaseTask):
    """Tensors with labels: images, feature vectors, or a vector at each position."""

    kind: Literal["tensors"] = "tensors"
    data: str = Field(default=DIGITS, min_length=1)
    """`digits` for the 1,797 images of scikit-learn, `mnist1d` for the 5,000 signals of that
    package (1,000 of them held out), a .safetensors file with the tensors `inputs` and `labels`,
    one row an example, or a folder with files `train` and `valid` of that format. Without a part
    `valid`, every twentieth row is held out, of digits every fifth."""
    labels: Literal["classes", "several", "values", "embedding"] = "classes"
    """Meaning of the labels: a class, several labels of 0 or 1 (NaN if missing), values, or an
    embedding."""
    encoding: Literal["vector", "positions", "image"] = "vector"
    """How models read an example: as one `vector` or as a vector at each of its `positions`, both
    by an `mlp`, or as an `image` by a `cnn`, a Hugging Face model, or an `mlp` with `axes`. An
    image is of the axes channel, row and column, or channel and position for a signal, which a
    `cnn` with `axes: 1` reads; its labels may be classes of all its pixels, -100 where there is
    none."""
    batch_size: int = Field(default=64, gt=0)
    """Examples a step."""
    evaluation_batches: int = Field(default=100, gt=0)
    """Maximum number of held-out batches."""

    @property
    def models(self) -> tuple[str, ...]:
        """Return the kinds of models that can read the data."""
        return (*LANGUAGE_MODELS, *IMAGE_MODELS) if self.encoding == "image" else ("mlp",)

    @property
    def heads(self) -> tuple[str, ...]:
        """Return the heads of Hugging Face models that give the task's outputs."""
        return ("image_classification",)

    @property
    def metric(self) -> str:
        """Return the name of the metric by which the task is judged if the spec names none."""
        return OF_LABELS[self.labels].metric

    @property
    def label_loss(self) -> LabelLossName:
        """Return the loss that fits the task's labels."""
        return OF_LABELS[self.labels].label_loss

    @property
    def tokens_per_batch(self) -> int:
        """Return the positions a step."""
        positions = 1
        if self.encoding == "positions":
            positions = self._tensors("train")[0].shape[1]
        return self.batch_size * positions

    def tokenizer_digest(self, _cache_dir: Path) -> str:
        """Return the SHA-256 of the tokenizer: none, for the data are no text."""
        return ""

    def write_tokenizer(self, folder: Path, *, cache_dir: Path) -> None:
        """Write nothing, for the data are no text."""

    def open(self, *, seed: int, cache_dir: Path, reader: str = "train") -> TaskData:
        """Return the data of a seed.

        Args:
            seed: Seed of the order of the training data.
            cache_dir: Not used; the tensors are read from their file.
            reader: Name of the reader; two readers of a seed get different orders.
        """
        del cache_dir
        inputs, labels = self._tensors("train")
        held_out = self._stream(*self._tensors("valid"), EVALUATION_SEED, "evaluation")
        is_image = self.encoding == "image"
        classes = int(labels.max()) + 1 if self.labels == "classes" else labels.shape[-1]
        return TaskData(
            stream=self._stream(inputs, labels, seed, reader),
            evaluation=held_out.held_out(self.evaluation_batches),
            num_inputs=inputs.shape[1] if is_image else inputs.shape[-1],
            num_classes=classes,
            num_positions=inputs.shape[-1] if is_image else 1,
            name=f"{self.labels} of {Path(self.data).name}",
            padding_token=None,
        )

    def _stream(self, inputs: Tensor, labels: Tensor, seed: int, purpose: str) -> ExampleStream:
        return ExampleStream(
            {"pixel_values": inputs} if self.encoding == "image" else inputs,
            labels,
            batch_size=self.batch_size,
            seed=seed,
            purpose=purpose,
            positions=(
                "token"
                if self.encoding == "positions" or self._is_dense(inputs, labels)
                else "example"
            ),
        )

    def _is_dense(self, inputs: Tensor, labels: Tensor) -> bool:
        """Return whether labels are classes of pixels, by their axes."""
        is_map = self.encoding == "image" and self.labels == "classes"
        return is_map and labels.ndim > 1 and labels.ndim == inputs.ndim - 1

    def _tensors(self, split: ExampleSplit) -> tuple[Tensor, Tensor]:
        """Return inputs in the encoding, and labels.

        Raises:
            DataError: If their shapes or types are not those of the encoding and the labels.
        """
        read = BUILT_IN.get(self.data)
        inputs, labels = read(split) if read is not None else _stored(self.data, split)
        is_classes = self.labels == "classes"
        is_dense = self._is_dense(inputs, labels)
        num_places = 2 if self.encoding == "positions" else inputs.ndim - 1 if is_dense else 1
        if is_classes == labels.is_floating_point() or labels.ndim != num_places + (not is_classes):
            axes = "example, position" if num_places > 1 else "example"
            form = f"whole numbers ({axes})" if is_classes else f"floats ({axes}, value)"
            raise DataError(
                f"'labels' of {self.data!r} must be {form}; got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        if is_dense and labels.shape[1:] != inputs.shape[2:]:
            raise DataError(
                f"'labels' of {self.data!r} must have the size of the images, "
                f"{tuple(inputs.shape[2:])}; got {tuple(labels.shape[1:])}"
            )
        if self.encoding == "vector":
            inputs = inputs.flatten(1)
        numbers = {"vector": (2,), "positions": (3,), "image": IMAGE_AXES}[self.encoding]
        if inputs.ndim not in numbers:
            raise DataError(
                f"'inputs' of {self.data!r} must have {' or '.join(map(str, numbers))} axes with "
                f"encoding {self.encoding!r}; got shape {tuple(inputs.shape)}"
            )
        return inputs.float(), labels.float() if labels.is_floating_point() else labels.long()


def _digits(split: ExampleSplit) -> tuple[Tensor, Tensor]:
    """Return a part of the digits: images between 0 and 1, and their numbers."""
    # Here, since scikit-learn takes a second to import.
    data = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / DIGIT_LEVELS
    rows = part_of_rows(len(images), split, every=DIGITS_HELD_OUT)
    return images[rows], torch.from_numpy(data.target)[rows]


def _mnist1d(split: ExampleSplit) -> tuple[Tensor, Tensor]:
    """Return a part of MNIST-1D: signals (example, channel, time) and their classes."""
    module = imported("mnist1d.data", package="mnist1d", extra="mnist1d", use="MNIST-1D")
    # The package seeds the generators of Python and numpy; they are put back.
    with seeding.scoped(0, "mnist1d", beyond_torch=True):
        data = module.make_dataset()
    names = ("x_test", "y_test") if split == "valid" else ("x", "y")
    signals, labels = (torch.from_numpy(data[name]) for name in names)
    return signals.float().unsqueeze(1), labels.long()


BUILT_IN: Mapping[str, Callable[[ExampleSplit], tuple[Tensor, Tensor]]] = MappingProxyType(
    {DIGITS: _digits, MNIST1D: _mnist1d}
)
"""Functions from a part to the tensors of data that have a name."""


def _stored(data: str, split: ExampleSplit) -> tuple[Tensor, Tensor]:
    """Return the tensors of a part.

    Raises:
        DataError: If a file is missing, is not of the format, or lacks a tensor.
    """
    path = Path(data)
    files = files_of(path, [".safetensors"]) if path.is_dir() else {"train": path}
    is_cut = "valid" not in files
    path = files.get("train" if is_cut else split, path / f"{split}.safetensors")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"'data' must be {DIGITS!r}, {MNIST1D!r}, a .safetensors file or a folder with "
            f"'train.safetensors'; got {data!r}: {error}"
        ) from None
    if not {"inputs", "labels"} <= tensors.keys():
        raise DataError(
            f"{str(path)!r} must hold the tensors 'inputs' and 'labels'; got {sorted(tensors)}"
        )
    inputs, labels = tensors["inputs"], tensors["labels"]
    if not is_cut:
        return inputs, labels
    rows = part_of_rows(len(inputs), split)
    return inputs[rows], labels[rows]


def _text_module() -> ModuleType:
    return imported("curricle.data.text.tokenizing", package="tokenizers", extra="hf", use="text")
