"""Signals before and after a run."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from curricle.training.setup.interrupts import (
    Interrupted,
    Interrupts,
    blocked_signals,
    deferred_signals,
    interruptible,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_a_run_raises_at_once(number: int) -> None:
    with interruptible(), pytest.raises(Interrupted) as end:
        signal.raise_signal(number)
    assert end.value.signal_number == number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_run_within_takes_the_signal_over_and_gives_it_back() -> None:
    with interruptible():
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.requested == signal.SIGTERM
            interrupts.requested = None
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def raising_interrupts() -> Iterator[None]:
    """Raise on ctrl-C, also if a shell in the background has the tests ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("raising_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_deferred_signal_raises_where_the_program_asks_for_it(number: signal.Signals) -> None:
    passed: list[str] = []
    with (  # noqa: PT012 - the place is tested
        interruptible(),
        pytest.raises(KeyboardInterrupt) as end,
        deferred_signals() as raise_interrupt,
    ):
        raise_interrupt()
        signal.raise_signal(number)
        passed.append("after the signal")
        raise_interrupt()
        passed.append("after the call")
    assert passed == ["after the signal"]
    assert isinstance(end.value, Interrupted) == (number == signal.SIGTERM)


@pytest.mark.usefixtures("raising_interrupts")
def test_a_deferred_signal_raises_at_the_latest_at_the_end_of_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("raising_interrupts")
def test_a_deferred_signal_does_not_hide_an_error() -> None:
    with pytest.raises(ValueError, match="the error"), deferred_signals():  # noqa: PT012 - both come
        signal.raise_signal(signal.SIGINT)
        raise ValueError("the error")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("raising_interrupts")
def test_a_blocked_signal_arrives_after_the_block() -> None:
    passed: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the order of both is tested
        with blocked_signals("SIGINT"):
            signal.raise_signal(signal.SIGINT)
            passed.append("after the signal")
        passed.append("after the block")
    assert passed == ["after the signal"]


def test_a_process_started_while_a_signal_is_blocked_keeps_it_blocked() -> None:
    shown = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with blocked_signals("SIGINT"):
        printed = subprocess.run(
            [sys.executable, "-c", shown], check=True, capture_output=True, text=True
        )
    assert printed.stdout == "True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
