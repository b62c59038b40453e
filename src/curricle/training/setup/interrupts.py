"""Signals that end a run between two steps.

SIGTERM (schedulers, `kill`), SIGUSR1 (schedulers ahead of their limit), SIGHUP (a closed terminal)
and, where a run writes a folder, SIGINT (ctrl-C) set a flag that the engine polls once a step. It
then saves a checkpoint and raises `Interrupted`, so at most one step is lost. A second signal
raises at once, as does one before the first step, while models are bound, starts are solved and the
run folder is opened: there is nothing to save yet.

Slurm sends SIGTERM when it preempts a job, and SIGKILL after the grace time of the partition;
`sbatch --signal=B:USR1@120` sends SIGUSR1 two minutes before the limit of a job. The grace time
has to cover one step and a checkpoint.

`Interrupted` need not be caught. Uncaught, all but SIGINT end the process with exit status 128
plus their number and without a traceback, as a `SystemExit` does. Ctrl-C stays a plain
`KeyboardInterrupt`, since an exit would close an interactive Python; uncaught, it ends a script
with a traceback.

Public calls of Python (`noted_interrupts`) raise at once while they open data and bind models:
`KeyboardInterrupt` for ctrl-C, as any call in a notebook, and `Interrupted` for the others. Both
have a note on the effect of the same call again.

Design: only default actions are replaced. A signal that is ignored, as SIGHUP under `nohup`, stays
ignored, and handlers of the calling program keep theirs.
"""

import functools
import inspect
import logging
import signal
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar, final

from curricle.training.setup import launchers

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Handle a signal before and after a run, when there is no step to wait for.

    Raises:
        Interrupted: Always.
    """
    raise Interrupted(number)


Handler = Callable[[int, FrameType | None], None]
LOGGER = logging.getLogger("curricle")
ENDING = ("SIGTERM", "SIGHUP", "SIGUSR1")
"""Signals that end a process by default."""
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler, interrupt)
"""Actions that are replaced while a run goes on."""


class Interrupted(KeyboardInterrupt):
    """A run ended by a signal; a `KeyboardInterrupt`, so code that handles only that stops."""

    def __new__(cls, signal_number: int, checkpoint: Path | None = None) -> "Interrupted":
        """Return an interrupt of the kind of its signal."""
        # The class follows from the signal, so code that raises `Interrupted` need not know which
        # signals end a process and which only the run.
        del checkpoint
        return KeyboardInterrupt.__new__(Stopped if signal_number == signal.SIGINT else Terminated)

    def __init__(self, signal_number: int, checkpoint: Path | None = None) -> None:
        """Describe the end.

        Args:
            signal_number: Number of the signal; a process that it ends exits with 128 more.
            checkpoint: Checkpoint to resume from; None if there is none.
        """
        name = signal.Signals(signal_number).name
        saved = "" if checkpoint is None else f"; resume from {str(checkpoint)!r}"
        super().__init__(f"interrupted by {name}{saved}")
        self.signal_number = signal_number
        """Number of the signal."""
        self.checkpoint = checkpoint
        """Checkpoint to resume from; None if there is none."""

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, Path | None]]:
        """Return how a copy is made in another process."""
        # By default an exception is built again from its message, which would arrive in place of
        # the number.
        return Interrupted, (self.signal_number, self.checkpoint)


@final
class Stopped(Interrupted):
    """A run that ctrl-C has ended."""


@final
class Terminated(Interrupted, SystemExit):
    """A run that another signal has ended; uncaught, it ends the process as the signal would."""

    def __init__(self, signal_number: int, checkpoint: Path | None = None) -> None:
        """Describe the end; the arguments are those of `Interrupted`."""
        super().__init__(signal_number, checkpoint)
        # Nothing else sets it: `KeyboardInterrupt` comes before `SystemExit` in the order of bases,
        # so the initializer of the latter never runs.
        self.code = 128 + signal_number


@final
class Interrupts:
    """A context in which signals are noted instead of ending the process."""

    def __init__(self, *, saves: bool = False) -> None:
        """Begin without a signal; nothing is installed before the context is entered.

        Args:
            saves: Whether the run writes checkpoints. Otherwise ctrl-C has nothing to wait for and
                raises at once, as Python does.
        """
        self._names = (*ENDING, "SIGINT") if saves else ENDING
        self._stack = ExitStack()
        self.requested: int | None = None
        """Number of the signal that has arrived; None as long as none has."""
        self._raises = False

    def __enter__(self) -> "Interrupts":
        """Return itself after installing the handlers, which only the main thread can."""
        self._stack.enter_context(_handled(self._names, self._note, instead_of=DEFAULTS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the actions back that were replaced.

        Raises:
            Interrupted: If a signal came too late for a step to end the run by it.
        """
        # Before anything is raised, so that the next signal already acts as it did before the run.
        self._stack.close()
        # An error that is on its way out already is not hidden by a signal that came beside it.
        if kind is None and self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def raised_at_once(self) -> Iterator[None]:
        """Raise for signals within the block, which has no step whose end they could wait for.

        Yields:
            Nothing.

        Raises:
            Interrupted: If a signal has arrived before the block or arrives inside.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # Only a flag is set: a handler runs between any two instructions, where an exception could
        # leave a weight half updated or a file half written. The second signal accepts that.
        if self._raises or self.requested is not None:
            raise Interrupted(number)
        self.requested = number
        if number == signal.SIGINT and launchers.rank() == 0:
            # The step, or an evaluation, may take long; silence would look like a hang.
            LOGGER.warning("stopping after this step; press ctrl-C again to stop at once")


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the block for signals that would end the process without a message.

    A run within takes them over, to end at a step; see `Interrupts`.

    Yields:
        Nothing.
    """
    with _handled(ENDING, interrupt, instead_of=(signal.SIG_DFL,)):
        yield


def noted_interrupts(
    note: Callable[[Mapping[str, object]], str],
) -> Callable[[Callable[Arguments, Returned]], Callable[Arguments, Returned]]:
    """Return a decorator for functions that signals end with a note on the effect of another call.

    A signal that would end the process without a message raises `Interrupted`, and the note is
    logged as well, since Python prints nothing of an exception that ends the process.

    Args:
        note: Returns the note for the arguments of the call by name, defaults left out. It is
            called when the function has been left, so that its files show their last state.
    """

    def decorated(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            try:
                with interruptible():
                    return function(*args, **kwargs)
            except KeyboardInterrupt as error:
                text = note(signature.bind(*args, **kwargs).arguments)
                if isinstance(error, Terminated):
                    name = signal.Signals(error.signal_number).name
                    LOGGER.warning("curricle: stopped by %s; %s", name, text)
                error.add_note(f"curricle: stopped; {text}")
                raise

        return call

    return decorated


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Hold signals that raise back within the block, until the yielded function is called.

    An exception that a handler raises between any two instructions can leave a lock acquired, which
    another thread then waits for without end. A signal that was not acted on is raised at the end
    of the block; one that comes after another is dropped.

    Yields:
        Function that raises `KeyboardInterrupt` or `Interrupted` if a signal has arrived.
    """
    arrived: list[int] = []

    def act() -> None:
        if arrived:
            number = arrived[0]
            (signal.default_int_handler if number == signal.SIGINT else interrupt)(number, None)

    with _handled(
        ("SIGINT", *ENDING),
        lambda number, _frame: arrived.append(number),
        instead_of=(signal.default_int_handler, interrupt),
    ):
        yield act
    act()


@contextmanager
def blocked_signals(*names: str) -> Iterator[None]:
    """Block signals of this thread within the block; they arrive after it.

    Processes that are started within keep them blocked. Windows has no such mask.

    Args:
        names: Names of the signals.

    Yields:
        Nothing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    numbers = [getattr(signal, name) for name in names]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled(
    names: Iterable[str], handler: Handler, *, instead_of: Container[object]
) -> Iterator[None]:
    """Handle signals within the block, where one of some actions is in place.

    Args:
        names: Names of the signals; one that the system lacks is left out.
        handler: Handler of the signals.
        instead_of: Actions that are replaced; all others stay, as that of a signal that is ignored.

    Yields:
        Nothing.
    """
    replaced: list[tuple[int, Callable[[int, FrameType | None], object] | int | None]] = []
    try:
        # Python refuses to install handlers elsewhere; a run in another thread leaves signals to
        # the program around it.
        if threading.current_thread() is threading.main_thread():
            # Windows has neither SIGHUP nor SIGUSR1.
            for number in [getattr(signal, name) for name in names if hasattr(signal, name)]:
                before = signal.getsignal(number)
                # A handler that was not installed from Python reads as None, and stays, too.
                if before in instead_of:
                    signal.signal(number, handler)
                    replaced.append((number, before))
        yield
    finally:
        for number, action in reversed(replaced):
            signal.signal(number, action)
