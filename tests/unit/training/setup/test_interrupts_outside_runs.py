"""Signals before and after a run."""

import signal

import pytest

from curricle.training.setup.interrupts import Interrupted, Interrupts, interruptible


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
