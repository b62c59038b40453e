"""Laws of strings against lists of all strings, for grammars that give only a few."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from curricle.data.synthetic.grammar_statistics import (
    StringStatistics,
    num_derivations,
    string_statistics,
)
from curricle.data.synthetic.grammars import Grammar, shipped, written
from curricle.errors import DataError, SpecError

# 6 gives 1 2 2 and 1 2 1 1 with chance 1/4 each, then 2 and 1 1.
SMALL = Grammar(name="small", start=6, rules=written("6 = 5 4 | 4\n5 = 1 2\n4 = 2 | 1 1"))
# Both rules of 4 give the string 1 1, in one way each.
DOUBLED = Grammar(name="doubled", start=4, rules=written("4 = 2 2 | 3\n2 = 1\n3 = 1 1"))


def law(*chances: float) -> StringStatistics:
    return StringStatistics(
        length_probabilities=np.array([0.0, *chances]), token_counts={1: 1.0}, entropy=0.0
    )


def all_strings(grammar: Grammar, symbol: int) -> Counter[tuple[int, ...]]:
    """Return the strings of a symbol with the number of their derivations, written out."""
    if symbol in grammar.terminals:
        return Counter([(symbol,)])
    found: Counter[tuple[int, ...]] = Counter()
    for right in grammar.alternatives[symbol]:
        parts = [all_strings(grammar, child).items() for child in right]
        for choice in itertools.product(*parts):
            text = tuple(token for string, _ in choice for token in string)
            found[text] += math.prod(number for _, number in choice)
    return found


def test_lengths_tokens_and_entropy_of_four_strings() -> None:
    found = string_statistics(SMALL)
    assert found.length_probabilities.tolist() == [0, 0.25, 0.25, 0.25, 0.25]
    assert (found.min_length, found.max_length, found.mean_length) == (1, 4, 2.5)
    assert found.sd_length == pytest.approx(math.sqrt(1.25))
    assert found.token_counts == {1: 1.5, 2: 1.0}
    assert found.token_frequencies == {1: 0.6, 2: 0.4}
    assert (found.entropy, found.entropy_per_token) == (2.0, 0.8)


def test_a_terminal_that_never_comes_is_counted_as_zero() -> None:
    assert string_statistics(shipped("cfg3b", start=9)).token_counts == {1: 1.0, 2: 1.0, 3: 0.5}


@pytest.mark.parametrize(
    ("share", "length"), [(0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.9, 4), (1, 4)]
)
def test_a_quantile_is_the_first_length_that_reaches_its_share(share: float, length: int) -> None:
    assert string_statistics(SMALL).length_quantile(share) == length


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(SpecError, match=f"'share' must lie between 0 and 1; got {share}"):
        string_statistics(SMALL).length_quantile(share)


def test_the_longest_of_one_string_is_the_mean_and_of_many_the_largest() -> None:
    found = law(0.5, 0.25, 0.25)
    assert found.expected_longest(1) == pytest.approx(found.mean_length)
    # Of two: 1 with chance 1/4, 2 with 9/16 - 4/16, 3 with 7/16.
    assert found.expected_longest(2) == pytest.approx((4 + 2 * 5 + 3 * 7) / 16)
    assert found.expected_longest(1000) == pytest.approx(3)
    with pytest.raises(SpecError, match="'num_strings' must be positive; got 0"):
        found.expected_longest(0)


@pytest.mark.parametrize("name", ["cfg3b", "cfg3b-p2", "cfg3f"])
@pytest.mark.parametrize("start", [7, 9, 10, 12])
def test_every_string_has_as_many_derivations_as_writing_them_out_gives(
    name: str, start: int
) -> None:
    grammar = shipped(name, start=start)
    strings = all_strings(grammar, start)
    assert {text: num_derivations(grammar, text) for text in strings} == dict(strings)
    others = set(itertools.product((1, 2, 3), repeat=5)) - set(strings)
    assert not any(num_derivations(grammar, text) for text in sorted(others)[::7])


def test_derivations_of_one_string_are_counted() -> None:
    assert num_derivations(DOUBLED, (1, 1)) == 2
    assert num_derivations(DOUBLED, (1,)) == num_derivations(DOUBLED, ()) == 0


def test_a_symbol_is_no_token() -> None:
    with pytest.raises(DataError, match=r"'string' must hold the terminals \(1,\) only; got 2"):
        num_derivations(DOUBLED, (1, 2))
