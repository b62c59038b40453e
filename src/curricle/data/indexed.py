"""Items of a `DataLoader` over a data set with indexes, found again by step.

The order of epoch e is listed under the named stream (seed, `loader`, e), and the item of a step is
fetched under (seed, `loader batch`, step).

Design: items are fetched by an internal loader with whole batches as items. As long as steps come
in order, its workers fetch ahead, from the second step on; any other step is fetched in this
process. Workers end with their epoch, or with `persistent_workers=True` when they are ended. The
iterator of the workers refers to the order and not to its owner: in a cycle of references it would
be left to the garbage collector, which waits five seconds for each worker.
"""

from collections.abc import Iterator, Sequence
from sys import maxsize
from typing import final

from torch.utils.data import DataLoader, Dataset

from curricle import seeding
from curricle.data.loader_generators import seeded_loader
from curricle.data.loader_workers import end_workers_of
from curricle.data.orders import IndexOrder, Order, epoch_order, order_digest
from curricle.errors import DataError

_NONE = -2
"""Step before the first read: no step follows it."""


@final
class IndexedItems:
    """Items of a loader with indexes, read by step."""

    def __init__(self, loader: DataLoader[object], *, seed: int) -> None:
        """List the first epoch.

        Args:
            loader: Loader over a data set with indexes.
            seed: Seed of the order and of the random numbers that the data set draws from torch.

        Raises:
            DataError: If there is not one whole batch, or batches have several sizes.
        """
        self._loader, self._seed = loader, seed
        self._order = _LoaderOrder(loader, seed)
        self._ahead: Iterator[object] | None = None
        self._last = _NONE

    @property
    def batch_size(self) -> int:
        """Return the number of examples of every item."""
        return self._order.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of whole items of an epoch."""
        return self._order.steps_per_epoch

    @property
    def order_digest(self) -> str:
        """Return a digest of the order of the first epoch."""
        return self._order.digest

    def read(self, step: int, *, again: bool = False) -> object:
        """Return the item of a step.

        Args:
            step: The step.
            again: Whether the item is fetched in this process, beside the steps in order.

        Returns:
            The collated item.
        """
        if again:
            return self._fetch(step)
        is_next, self._last = step == self._last + 1, step
        if not self._loader.num_workers or not is_next:
            # The batches that the workers have fetched belong to other steps.
            self.end_workers()
            return self._fetch(step)
        is_epoch = step % self.steps_per_epoch == 0 and not self._loader.persistent_workers
        if self._ahead is None or is_epoch:
            self.end_workers()
            self._ahead = self._started(step)
        try:
            return next(self._ahead)
        except BaseException:
            self.end_workers()
            raise

    def end_workers(self) -> None:
        """End the workers; the next steps in order start new ones."""
        ahead, self._ahead = self._ahead, None
        end_workers_of(ahead)

    def _fetch(self, step: int) -> object:
        return _Batches(self._loader, self._seed)[step, self._order.indexes(step)]

    def _started(self, start: int) -> Iterator[object]:
        """Return the items from a step on, fetched ahead by workers."""
        source = self._loader
        stop = (start // self.steps_per_epoch + 1) * self.steps_per_epoch
        steps = range(start, maxsize if source.persistent_workers else stop)
        ahead: DataLoader[object] = DataLoader(
            _Batches(source, self._seed),
            batch_size=None,
            sampler=_Keys(self._order, steps),
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


@final
class _LoaderOrder:
    """Keys of the examples of each step, listed an epoch at a time."""

    def __init__(self, loader: DataLoader[object], seed: int) -> None:
        self._loader, self._seed = loader, seed
        self.steps_per_epoch = 0
        self._epoch, self._batches = 0, self._listed(0)
        self.steps_per_epoch, self.batch_size = len(self._batches), len(self._batches[0])
        self.digest = order_digest(self._batches)

    def indexes(self, step: int) -> Sequence[object]:
        """Return the keys of the examples of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._listed(epoch), epoch
        return self._batches[place]

    def _listed(self, epoch: int) -> Order:
        """Return the keys of the whole batches of an epoch."""
        batch_sampler = self._loader.batch_sampler
        with seeded_loader(self._loader, self._seed, "loader", epoch):
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
        if self.steps_per_epoch not in {0, len(full_batches)}:
            raise DataError(
                f"'loader' must give the same number of batches in every epoch: "
                f"{self.steps_per_epoch}; got {len(full_batches)} in epoch {epoch}"
            )
        return full_batches


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

    def __init__(self, order: _LoaderOrder, steps: range) -> None:
        self._order, self._steps = order, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[tuple[int, Sequence[object]]]:
        return ((step, self._order.indexes(step)) for step in self._steps)


def _unchanged(item: object) -> object:
    return item
