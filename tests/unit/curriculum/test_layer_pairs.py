"""Terms at layer pairs: the same objective at each, which together weigh as much as one."""

import pytest

from curricle.curriculum.layer_pairs import evenly_spaced_pairs, layer_terms, listed_pairs
from curricle.errors import SpecError
from curricle.objectives.hidden import LayerPair
from curricle.objectives.matched_geometries import MatchCKA


def test_a_number_of_pairs_means_evenly_spaced_ones() -> None:
    assert listed_pairs(3) == evenly_spaced_pairs(3)
    pair = LayerPair(student=1, teacher="blocks.2")
    assert listed_pairs((pair,)) == (pair,)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_terms_weigh_together_as_much_as_one(number: int) -> None:
    terms = layer_terms(listed_pairs(number), {"kind": "cka", "weight": 4.0}, weight=0.5)
    assert [term.pair for term in terms] == list(evenly_spaced_pairs(number))
    assert sum(term.weight for term in terms) == pytest.approx(2.0)


def test_a_reading_of_the_pair_reaches_its_term() -> None:
    pair = LayerPair(student=1, teacher=1, reading="pooled")
    assert layer_terms((pair,), "cka") == (MatchCKA(pair=pair),)


def test_relations_need_a_reading_with_positions() -> None:
    pair = LayerPair(student=1, teacher=1, reading="pooled")
    with pytest.raises(SpecError, match=r"'reading' of a pair must be 'positions' or 'grid'"):
        layer_terms((pair,), "relations")
