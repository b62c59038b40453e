from hypothesis import given
from hypothesis import strategies as st

from curricle.reports.thinning import extremes


def test_a_short_series_is_left_as_it_is() -> None:
    assert extremes([3.0, 1.0, 2.0, 5.0], 4) == [0, 1, 2, 3]
    assert extremes([], 4) == []


def test_the_extremes_of_each_piece_stay() -> None:
    # Without the ends, two pieces of five: their places 3 and 2, and 8 and 10.
    assert extremes([0, 5, 1, 9, 5, 5, 5, 5, 2, 5, 8, 0], 6) == [0, 2, 3, 8, 10, 11]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300), st.integers(4, 50))
def test_ends_minimum_and_maximum_survive(numbers: list[float], most: int) -> None:
    places = extremes(numbers, most)
    kept = [numbers[place] for place in places]
    assert len(places) <= max(most, 0) or len(places) == len(numbers) <= most
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, len(numbers) - 1)
    assert (min(kept), max(kept)) == (min(numbers), max(numbers))
