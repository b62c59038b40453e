"""Background thread that writes checkpoints while the next steps are taken.

At most one checkpoint is being written. Its error, as of a full disk, is raised where the run waits
for it: at the next checkpoint, a return to one, an evaluation with `keep_best`, and at the end.

Design: only host copies of tensors are written, which no step changes. `async_save` of
`torch.distributed.checkpoint` does the same for a format of its own (docs/decisions/0012).
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from curricle.errors import CheckpointError
from curricle.training.setup.interrupts import LOGGER


@final
class SaveThread:
    """A thread for the checkpoints of one run."""

    def __init__(self) -> None:
        """Begin with nothing to write."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Write a checkpoint in the thread, after the one before it.

        Args:
            write: Function that writes it.

        Raises:
            CheckpointError: If the one before could not be written.
        """
        self.wait()
        self._pending = self._pool.submit(write)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: If it could not be written; the error is raised once.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the thread after the last checkpoint; an error of it is logged.

        A run that succeeds has waited before, so another error is on its way here.
        """
        self._pool.shutdown()
        try:
            self.wait()
        except CheckpointError as error:
            LOGGER.warning("curricle: %s", error)
