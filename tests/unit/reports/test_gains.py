"""Gains over a baseline, and the budget at which each ends.

With the three differences d - e, d and d + e, the standard deviation is e and half of the 95 %
interval is t(2) * e / sqrt(3), t(2) = 4.3027: about 2.484 e.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.reports.comparisons import Difference
from curricle.reports.gains import MethodGains, MetricGains, gain_text, gains_over

HALF = 4.3027 / 3**0.5
"""Half of the interval of three differences with deviation 1."""
BUDGETS = (1000.0, 4000.0, 16_000.0, 64_000.0)


def seeds(mean: float, deviation: float = 0.0) -> dict[int, float]:
    """Return numbers of three seeds."""
    return {0: mean - deviation, 1: mean, 2: mean + deviation}


def gains_of(*pairs: tuple[float, float | None]) -> MethodGains:
    """Return gains at the first budgets, from means and half-widths."""
    return MethodGains(
        method="extraction",
        gains={
            budget: Difference(mean=mean, ci95=ci95)
            for budget, (mean, ci95) in zip(BUDGETS, pairs, strict=False)
        },
        is_complete=True,
    )


def test_a_gain_ends_at_the_first_budget_from_which_on_its_interval_contains_zero() -> None:
    gains = gains_of((0.5, 0.1), (0.2, 0.1), (0.1, 0.2), (-0.01, 0.3))
    assert gains.end == BUDGETS[2]
    assert gains.words("tokens") == "16k tokens"


def test_an_interval_below_zero_is_no_gain() -> None:
    assert gains_of((0.5, 0.1), (-0.2, 0.1), (-0.1, 0.05), (-0.1, 0.05)).end == BUDGETS[1]


def test_an_interval_that_touches_zero_is_no_gain() -> None:
    assert gains_of((0.5, 0.1), (0.1, 0.1)).end == BUDGETS[1]


def test_a_gain_that_comes_back_ends_after_its_return() -> None:
    assert gains_of((0.5, 0.1), (0.0, 0.1), (0.3, 0.1), (0.0, 0.1)).end == BUDGETS[3]


def test_a_gain_at_the_largest_budget_does_not_end() -> None:
    gains = gains_of((0.0, 0.1), (0.0, 0.1), (0.0, 0.1), (0.3, 0.1))
    assert gains.end is None
    assert gains.words("tokens") == "none up to 64k tokens"


def test_a_method_that_never_gains_ends_at_the_smallest_budget() -> None:
    gains = gains_of((0.0, 0.1), (-0.3, 0.1))
    assert gains.end == BUDGETS[0]
    assert gains.words("tokens") == "no gain at any budget from 1k tokens"


def test_without_intervals_no_end_is_determined() -> None:
    gains = gains_of((0.5, 0.1), (0.5, None))
    assert gains.end is None
    assert gains.words("tokens") == "not determined: fewer than two seeds"


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=1, max_size=4))
def test_from_its_end_on_and_only_there_no_interval_is_above_zero(
    pairs: list[tuple[float, float]],
) -> None:
    end = gains_of(*pairs).end
    above = {
        budget for budget, (mean, half) in zip(BUDGETS, pairs, strict=False) if mean - half > 0
    }
    tail = {budget for budget in BUDGETS[: len(pairs)] if end is not None and budget >= end}
    assert not above & tail
    before = sorted(set(BUDGETS[: len(pairs)]) - tail)
    assert not before or before[-1] in above


def test_gains_are_paired_by_seed_and_positive_where_the_method_is_better() -> None:
    # Of seeds that differ by 1 the paired difference is exactly .25; unpaired it would be noise.
    base = seeds(3.0, 1.0)
    numbers = {
        "one_shot": {1000.0: base},
        "extraction": {1000.0: {seed: number - 0.25 for seed, number in base.items()}},
        "labels": {1000.0: {seed: number + seed * 0.5 for seed, number in base.items()}},
    }
    extraction, labels = gains_over(numbers, "one_shot", "lower")
    assert (extraction.method, labels.method) == ("extraction", "labels")
    assert extraction.gains[1000.0].mean == pytest.approx(0.25)
    assert extraction.gains[1000.0].ci95 == pytest.approx(0.0, abs=1e-9)
    # Differences 0, -.5 and -1.
    assert labels.gains[1000.0].mean == pytest.approx(-0.5)
    assert labels.gains[1000.0].ci95 == pytest.approx(0.5 * HALF)
    assert labels.end == 1000.0
    (accuracy, _) = gains_over(numbers, "one_shot", "higher")
    assert accuracy.gains[1000.0].mean == pytest.approx(-0.25)


def test_a_budget_without_runs_of_the_method_leaves_the_end_open() -> None:
    numbers = {
        "one_shot": {1000.0: seeds(3.0), 4000.0: seeds(2.0)},
        "extraction": {1000.0: seeds(2.5)},
    }
    (extraction,) = gains_over(numbers, "one_shot", "lower")
    assert list(extraction.gains) == [1000.0]
    assert extraction.words("tokens") == "not determined: runs are missing"


def test_the_table_has_a_column_a_budget_and_the_end() -> None:
    methods = (gains_of((0.5, 0.1), (0.002, 0.1)),)
    gains = MetricGains(metric="nll", baseline="one_shot", unit="tokens", methods=methods)
    grid = gains.grid()
    assert grid.title == "Gain over one_shot in nll (higher is better)"
    assert grid.columns == ("method", "1k tokens", "4k tokens", "gain ends at")
    assert grid.rows == (("extraction", "+0.500 ± 0.100", "+0.002 ± 0.100", "4k tokens"),)
    assert gains.line() == "end of the gain over one_shot in nll: extraction: 4k tokens"
    assert gains.plain()["methods"]["extraction"]["end"] == 4000.0


def test_gains_of_shares_are_percentage_points() -> None:
    assert gain_text("accuracy", Difference(mean=-0.0123, ci95=0.004)) == "-1.23 ± 0.40"
    assert gain_text("blimp_accuracy", Difference(mean=0.5, ci95=None)) == "+50.00"
    assert gain_text("nll", None) == "–"
