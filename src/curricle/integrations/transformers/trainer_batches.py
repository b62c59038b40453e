"""Batches of a Trainer as batches of curricle.

The Trainer collates items and cuts a step into micro-batches; `BatchReader` makes a `Batch` of each
item. `FirstBatches` is the stream that binding reads: some first items of the Trainer's loader.

Design: the Trainer owns the order of its data, so no stream can return the batch of any step.
Binding reads items of the same loader, drawn apart from the training; the random numbers of the
training stay as they are.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import final

from transformers.trainer_utils import has_length

from curricle import seeding
from curricle.data.batch import Batch
from curricle.data.collation import Positions, batch_of, check_first, declared_positions
from curricle.errors import DataError
from curricle.values import fingerprint

READ_AHEAD = 2
"""Items that are read at once, since binding compares the lengths of two."""


@final
class BatchReader:
    """Makes batches of the items of one loader; the first item decides about positions."""

    def __init__(self, *, next_token: bool) -> None:
        """Take the meaning of labels.

        Args:
            next_token: Whether labels are those of their own position and are to be shifted by one.
        """
        self._next_token = next_token
        self._positions: Positions | None = None

    def __call__(self, item: object) -> Batch:
        """Return an item as a batch."""
        is_first = self._positions is None
        positions = self._positions or declared_positions(item, next_token=self._next_token)
        batch = batch_of(item, next_token=self._next_token, positions=positions)
        if is_first:
            check_first(item, batch, next_token=self._next_token)
            self._positions = positions
        return batch


@final
class FirstBatches:
    """Stream of the first micro-batches of a loader, which repeat."""

    def __init__(
        self,
        loader: Callable[[], Iterable[object]],
        reader: BatchReader,
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
    ) -> None:
        """Read nothing yet.

        Args:
            loader: Returns the loader of the training.
            reader: Makes batches of its items.
            batch_size: Examples of a step.
            accumulation: Micro-batches of a step.
            seed: Seed of the reading, apart from the training.
        """
        self._loader, self._reader, self._seed = loader, reader, seed
        self._accumulation = accumulation
        self._batches: list[Batch] = []
        self._is_exhausted = False
        self._steps_per_epoch: int | None = None
        self.batch_size = batch_size
        """Number of examples of a step."""

    @property
    def tokens_per_batch(self) -> int:
        """Return the number of positions of a step of micro-batches as long as the first."""
        return self.batch(0).num_read_tokens * self._accumulation

    @property
    def examples_per_epoch(self) -> int | None:
        """Return the examples of an epoch, all steps counted as whole; None without a length.

        The last step of an epoch may have fewer micro-batches; the Trainer counts it as a step.
        """
        self.batch(0)
        steps = self._steps_per_epoch
        return None if steps is None else steps * self.batch_size

    @property
    def fingerprint(self) -> str:
        """Return a digest of the shapes; targets of such data are not stored."""
        return fingerprint({"stream": "trainer", "positions": list(self.batch(0).positions)})

    def batch(self, step: int) -> Batch:
        """Return a micro-batch, one of the first of the loader.

        Raises:
            DataError: If the loader has no items.
        """
        if step >= len(self._batches) and not self._is_exhausted:
            self._read(max(step + 1, READ_AHEAD))
        if not self._batches:
            raise DataError("'train_dataset' must have examples; got none")
        return self._batches[step % len(self._batches)]

    def _read(self, number: int) -> None:
        # Seeded alike each time, so that the batches read before come again.
        with seeding.scoped(self._seed, "trainer batches", beyond_torch=True):
            loader = self._loader()
            # A loader over an iterable data set has a length only if the data set has one.
            number_of_items = len(loader) if has_length(loader) else None
            if number_of_items is not None:
                self._steps_per_epoch = math.ceil(number_of_items / self._accumulation)
            items = iter(loader)
            try:
                self._batches = [self._reader(item) for item in itertools.islice(items, number)]
            finally:
                # Iterators of accelerate are generators, which hold one of torch with its workers.
                if callable(close := getattr(items, "close", None)):
                    close()
                del items
                # Loaders of accelerate are on a list until they are exhausted.
                if callable(end := getattr(loader, "end", None)):
                    end()
        self._is_exhausted = len(self._batches) < number
