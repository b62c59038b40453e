"""Streams from a user's `DataLoader`, resumable at any step.

A loader consists of a data set, an order and a collate function. `stream` uses all three and
controls the random numbers: the order of epoch e is listed under the named stream (seed, `loader`,
e), and each batch is fetched under (seed, `loader batch`, step). Augmentation and masking by the
collate function are therefore independent of the worker and of the time of reading. The loader
itself and the global generators stay unchanged.

Design: `indexed` reads a data set with indexes, `iterables` an `IterableDataset`. Workers of the
loader fetch ahead while steps come in order; a run ends them when it is over.
`collation` lists the accepted items. The last short batch of an epoch is dropped, since all batches
have one size.

Limits: draws from numpy's or Python's own global generators are not named streams; two readings
of the first batch are compared, and a loader that gives different ones is refused.
"""

from collections.abc import Sized
from typing import final

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from curricle.data.batch import Batch
from curricle.data.batch_tensors import tensors_by_field, tensors_digest
from curricle.data.collation import Positions, batch_of, check_first, declared_positions
from curricle.data.indexed import IndexedItems
from curricle.data.iterables import ItemsInOrder
from curricle.data.loader_checks import check_numbers, check_undivided, collation_errors
from curricle.data.loader_generators import seeded_loader
from curricle.data.loader_workers import items_of_pass
from curricle.errors import DataError
from curricle.values import fingerprint


def stream(
    loader: DataLoader[object],
    *,
    seed: int = 0,
    next_token: bool = False,
    positions: Positions | None = None,
) -> "LoaderStream":
    """Return a loader as a stream with each batch a pure function of the step.

    Items may be `Batch`, inputs alone, `(inputs, labels)`, or a mapping of named tensors with
    optional `labels`, `attention_mask`, and `teacher_inputs` with `alignment` as in `Batch`.

    Labels with one axis belong to examples. Labels with two axes belong to positions if they are
    whole numbers, of which -100 is not scored, or have the shape of the token ids; other floats are
    several values of an example. Inputs have positions if one is named as tokens (`input_ids`,
    `inputs_embeds`, those of a decoder), if there is an `attention_mask`, or if labels belong to
    positions. The first batch decides, and `plan` and `result.notes` state the decision.

    Args:
        loader: Over a data set with a length; its order, collate function and workers are used. An
            `IterableDataset` states its length by `__len__`; a resumed run iterates it from the
            start of the epoch. Workers start with the second of two steps in order and end with the
            run; those of an epoch end with it unless the loader has `persistent_workers=True`.
        seed: Seed of the order and of the random numbers that the data set draws from torch.
        next_token: Whether `labels[t]` is the token at t and is predicted at t - 1, as causal
            models of transformers have it; the shift is made here, once. Without labels they are
            the input ids, of which `attention_mask` leaves padding out.
        positions: Overrides the decision: `token` where labels of two axes belong to positions, and
            inputs without a name have positions on their second axis; `example` where labels,
            of any shape, belong to whole examples.

    Raises:
        DataError: If it is not a `DataLoader`, a sampler gives each process a share of its own, or
            `positions` is something else.
    """
    if not isinstance(loader, DataLoader):
        raise DataError(f"'loader' must be a DataLoader; got {type(loader).__name__!r}")
    if positions not in (None, "example", "token"):
        raise DataError(f"'positions' must be 'example', 'token' or None; got {positions!r}")
    check_undivided(loader, "loader")
    return LoaderStream(loader, seed=seed, next_token=next_token, positions=positions)


def held_out_items(loader: DataLoader[object], name: str = "evaluation") -> list[object]:
    """Return the items of one pass over a loader, the same in every call.

    The order of a loader that shuffles, and masks of its collate function, come from fixed seeds.
    The generators of the caller, global or of the loader, end in the state in which they were.

    Args:
        loader: Held-out data.
        name: Name of the argument.

    Raises:
        DataError: If a sampler gives each process a share of its own, or examples of a batch
            differ in shape.
    """
    check_undivided(loader, name)
    with seeded_loader(loader, 0, "evaluation"), collation_errors(name):
        items = items_of_pass(loader)
    for item in items[:1]:
        check_numbers(item, name)
    return items


@final
class LoaderStream:
    """A `DataLoader` read by step."""

    def __init__(
        self,
        loader: DataLoader[object],
        *,
        seed: int,
        next_token: bool,
        positions: Positions | None = None,
    ) -> None:
        """Check the loader and read its first batch.

        Args:
            loader: As in `stream`.
            seed: As in `stream`.
            next_token: As in `stream`.
            positions: As in `stream`.

        Raises:
            DataError: If the loader's batches cannot be found again by step.
        """
        is_iterable = isinstance(loader.dataset, IterableDataset)
        if loader.batch_sampler is None and not is_iterable:
            raise DataError("'loader' must make batches; got batch_size=None")
        self._loader = loader
        self._seed = seed
        self._next_token = next_token
        self._items = (ItemsInOrder if is_iterable else IndexedItems)(loader, seed=seed)
        # Examples of a row of the data set, as the texts of a pair; None before the first batch.
        self._rows: int | None = None
        try:
            self._read_first(positions)
        finally:
            # Until a run begins, and where a loader is refused, none are needed.
            self.end_workers()

    def _read_first(self, positions: Positions | None) -> None:
        """Decide on positions by the first batch, and take its digest.

        Raises:
            DataError: If the batch cannot be read, or not twice alike.
        """
        with collation_errors("loader"):
            item = self._items.read(0, again=True)
        check_numbers(item, "loader")
        declared = declared_positions(item, next_token=self._next_token)
        if positions is not None and isinstance(item, Batch):
            raise DataError("'positions' has no effect on a `Batch`, which declares them itself")
        self._positions: Positions = positions or declared
        self._is_overridden = self._positions != declared
        first = self._built(item)
        check_first(item, first, next_token=self._next_token)
        if _digest(first) != _digest(self._built(self._items.read(0, again=True))):
            raise DataError(
                "'loader' must give the same first batch twice; got different ones, so its data "
                "set or collate function draws from something else than torch's generators"
            )
        self._tokens_per_batch = first.num_read_tokens
        self.note = "" if isinstance(item, Batch) else _note(first)
        """Decision about positions, as a sentence; empty if the batches declare them."""
        self._fingerprint = self._described(first)

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self._items.batch_size * (self._rows or 1)

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of the first batch, padding included.

        A collate function that pads to the longest example gives batches around this number, so
        records count the positions of each batch that is read.
        """
        return self._tokens_per_batch

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of whole batches of an epoch."""
        return self._items.steps_per_epoch

    @property
    def examples_per_epoch(self) -> int:
        """Return the number of examples of the whole batches of an epoch."""
        return self.steps_per_epoch * self.batch_size

    @property
    def reads_ahead(self) -> bool:
        """Return whether the loader has workers of its own."""
        return self._loader.num_workers > 0

    @property
    def fingerprint(self) -> str:
        """Return a digest of the loader's description, the first epoch's order and first batch.

        It covers the data set's class and length, the classes of the samplers, the batch size, the
        seed and `next_token`. Data that differ only after the first batch are not noticed.
        """
        return self._fingerprint

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        with collation_errors("loader"):
            item = self._items.read(step)
        return self._built(item)

    def end_workers(self) -> None:
        """End the workers that have been started; later batches in order start new ones.

        With `persistent_workers=True` a loader over an `IterableDataset` keeps its workers.
        """
        self._items.end_workers()

    def as_batch(self, item: object) -> Batch:
        """Return an item of the loader, of any number of examples, as the stream reads it.

        Args:
            item: The collated batch of the loader.
        """
        return batch_of(item, next_token=self._next_token, positions=self._positions)

    def held_out(self) -> list[Batch]:
        """Return one pass over the loader as batches, the last of which may be smaller."""
        return [self.as_batch(item) for item in held_out_items(self._loader)]

    def _built(self, item: object) -> Batch:
        batch = self.as_batch(item)
        size = self._items.batch_size
        rows, rest = divmod(batch.num_examples, size)
        # Only a `Batch` states that the rows of the data set are several examples each.
        if isinstance(item, Batch) and rows and not rest and self._rows in (None, rows):
            self._rows = rows
        elif batch.num_examples != size:
            raise DataError(
                f"'loader' must collate {size} examples into as many rows; "
                f"got {batch.num_examples} rows"
            )
        return batch

    def _described(self, first: Batch) -> str:
        loader = self._loader
        dataset = loader.dataset
        return fingerprint(
            {
                "stream": "loader",
                "dataset": [_name(dataset), len(dataset) if isinstance(dataset, Sized) else None],
                "samplers": [_name(loader.batch_sampler), _name(loader.sampler)],
                "shape": [self.steps_per_epoch, self._items.batch_size],
                "order": self._items.order_digest,
                "first": _digest(first),
                "seed": self._seed,
                "next_token": self._next_token,
                # Only here, so that digests of other data stay those of earlier versions.
                **({"positions": self._positions} if self._is_overridden else {}),
            }
        )


MATRIX_AXES, IMAGE_AXES = 2, 4
"""Numbers of axes of a batch of vectors, and of one of images."""


def _is_plain(first: Batch) -> bool:
    """Return whether no other reading is likely: vectors of features, or images with a class."""
    inputs, labels = first.leading, first.labels
    if first.has_positions or not inputs.is_floating_point():
        return False
    if labels is not None and labels[:1].numel() > 1:
        return False
    is_image = inputs.ndim == IMAGE_AXES and labels is not None and not labels.is_floating_point()
    return inputs.ndim <= MATRIX_AXES or is_image


def _note(first: Batch) -> str:
    """Return the decision about positions as a sentence for `plan`; none where it is plain."""
    if _is_plain(first):
        return ""
    if first.length == 1 and first.labels is not None:
        # A column of labels, beside inputs without positions.
        return (
            f"data: labels of shape {first.positions} are read as one label an example; "
            f"labels.squeeze(1) gives them the shape ({first.num_examples},)"
        )
    labels = "without labels"
    if first.labels is not None:
        kind = "a label of several values" if first.labels[:1].numel() > 1 else "a label"
        owner = "example" if first.selected is None else "selected position"
        labels = f"with {kind} for each {owner}"
    count = f"as {first.positions[1]} positions" if first.has_positions else "as a whole"
    return (
        f"data: examples are read {count}, {labels}, by the form of the first batch; "
        f"curricle.stream(..., positions=...) declares it"
    )


def _digest(batch: Batch) -> str:
    """Return a digest of all tensors of a batch, by the names and in the order of all versions."""
    fields = tensors_by_field(batch)
    pairs: list[tuple[str, Tensor | None]] = [*fields["inputs"].items()]
    # These have their names in every digest, the others only where they are present.
    pairs += [(field, getattr(batch, field)) for field in ("labels", "selected", "valid")]
    teacher_inputs = fields["teacher_inputs"].items()
    pairs += [(f"teacher_inputs {name}", tensor) for name, tensor in teacher_inputs]
    for field in ("alignment", "matched"):
        pairs += [(field, tensor) for tensor in fields[field].values()]
    return tensors_digest(pairs)


def _name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"
