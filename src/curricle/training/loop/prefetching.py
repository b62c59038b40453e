"""Prefetch of the next step in a background thread.

A second thread reads its batch and, with `targets`, runs the teacher. torch releases Python's
lock while it computes, so on a CPU this takes one more core. On a GPU the kernels of the thread go
to a stream of its own, beside the student's step.

Design: each step is taken once, in order, and only one is prefetched. Tensors in use are held until
the next step is taken. At that time the thread is idle, so the memory of its stream is reused only
by later work that waits for the step that has read it.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Generic, TypeVar, final

import torch

T = TypeVar("T")


@final
class Prefetcher(Generic[T]):
    """Prepares the inputs of a step; a context that ends with its thread."""

    def __init__(self, make: Callable[[int], T], stream: torch.cuda.Stream | None = None) -> None:
        """Begin with nothing.

        Args:
            make: Function that prepares the inputs of a step. It runs in another thread, where
                gradient mode, autocast and inference mode have torch's defaults, and has to set
                those that it needs.
            stream: Queue of a GPU in which the thread computes; None on a CPU.
        """
        self._make = make
        self._stream = stream
        # The end of the outermost autocast of a thread clears the cached casts of all threads. This
        # thread is always within one, so it never clears those of a pass of the student.
        self._pool = ThreadPoolExecutor(
            1, thread_name_prefix="prefetch", initializer=torch.autocast_increment_nesting
        )
        self._next: tuple[int, Future[T]] | None = None
        self._held: T | None = None

    def take(self, step: int, *, ahead: bool) -> T:
        """Return the inputs of a step.

        Args:
            step: The step.
            ahead: Whether the one after it is to be made meanwhile.
        """
        item = self._made(step)
        # This frees the tensors of the step before, while the thread stands still.
        self._held = item
        if ahead:
            if self._stream is not None:
                # The thread's stream may get that memory next, which kernels of the student that
                # are queued by now still read.
                self._stream.wait_stream(torch.cuda.current_stream())
            self._next = step + 1, self._pool.submit(self._beside, step + 1)
        return item

    def settle(self) -> None:
        """Wait for the prefetch, so that nothing else reads the stream meanwhile."""
        if self._next is not None:
            wait([self._next[1]])

    def __enter__(self) -> "Prefetcher[T]":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the prefetch, and drop it."""
        # Waits: a thread that outlived the stage would run its teacher without hooks.
        self._pool.shutdown(cancel_futures=True)
        self._next = self._held = None
        # The thread never left its outermost autocast, where torch forgets the casts of weights.
        torch.clear_autocast_cache()

    def _made(self, step: int) -> T:
        coming, self._next = self._next, None
        if coming is None:
            return self._make(step)
        number, future = coming
        item = future.result()
        if self._stream is not None:
            # The result waits for the thread, not for the kernels that it has queued.
            torch.cuda.current_stream().wait_stream(self._stream)
        # Another step than the next, which no run takes, is prepared here.
        return item if number == step else self._make(step)

    def _beside(self, step: int) -> T:
        # torch keeps the current stream for each thread, so it is set in this one.
        stream: AbstractContextManager[object] = (
            nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        )
        with stream:
            return self._make(step)
