import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricle.reports.comparisons import cost_verdict, difference, verdict

COSTS = st.dictionaries(st.integers(0, 5), st.integers(1, 10**6), min_size=1, max_size=5)


def test_equal_seeds_are_compared_one_by_one() -> None:
    found = difference({0: 1.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 7.0, 2: 12.0})
    # Differences -1, -2, -3: s = 1, so 4.3027 / sqrt(3) = 2.4842.
    assert found.mean == -2.0
    assert found.ci95 == pytest.approx(2.4842, abs=1e-4)


def test_other_seeds_are_compared_by_welchs_interval() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 3.0}, {5: 4.0, 6: 8.0})
    # Squared errors 1/3 and 4; degrees (13/3)^2 / ((1/3)^2/2 + 4^2/1) = 1.17, so t = 12.7062.
    assert found.mean == -4.0
    assert found.ci95 == pytest.approx(12.7062 * (13 / 3) ** 0.5, rel=1e-5)


def test_noise_that_all_seeds_share_does_not_hide_a_difference() -> None:
    first = {0: 10.0, 1: 50.0, 2: 90.0}
    second = {seed: number + 1 + 0.01 * seed for seed, number in first.items()}
    assert verdict(first, second) == "less"
    assert verdict(second, first) == "more"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({0: 0.5}, {0: 0.5}, "equal"),
        ({0: 0.1 + 0.2}, {0: 0.3}, "equal"),
        ({0: 0.5}, {0: 0.6}, "single"),
        ({0: 0.5, 1: 0.5}, {0: 0.6}, "single"),
        ({0: 61.0, 1: 62.2}, {0: 54.0, 1: 69.6}, "unclear"),
        ({0: 1e200, 1: 1e200}, {0: 2e200, 1: 2e200}, "less"),
        ({0: 0.0}, {0: 0.0}, "equal"),
    ],
)
def test_verdicts_of_small_examples(
    first: dict[int, float], second: dict[int, float], expected: str
) -> None:
    assert verdict(first, second) == expected


def test_costs_are_compared_by_their_ratio() -> None:
    first, second = {0: 1.0e5, 1: 1.1e5}, {0: 1.5e6, 1: 2.5e6}
    # Paired differences are 1.4M and 2.39M: t(1) = 12.7 of their error is 6.3M, more than 1.9M.
    assert verdict(first, second) == "unclear"
    # Ratios of 15 and 22.7 are 2.7 and 3.1 in logarithms, and 12.7 of their error is 2.6.
    assert cost_verdict(first, second) == "less"


def test_costs_of_nothing_are_compared_by_their_difference() -> None:
    assert cost_verdict({0: 0, 1: 0}, {0: 10, 1: 12}) == "unclear"
    assert cost_verdict({0: 0, 1: 0}, {0: 10, 1: 10}) == "less"


@given(COSTS, COSTS, st.integers(1, 10**6))
def test_the_unit_of_a_cost_does_not_change_its_verdict(
    first: dict[int, int], second: dict[int, int], scale: int
) -> None:
    scaled = [{seed: cost * scale for seed, cost in costs.items()} for costs in (first, second)]
    assert cost_verdict(*scaled) == cost_verdict(first, second)


@given(COSTS, COSTS)
def test_the_order_of_two_strategies_turns_the_verdict(
    first: dict[int, int], second: dict[int, int]
) -> None:
    turned: dict[str, str] = {"less": "more", "more": "less"}
    expected = cost_verdict(first, second)
    assert cost_verdict(second, first) == turned.get(expected, expected)
