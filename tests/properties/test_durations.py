"""Invariants of durations."""

from hypothesis import given
from hypothesis import strategies as st

from curricle.curriculum.durations import Duration, duration

NUMBERS = st.integers(1, 10**12)
SIZES = st.integers(1, 10**6)
UNITS = st.sampled_from(["steps", "examples", "tokens"])
DURATIONS = st.builds(Duration, number=NUMBERS, unit=UNITS)
PARTS = st.builds(
    Duration,
    number=NUMBERS,
    unit=st.just("epochs"),
    divisor=st.one_of(st.integers(1, 10**9), st.sampled_from([8, 10, 1_000, 10**6])),
)


@given(st.one_of(DURATIONS, PARTS))
def test_a_printed_duration_reads_back(length: Duration) -> None:
    assert duration(str(length)) == length


@given(DURATIONS, SIZES, SIZES)
def test_the_steps_cover_the_duration_and_one_less_would_not(
    length: Duration, batch_size: int, tokens: int
) -> None:
    steps = length.steps(batch_size=batch_size, tokens_per_batch=tokens)
    each = {"steps": 1, "examples": batch_size, "tokens": tokens}[length.unit]
    assert (steps - 1) * each < length.number <= steps * each


@given(st.integers(1, 10**6), st.sampled_from([("k", 3), ("M", 6), ("G", 9)]), UNITS)
def test_a_suffix_is_a_power_of_ten(number: int, suffix: tuple[str, int], unit: str) -> None:
    letter, power = suffix
    assert duration(f"{number}{letter} {unit}") == duration(f"{number}{'0' * power} {unit}")
