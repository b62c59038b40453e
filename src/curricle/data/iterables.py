"""Items of a `DataLoader` over an `IterableDataset`, found again by step.

Such a data set has no indexes: the item of a step is reached by iterating from the start of its
epoch. Steps in order cost one item each; a resumed run first reads the epoch up to its step.

Design: the iterator of epoch e starts under the named stream (seed, `loader`, e), and the item of
a step is read under (seed, `loader batch`, step), so that both ways to a step draw equal random
numbers. The number of steps of an epoch is the stated length over the batch size.
"""

from collections.abc import Iterator, Sized
from typing import final

from torch.utils.data import DataLoader

from curricle import seeding
from curricle.data.loader_generators import seeded_loader
from curricle.data.loader_workers import end_workers_of
from curricle.data.orders import list_digest
from curricle.errors import DataError

_END = object()


@final
class ItemsInOrder:
    """Items of a loader without indexes, read by step."""

    def __init__(self, loader: DataLoader[object], *, seed: int) -> None:
        """Read the stated length.

        Args:
            loader: Loader over an `IterableDataset`.
            seed: Seed of the random numbers that the data set draws from torch.

        Raises:
            DataError: If there is no length, no batch size or not one whole batch.
        """
        dataset, size = loader.dataset, loader.batch_size
        name = type(dataset).__qualname__
        if not isinstance(dataset, Sized):
            raise DataError(
                f"'loader' must have a data set with a length, for a step must be found again when "
                f"a run resumes; got the IterableDataset {name!r} without '__len__', which gives "
                f"the number of examples of an epoch"
            )
        if size is None:
            raise DataError("'loader' must make batches; got batch_size=None")
        self._loader = loader
        self._seed = seed
        self._iterator: Iterator[object] | None = None
        self._step = -1
        self._item: object = None
        self.batch_size = size
        """Number of examples of every item."""
        self.steps_per_epoch = len(dataset) // size
        """Number of whole items of an epoch."""
        self.order_digest = list_digest([])
        """Digest of the order, which is that of the data set."""
        if not self.steps_per_epoch:
            raise DataError(
                f"'loader' must give at least one whole batch of {size} examples; "
                f"got {len(dataset)} examples"
            )

    def read(self, step: int, *, again: bool = False) -> object:
        """Return the item of a step.

        Args:
            step: The step.
            again: Whether the item is read from the data set even if it is the one read last.

        Returns:
            The collated item.
        """
        if step == self._step and not again:
            return self._item
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._iterator is None or place == 0 or step != self._step + 1:
            self._start(epoch)
            for earlier in range(epoch * self.steps_per_epoch, step):
                self._next(earlier)
        self._item = self._next(step)
        self._step = step
        return self._item

    def end_workers(self) -> None:
        """End the workers, unless torch is to keep them; the next item starts new ones."""
        iterator, self._iterator = self._iterator, None
        if not self._loader.persistent_workers:
            end_workers_of(iterator)

    def _start(self, epoch: int) -> None:
        self._step = -1
        self.end_workers()
        with seeded_loader(self._loader, self._seed, "loader", epoch):
            if callable(set_epoch := getattr(self._loader.dataset, "set_epoch", None)):
                set_epoch(epoch)
            self._iterator = iter(self._loader)

    def _next(self, step: int) -> object:
        """Return the next item of the iterator, under the random numbers of its step.

        Raises:
            DataError: If the data set ends before its stated length.
        """
        if self._iterator is not None:
            try:
                with seeding.scoped(self._seed, "loader batch", step):
                    item = next(self._iterator, _END)
            except BaseException:
                self.end_workers()
                raise
            if item is not _END:
                return item
        raise DataError(
            f"'loader' must give the {self.steps_per_epoch} whole batches of its stated length in "
            f"every epoch; it ended after {step % self.steps_per_epoch}"
        )
