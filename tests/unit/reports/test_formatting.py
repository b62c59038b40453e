import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.reports.formatting import (
    goal_text,
    half_width,
    limits,
    mean,
    mean_text,
    metric_text,
    short,
    t_quantile,
    with_interval,
)


# Values of printed tables of Student's t, two-sided 95 %.
@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (11, 2.201), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_printed_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=6e-4)


def test_quantiles_fall_towards_the_normal_quantile() -> None:
    quantiles = [t_quantile(degrees) for degrees in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert t_quantile(10**9) == pytest.approx(1.959964, abs=1e-5)


def test_half_width_of_three_numbers_is_that_computed_by_hand() -> None:
    # 1, 2, 3: s = 1, so 4.3027 / sqrt(3) = 2.4842.
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(2.4842, abs=1e-4)


def test_one_number_has_no_interval() -> None:
    assert half_width([1.0]) is None
    assert half_width([]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.floats(-1e3, 1e3))
def test_half_width_does_not_depend_on_a_shift(numbers: list[float], shift: float) -> None:
    width, shifted = half_width(numbers), half_width([number + shift for number in numbers])
    assert width is not None
    assert shifted == pytest.approx(width, abs=1e-6 * (1 + max(map(abs, numbers))))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (7.25, "7.25"),
        (999, "999"),
        (999.7, "1k"),
        (96_000, "96k"),
        (999_949, "1M"),
        (2_500_000, "2.5M"),
        (3.21e9, "3.21G"),
        (1.5e15, "1.5P"),
        (-96_000, "-96k"),
    ],
)
def test_large_numbers_are_shortened(number: float, expected: str) -> None:
    assert short(number) == expected


def test_units_stand_behind_the_suffix() -> None:
    assert short(2_500_000, "B") == "2.5 MB"
    assert short(12, "B") == "12 B"


@given(st.floats(1, 1e20))
def test_shortened_numbers_are_right_to_three_digits(number: float) -> None:
    text = short(number)
    powers = {"k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
    power = powers.get(text[-1], 0)
    digits = float(text[:-1] if power else text)
    assert math.isclose(digits * 10**power, number, rel_tol=0.0051)


def test_intervals_stand_behind_their_mean() -> None:
    assert with_interval(96_000, 1_250) == "96k ± 1.25k"
    assert with_interval(96_000, None) == "96k"
    assert with_interval(None, None) == "–"


def test_long_times_are_told_in_hours() -> None:
    assert with_interval(12.5, 0.5, kind="seconds") == "12.5 ± 0.5 s"
    assert with_interval(9_000, 1_800, kind="seconds") == "2.5 ± 0.5 h"


def test_accuracies_are_told_in_percent_and_likelihoods_are_not() -> None:
    assert metric_text("accuracy", 0.9912, 0.0031) == "99.12 ± 0.31 %"
    assert metric_text("nll", 0.35214, 0.012) == "0.3521 ± 0.012"
    assert metric_text("nll", None) == "–"


def test_targets_keep_every_digit() -> None:
    assert goal_text("accuracy", 0.99) == "99 % accuracy"
    assert goal_text("accuracy", 0.99995) == "99.995 % accuracy"
    assert goal_text("nll", 0.35) == "nll 0.35"


def test_computed_targets_are_rounded() -> None:
    assert goal_text("accuracy", 0.98374829) == "98.375 % accuracy"
    assert goal_text("nll", 1 / 3) == "nll 0.333"


@pytest.mark.parametrize(
    ("metric", "numbers", "expected"),
    [
        ("accuracy", [0.4, 0.6], "50.00 % (2 seeds: 40.00, 60.00 %)"),
        ("accuracy", [0.95, 0.96, 0.97], "96.00 ± 2.48 %"),
        ("accuracy", [0.5], "50.00 %"),
        # s = 0.0548, so 2.7764 * 0.0548 / sqrt(5) = 0.0680 around .96.
        ("accuracy", [0.9, 0.9, 1.0, 1.0, 1.0], "96.00 % (89.20 to 100.00 %)"),
        ("nll", [0.1, 0.5], "0.3 ± 2.5"),
        ("accuracy", [93.1, 94.1], "93.6 ± 6.4"),
    ],
)
def test_an_interval_that_a_share_cannot_have_is_told_otherwise(
    metric: str, numbers: list[float], expected: str
) -> None:
    assert mean_text(metric, numbers) == expected


def test_what_a_metric_can_be_follows_from_its_name_unless_it_was_seen_outside() -> None:
    assert limits("accuracy", [0.5]) == (0.0, 1.0)
    assert limits("accuracy", [93.0]) == (-math.inf, math.inf)
    assert limits("nll", [1.0]) == (0.0, math.inf)
    assert limits("nll", [-1.0]) == (-math.inf, math.inf)
    assert limits("xyz") == (-math.inf, math.inf)


def test_means_and_intervals_of_huge_numbers_do_not_overflow() -> None:
    assert mean([1.5e308, 1.5e308]) == pytest.approx(1.5e308)
    assert half_width([1e200, 3e200]) == pytest.approx(12.7062e200)
