"""The table of features that exclude each other."""

import itertools

import pytest

from curricle.errors import BindError, SpecError
from curricle.training.setup.compatibility import INCOMPATIBLE, check_compatible

NAMES = sorted({name for pair in INCOMPATIBLE for name in pair})
PAIRS = set(map(frozenset, INCOMPATIBLE))


@pytest.mark.parametrize(("first", "second"), INCOMPATIBLE)
def test_two_features_of_the_table_are_refused_with_both_and_the_reason(
    first: str, second: str
) -> None:
    with pytest.raises(BindError) as caught:
        check_compatible({first: "FIRST", second: "SECOND"}, BindError)
    why = INCOMPATIBLE[first, second]
    assert str(caught.value) == f"FIRST cannot be used with SECOND: {why}; remove one of them"


def test_all_other_pairs_go_together() -> None:
    pairs = [frozenset(pair) for pair in itertools.combinations(NAMES, 2)]
    allowed = [pair for pair in pairs if pair not in PAIRS]
    assert len(allowed) > len(PAIRS)
    for pair in allowed:
        check_compatible(dict.fromkeys(pair, "x"), SpecError)


def test_no_pair_stands_twice() -> None:
    assert len(PAIRS) == len(INCOMPATIBLE)
    assert all(len(pair) == 2 for pair in PAIRS)
