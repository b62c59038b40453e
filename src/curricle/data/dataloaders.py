"""Streams from a user's `DataLoader`, resumable at any step.

A loader consists of a data set, an order and a collate function. `stream` uses all three and
controls the random numbers: the order of epoch e is listed under the named stream (seed, `loader`,
e), and each batch is fetched under (seed, `loader batch`, step). Augmentation and masking by the
collate function are therefore independent of the worker and of the time of reading. The loader
itself and the global generators stay unchanged.

Design: batches are fetched by an internal loader with whole batches as items. With workers, an
iterator prefetches as long as steps come in order; any other step is fetched in this process. A
loader over an `IterableDataset` is iterated as it is (`iterables`).
`collation` lists the accepted items. The last short batch of an epoch is dropped, since all batches
have one size.

Limits: draws from numpy's or Python's own global generators are not named streams; two readings
of the first batch are compared, and a loader that gives different ones is refused.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from typing import final

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from curricle import seeding
from curricle.data.batch import Batch, named
from curricle.data.collation import Positions, batch_of, check_first, declared_positions
from curricle.data.iterables import ItemsInOrder
from curricle.data.orders import IndexOrder, Order, epoch_order, order_digest
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
            start of the epoch.
        seed: Seed of the order and of the random numbers that the data set draws from torch.
        next_token: Whether `labels[t]` is the token at t and is predicted at t - 1, as causal
            models of transformers have it; the shift is made here, once. Without labels they are
            the input ids, of which `attention_mask` leaves padding out.
        positions: Overrides the decision: `token` where labels of two axes belong to positions, and
            inputs without a name have positions on their second axis; `example` where labels,
            of any shape, belong to whole examples.

    Raises:
        DataError: If it is not a `DataLoader`, or `positions` is something else.
    """
    if not isinstance(loader, DataLoader):
        raise DataError(f"'loader' must be a DataLoader; got {type(loader).__name__!r}")
    if positions not in (None, "example", "token"):
        raise DataError(f"'positions' must be 'example', 'token' or None; got {positions!r}")
    return LoaderStream(loader, seed=seed, next_token=next_token, positions=positions)


def held_out_items(loader: DataLoader[object]) -> list[object]:
    """Return the items of one pass over a loader, the same in every call.

    The order of a loader that shuffles, and masks of its collate function, come from fixed seeds.
    The generators of the caller, global or of the loader, end in the state in which they were.

    Args:
        loader: Held-out data.
    """
    with ExitStack() as stack:
        _seed_generators(stack, loader, 0, "evaluation")
        return list(loader)


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
        self._in_order = (
            ItemsInOrder(loader, seed=seed, opening=self._opened) if is_iterable else None
        )
        self._seed = seed
        self._next_token = next_token
        self._epoch = -1
        self._batches: Order = []
        self._steps_per_epoch = self._batch_size = 0
        self._ahead: Iterator[object] | None = None
        self._last = -1
        # Examples of a row of the data set, as the texts of a pair; None before the first batch.
        self._rows: int | None = None
        self._open_first_epoch()
        item = self._fetch(0)
        declared = declared_positions(item, next_token=next_token)
        if positions is not None and isinstance(item, Batch):
            raise DataError("'positions' has no effect on a `Batch`, which declares them itself")
        self._positions: Positions = positions or declared
        self._is_overridden = self._positions != declared
        first = self._built(item)
        check_first(item, first, next_token=next_token)
        if _digest(first) != _digest(self._built(self._fetch(0))):
            raise DataError(
                "'loader' must give the same first batch twice; got different ones, so its data "
                "set or collate function draws from something else than torch's generators"
            )
        self._tokens_per_batch = first.num_read_tokens
        self.note = "" if isinstance(item, Batch) else _note(first)
        """Decision about positions, as a sentence; empty if the batches declare them."""
        self._fingerprint = self._described(first)

    def _open_first_epoch(self) -> None:
        if self._in_order is None:
            self._batches = self._listed(0)
            self._epoch, self._steps_per_epoch = 0, len(self._batches)
            self._batch_size = len(self._batches[0])
        else:
            self._steps_per_epoch = self._in_order.steps_per_epoch
            self._batch_size = self._in_order.batch_size

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every batch."""
        return self._batch_size * (self._rows or 1)

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
        return self._steps_per_epoch

    @property
    def examples_per_epoch(self) -> int:
        """Return the number of examples of the whole batches of an epoch."""
        return self._steps_per_epoch * self.batch_size

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
        return self._built(self._read(step))

    def _read(self, step: int) -> object:
        """Return the item of a step: from the workers if steps come in order, or fetched here."""
        if self._in_order is not None:
            return self._in_order.read(step)
        in_order, self._last = step == self._last + 1, step
        if not self._loader.num_workers or not in_order:
            # The batches that the workers have prefetched belong to other steps.
            self._ahead = None
            return self._fetch(step)
        if self._ahead is None or step % self._steps_per_epoch == 0:
            self._ahead = self._workers(step)
        return next(self._ahead)

    def _fetch(self, step: int) -> object:
        if self._in_order is not None:
            return self._in_order.read(step, again=True)
        return _Batches(self._loader, self._seed)[step, self._indexes(step)]

    def _workers(self, start: int) -> Iterator[object]:
        """Return the items from a step to the end of its epoch, read ahead by workers."""
        epoch = start // self._steps_per_epoch
        steps = range(start, (epoch + 1) * self._steps_per_epoch)
        source = self._loader
        ahead: DataLoader[object] = DataLoader(
            _Batches(source, self._seed),
            batch_size=None,
            sampler=_Keys(self._indexes, steps),
            collate_fn=_unchanged,
            num_workers=source.num_workers,
            prefetch_factor=source.prefetch_factor,
            pin_memory=source.pin_memory,
            timeout=source.timeout,
            worker_init_fn=source.worker_init_fn,
            multiprocessing_context=source.multiprocessing_context,
            # Workers get their seeds from here, and not from the global generator.
            generator=seeding.generator(self._seed, "loader workers", start),
        )
        return iter(ahead)

    def _indexes(self, step: int) -> Sequence[object]:
        epoch, place = divmod(step, self._steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._listed(epoch), epoch
        return self._batches[place]

    @contextmanager
    def _opened(self, epoch: int) -> Iterator[None]:
        """Seed the generators of an epoch's order inside the block."""
        with ExitStack() as stack:
            _seed_generators(stack, self._loader, self._seed, "loader", epoch)
            yield

    def _listed(self, epoch: int) -> Order:
        """Return the indexes of the whole batches of an epoch."""
        batch_sampler = self._loader.batch_sampler
        with self._opened(epoch):
            for sampler in (batch_sampler, self._loader.sampler):
                # Samplers of distributed training receive the epoch in this way.
                if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                    set_epoch(epoch)
            batches = epoch_order(batch_sampler)
        return self._whole(batches, epoch)

    def _whole(self, batches: Order, epoch: int) -> Order:
        size = self._loader.batch_size or (len(batches[0]) if batches else 0)
        full_batches = batches[:-1] if batches and len(batches[-1]) < size else batches
        if not full_batches:
            raise DataError(
                f"'loader' must give at least one whole batch of {size} examples; "
                f"got {sum(map(len, batches))} examples"
            )
        if not isinstance(full_batches, IndexOrder) and any(
            len(batch) != size for batch in full_batches
        ):
            sizes = ", ".join(map(str, sorted({len(batch) for batch in full_batches})))
            raise DataError(f"'loader' must give batches of one size; got sizes {sizes}")
        if self._steps_per_epoch not in {0, len(full_batches)}:
            raise DataError(
                f"'loader' must give the same number of batches in every epoch: "
                f"{self._steps_per_epoch}; got {len(full_batches)} in epoch {epoch}"
            )
        return full_batches

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
        rows, rest = divmod(batch.num_examples, self._batch_size)
        # Only a `Batch` states that the rows of the data set are several examples each.
        if isinstance(item, Batch) and rows and not rest and self._rows in (None, rows):
            self._rows = rows
        elif batch.num_examples != self._batch_size:
            raise DataError(
                f"'loader' must collate {self._batch_size} examples into as many rows; "
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
                "shape": [self._steps_per_epoch, self._batch_size],
                "order": order_digest(self._batches),
                "first": _digest(first),
                "seed": self._seed,
                "next_token": self._next_token,
                # Only here, so that digests of other data stay those of earlier versions.
                **({"positions": self._positions} if self._is_overridden else {}),
            }
        )


@final
class _Batches(Dataset[object]):
    """Data set of the collated batches of another data set; the key holds the step."""

    def __init__(self, loader: DataLoader[object], seed: int) -> None:
        self._dataset = loader.dataset
        self._collate = loader.collate_fn
        self._seed = seed

    def __getitem__(self, key: tuple[int, Sequence[object]]) -> object:
        step, indexes = key
        with seeding.scoped(self._seed, "loader batch", step):
            if callable(read := getattr(self._dataset, "__getitems__", None)):
                return self._collate(read(indexes))
            return self._collate([self._dataset[index] for index in indexes])


@final
class _Keys:
    """Keys of `_Batches` for some steps, each made when a worker is given it."""

    def __init__(self, indexes: Callable[[int], Sequence[object]], steps: range) -> None:
        self._indexes, self._steps = indexes, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[tuple[int, Sequence[object]]]:
        return ((step, self._indexes(step)) for step in self._steps)


def _unchanged(item: object) -> object:
    return item


def _generators(loader: DataLoader[object]) -> list[torch.Generator]:
    """Return the explicit generators from which a loader's order may be drawn."""
    batch_sampler = loader.batch_sampler
    owners = (loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    candidates = [getattr(owner, "generator", None) for owner in owners]
    return list(
        {
            id(generator): generator
            for generator in candidates
            if isinstance(generator, torch.Generator)
        }.values()
    )


def _seed_generators(
    stack: ExitStack, loader: DataLoader[object], seed: int, purpose: str, *index: int
) -> None:
    """Seed the generators of a loader and the global ones until a stack is closed."""
    for generator in _generators(loader):
        stack.enter_context(_lent(generator, seeding.derive(seed, purpose, *index)))
    stack.enter_context(seeding.scoped(seed, purpose, *index))


@contextmanager
def _lent(generator: torch.Generator, seed: int) -> Iterator[None]:
    """Seed a user's generator inside the block and restore it afterwards."""
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


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
    """Return a digest of everything in a batch."""
    tensors = {"labels": batch.labels, "selected": batch.selected, "valid": batch.valid}
    # Only where they are given, so that digests of other data stay those of earlier versions.
    apart = {
        f"teacher_inputs {name}": tensor for name, tensor in named(batch.teacher_inputs).items()
    }
    if batch.alignment is not None:
        apart["alignment"] = batch.alignment
    if batch.matched is not None:
        apart["matched"] = batch.matched
    digest = hashlib.sha256()
    for name, tensor in [*named(batch.inputs).items(), *tensors.items(), *apart.items()]:
        digest.update(name.encode())
        if tensor is not None:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().tobytes())
    return digest.hexdigest()


def _name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"
