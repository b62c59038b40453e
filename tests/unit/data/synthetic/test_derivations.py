"""Drawn strings with the trees above them."""

import numpy as np
import pytest

from curricle.data.synthetic.derivations import Derivations, Sampler
from curricle.data.synthetic.grammars import Grammar, shipped, written
from curricle.errors import DataError, SpecError
from curricle.seeding import numpy_generator

# Nothing is left to chance here: the only string is 1 2 2 1 1.
CERTAIN = Grammar(name="certain", start=6, rules=written("6 = 5 4 5\n5 = 1 2\n4 = 2"))
TREES = Derivations(
    lengths=np.array([5, 5]),
    ancestors=np.array([[1, 2, 2, 1, 2] * 2, [5, 5, 4, 5, 5] * 2, [6] * 10]),
    ends=np.array([[1] * 10, [0, 1, 1, 0, 1] * 2, [0, 0, 0, 0, 1] * 2], dtype=np.bool_),
)


def draw(grammar: Grammar, number: int, seed: int = 0) -> Derivations:
    return Sampler(grammar).draw(number, numpy_generator(seed, "test"))


def test_a_grammar_without_choice_gives_its_only_tree() -> None:
    drawn = draw(CERTAIN, 2)
    for name in ("lengths", "ancestors", "ends"):
        assert getattr(drawn, name).tolist() == getattr(TREES, name).tolist()


def test_strings_are_the_tokens_one_after_the_other() -> None:
    assert TREES.tokens.tolist() == [1, 2, 2, 1, 2] * 2
    assert TREES.strings() == [[1, 2, 2, 1, 2]] * 2


def test_all_rules_of_a_symbol_are_equally_likely() -> None:
    drawn = draw(shipped("cfg3f", start=7), 30_000)
    found = {tuple(string) for string in drawn.strings()}
    assert found == {(2, 2, 1), (3, 2, 2), (3, 1, 2), (3, 2)}
    strings = [tuple(string) for string in drawn.strings()]
    # A share of n draws lies within 5 standard deviations of 1/4, but for two in a million.
    bound = 5 * np.sqrt(0.25 * 0.75 / 30_000)
    assert all(abs(strings.count(one) / 30_000 - 0.25) < bound for one in found)


def test_symbols_choose_their_rules_independently() -> None:
    # 10 = 7 9 8 or 9 8 7 in cfg3b-p2, where 9 has one rule: 2 * 2 * 2 strings of 1/8.
    strings = [tuple(one) for one in draw(shipped("cfg3b-p2", start=10), 20_000).strings()]
    bound = 5 * np.sqrt(1 / 8 * 7 / 8 / 20_000)
    assert len(set(strings)) == 8
    assert all(abs(strings.count(one) / 20_000 - 1 / 8) < bound for one in set(strings))


def test_the_first_strings_never_change() -> None:
    drawn = draw(shipped("cfg3b", start=13), 4)
    assert ["".join(map(str, string)) for string in drawn.strings()] == [
        "3212321213132",
        "3211233123212321",
        "32131321233221",
        "2112332313221",
    ]


def test_seeds_decide_what_is_drawn() -> None:
    grammar = shipped("cfg3b")
    assert draw(grammar, 2, seed=1).strings() == draw(grammar, 2, seed=1).strings()
    assert draw(grammar, 2, seed=1).strings() != draw(grammar, 2, seed=2).strings()


def test_at_least_one_string_is_drawn() -> None:
    with pytest.raises(SpecError, match="'num_strings' must be positive; got 0"):
        draw(CERTAIN, 0)


def test_rows_are_filled_up_after_each_string() -> None:
    short = Derivations(
        lengths=np.array([1, 3]), ancestors=np.array([[1, 2, 1, 3]]), ends=np.ones((1, 4), bool)
    )
    rows = short.padded(short.ancestors[0] * 10, num_positions=4, fill=-1)
    assert rows.tolist() == [[10, -1, -1, -1], [20, 10, 30, -1]]


def test_rows_hold_the_longest_string() -> None:
    with pytest.raises(
        DataError, match="'num_positions' must hold the longest string, 5 tokens; got 4"
    ):
        TREES.padded(TREES.tokens, num_positions=4, fill=0)


def test_labels_of_a_probe_have_their_levels_last() -> None:
    labels = TREES.ancestor_labels(num_positions=6)
    assert labels.shape == (2, 6, 3)
    assert labels[1, :, 1].tolist() == [5, 5, 4, 5, 5, -100]
    assert labels[0, 2].tolist() == [2, 4, 6]
