"""Labeled examples in memory: tables of a source, and their batches by step.

`open_table` reads the rows of a file, a folder, a data set of the Hub, a `datasets.Dataset` or a
list; `ExampleStream` makes batches of tensors with one row for each example.

Axes: example (rows of the tensors), position, value.

Design: a source without a validation part gives every twentieth row for it, not the last ones,
since tables are often sorted by label. The order of epoch e is drawn from the named stream (seed,
`examples/<purpose>`, e), and batches cross the end of an epoch.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from curricle.data.batch import Batch, Inputs, data_mask, named
from curricle.data.collation import batch_of
from curricle.data.streams import numbers_in_order
from curricle.data.table_files import READERS, Row, rows_of
from curricle.data.text.corpora import HUB, load_data_set
from curricle.errors import DataError, near_names
from curricle.seeding import numpy_generator
from curricle.values import fingerprint

ExampleSplit = Literal["train", "valid"]
"""Training and held-out examples."""
Source = str | Path | Iterable[Row] | Mapping[str, Iterable[Row]]
"""A path or name, rows such as a `datasets.Dataset`, or such rows by the name of their part."""
Owner = Literal["example", "token", "span"]
"""Owner of labels: an example, each of its positions, or the span between two of them."""
VALID = ("valid", "validation", "dev")
"""Names of the held-out part."""
EVERY = 20
"""One row of so many is held out where a source has no held-out part."""


def open_table(source: Source, split: ExampleSplit) -> list[Row]:
    """Return the rows of a part of a source.

    Args:
        source: A file or folder, `datasets:NAME` or `datasets:NAME:CONFIG`, rows, or rows by part.
        split: `train` or `valid`; a source without a part `valid`, `validation` or `dev` gives
            every twentieth row for it.

    Raises:
        DataError: If there are no rows.
    """
    splits = _parts(source)
    held_out = next((name for name in VALID if name in splits), None)
    if "train" not in splits:
        raise DataError(f"{_name(source)} must have a part 'train'; {near_names('train', splits)}")
    if split == "valid" and held_out is not None:
        rows = list(splits[held_out])
    else:
        rows = list(splits["train"])
        if held_out is None:
            rows = [rows[number] for number in part_of_rows(len(rows), split)]
    if not rows:
        few = f"; without a part 'valid' it needs at least {EVERY}" if held_out is None else ""
        raise DataError(f"{_name(source)} must have rows for {split!r}; got none{few}")
    return rows


def part_of_rows(count: int, split: ExampleSplit, *, every: int = EVERY) -> list[int]:
    """Return the numbers of the rows of a part, for a source without a part of its own.

    Args:
        count: Number of rows of the source.
        split: `train` or `valid`.
        every: One row of so many is held out.
    """
    is_held_out = split == "valid"
    return [number for number in range(count) if ((number + 1) % every == 0) == is_held_out]


def files_of(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files of a folder by the name of their part.

    Args:
        folder: The folder.
        suffixes: Suffixes of files that count, without `.gz`.

    Raises:
        DataError: If a part has two files.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name, _, rest = path.name.partition(".")
        if f".{rest.removesuffix('.gz')}" not in suffixes:
            continue
        if name in files:
            raise DataError(
                f"{str(folder)!r} must hold one file for {name!r}; got {files[name].name} and "
                f"{path.name}"
            )
        files[name] = path
    return files


def _parts(source: Source) -> Mapping[str, Iterable[Row]]:
    """Return the rows of a source by the name of their part.

    Raises:
        DataError: If there is no such source.
    """
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | Path):
        return {"train": source}
    if str(source).startswith(HUB):
        splits: Mapping[str, Iterable[Row]] = load_data_set(str(source))
        return splits
    path = Path(source)
    if path.is_dir():
        return {name: rows_of(file) for name, file in files_of(path, [*READERS]).items()}
    if not path.is_file():
        raise DataError(f"'data' must be a file, a folder or datasets:NAME; got {str(source)!r}")
    return {"train": rows_of(path)}


def _name(source: Source) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else "'data'"


@final
class ExampleStream:
    """Batches of examples that lie in memory."""

    def __init__(  # noqa: PLR0913 - parts of a batch, and what an order depends on
        self,
        inputs: Inputs,
        labels: Tensor | None,
        *,
        batch_size: int,
        seed: int = 0,
        purpose: str = "train",
        positions: Owner = "example",
        next_token: bool = False,
        note: str = "",
        group: int = 1,
    ) -> None:
        """Set the examples.

        Args:
            inputs: Inputs of all examples, with one row for each.
            labels: Labels of all examples: one or several values each, or with positions; None for
                examples without labels.
            batch_size: Examples of a batch.
            seed: Seed of the order.
            purpose: Name of the reader; two readers of a seed get different orders.
            positions: `token` where the second axis of the labels counts positions, `span` where
                labels are the first and the last position of an answer.
            next_token: Whether labels are shifted by one; see `curricle.stream`.
            note: Decision about the data, as a sentence for a plan; empty for none.
            group: Number of consecutive examples that stay together, as the texts of a pair.

        Raises:
            DataError: If labels and inputs have different numbers of examples, or these numbers and
                that of a batch are not multiples of a group.
        """
        tensors = {**named(inputs), **({} if labels is None else {"labels": labels})}
        counts = {len(tensor) for tensor in tensors.values()}
        if len(counts) > 1 or not max(counts):
            raise DataError(
                f"inputs and 'labels' must have equally many examples, at least one; got "
                f"{sorted(counts)}"
            )
        if max(counts) % group or batch_size % group:
            raise DataError(
                f"examples and 'batch_size' must be multiples of the {group} of a group; got "
                f"{max(counts)} and {batch_size}"
            )
        self._count, self._group = max(counts), group
        self._inputs, self._labels = inputs, labels
        self._batch_size, self._seed, self._purpose = batch_size, seed, f"examples/{purpose}"
        self._positions, self._next_token = positions, next_token
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self.note = note
        """Decision about the data, as a sentence; empty for none."""
        first = self._batch(np.arange(min(batch_size, self._count)))
        self._width = first.num_read_tokens // first.num_examples
        self._fingerprint = fingerprint(
            {
                "stream": "examples",
                "content": _digest(tensors),
                # Groups of one are left out, so that digests from before them stay.
                "shape": [batch_size, positions, next_token, *([group] if group > 1 else [])],
                "seed": seed,
                "purpose": purpose,
            }
        )

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self._batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of every batch, padding included."""
        return self._batch_size * self._width

    @property
    def examples_per_epoch(self) -> int:
        """Return the number of examples of whole groups."""
        return self._count // self._group * self._group

    @property
    def fingerprint(self) -> str:
        """Return a digest of the examples, the shape of the batches and the seed."""
        return self._fingerprint

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        size = self._batch_size // self._group
        epochs, offsets = np.divmod(
            np.arange(step * size, (step + 1) * size), self._count // self._group
        )
        rows = [
            self._permutation(epoch)[offsets[epochs == epoch]]
            for epoch in np.unique(epochs).tolist()
        ]
        groups = np.concatenate(rows)
        if self._group == 1:
            return self._batch(groups)
        members = np.arange(self._group)
        return self._batch((groups[:, np.newaxis] * self._group + members).reshape(-1))

    def held_out(self, most: int | None = None) -> tuple[Batch, ...]:
        """Return the examples in their own order as batches, the last of which may be smaller.

        Args:
            most: Maximum number of batches; None takes all examples.
        """
        count = self._count if most is None else min(self._count, most * self._batch_size)
        return tuple(map(self._batch, numbers_in_order(count, self._batch_size)))

    def _permutation(self, epoch: int) -> Int[np.ndarray, " example"]:
        if epoch != self._epoch:
            generator = numpy_generator(self._seed, self._purpose, epoch)
            self._order, self._epoch = generator.permutation(self._count // self._group), epoch
        return self._order

    def _batch(self, numbers: Int[np.ndarray, " example"]) -> Batch:
        batch = self._examples(numbers)
        return batch if self._group == 1 else replace(batch, group=self._group)

    def _examples(self, numbers: Int[np.ndarray, " example"]) -> Batch:
        rows = torch.from_numpy(numbers)
        labels = None if self._labels is None else self._labels[rows]
        inputs: Inputs
        if isinstance(self._inputs, Tensor):
            inputs = self._inputs[rows]
        else:
            inputs = {name: tensor[rows] for name, tensor in self._inputs.items()}
        if labels is None:
            mask = data_mask(inputs)
            return Batch(inputs=inputs, valid=None if mask is None else mask.bool())
        if self._positions == "token" and labels.is_floating_point():
            places = labels.flatten(0, 1)
            return Batch(
                inputs=inputs,
                labels=places,
                selected=torch.arange(len(places)),
                length=labels.shape[1],
            )
        if self._positions == "span":
            return _span(inputs, labels)
        item = (inputs, labels) if isinstance(inputs, Tensor) else {**inputs, "labels": labels}
        return batch_of(item, next_token=self._next_token, positions=self._positions)


def _span(inputs: Inputs, labels: Int[Tensor, "example 2"]) -> Batch:
    """Return a batch for models with start and end logits.

    These are two rows an example. Its first two positions stand for them in `selected`.
    """
    mask = data_mask(inputs)
    plain = Batch(inputs=inputs, valid=None if mask is None else mask.bool())
    width = plain.positions[1]
    starts = torch.arange(len(labels)).unsqueeze(1) * width
    selected = (starts + torch.arange(2)).flatten()
    return replace(plain, labels=labels.flatten(), selected=selected)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
