"""What holds for strings of any grammar, begun anywhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curricle.data.synthetic.derivations import Derivations, Sampler
from curricle.data.synthetic.grammar_statistics import num_derivations, string_statistics
from curricle.data.synthetic.grammars import GRAMMARS, Grammar, shipped
from curricle.seeding import numpy_generator

# Names and symbols rather than grammars: the shape checks draw from Python's own generator, which
# hypothesis does not want in its strategies.
names = st.sampled_from(sorted(GRAMMARS))
starts = st.integers(7, 22)
# Strings of at most a few dozen tokens, for which a chart is filled in a moment.
low_starts = st.integers(7, 15)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**40)
# Five standard errors: a right sampler fails one time in two million.
FIVE = 5


def draw(grammar: Grammar, size: int, seed: int) -> Derivations:
    return Sampler(grammar).draw(size, numpy_generator(seed, "property"))


@given(name=names, start=low_starts, seed=seeds)
def test_every_string_is_in_the_grammar(name: str, start: int, seed: int) -> None:
    grammar = shipped(name, start=start)
    assert all(num_derivations(grammar, string) for string in draw(grammar, 3, seed).strings())


@settings(max_examples=3)
@given(name=names, seed=seeds)
def test_a_string_of_full_length_is_in_the_grammar(name: str, seed: int) -> None:
    grammar = shipped(name)
    assert num_derivations(grammar, draw(grammar, 1, seed).strings()[0])


@given(name=names, start=starts, size=sizes, seed=seeds)
def test_lengths_lie_in_their_range(name: str, start: int, size: int, seed: int) -> None:
    grammar = shipped(name, start=start)
    law, lengths = string_statistics(grammar), draw(grammar, size, seed).lengths
    assert len(lengths) == size
    assert law.min_length <= lengths.min() <= lengths.max() <= law.max_length
    assert (law.length_probabilities[lengths] > 0).all()


@given(name=names, start=starts, size=sizes, seed=seeds)
def test_the_same_stream_gives_the_same_trees(name: str, start: int, size: int, seed: int) -> None:
    grammar = shipped(name, start=start)
    one, other = draw(grammar, size, seed), draw(grammar, size, seed)
    assert np.array_equal(one.ancestors, other.ancestors)
    assert np.array_equal(one.ends, other.ends)


@given(name=names, start=starts, size=sizes, seed=seeds)
def test_below_every_span_stands_one_of_its_symbols_rules(
    name: str, start: int, size: int, seed: int
) -> None:
    grammar = shipped(name, start=start)
    drawn, rules = draw(grammar, size, seed), set(grammar.rules)
    for level in range(1, len(drawn.ends)):
        stops = np.flatnonzero(drawn.ends[level])
        inner = np.flatnonzero(drawn.ends[level - 1])
        for start, stop in zip([-1, *stops[:-1]], stops, strict=True):
            assert len(set(drawn.ancestors[level, start + 1 : stop + 1])) == 1
            children = drawn.ancestors[level - 1, inner[(inner > start) & (inner <= stop)]]
            assert (int(drawn.ancestors[level, stop]), tuple(children.tolist())) in rules


@given(name=names, start=starts, size=sizes, seed=seeds)
def test_spans_end_where_those_above_end(name: str, start: int, size: int, seed: int) -> None:
    drawn = draw(shipped(name, start=start), size, seed)
    assert drawn.ends[0].all()
    assert not (drawn.ends[1:] & ~drawn.ends[:-1]).any()
    assert np.array_equal(np.flatnonzero(drawn.ends[-1]) + 1, np.cumsum(drawn.lengths))


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_samples_agree_with_the_exact_law(name: str) -> None:
    law, number = string_statistics(shipped(name)), 4_000
    drawn = draw(shipped(name), number, seed=1)
    error = law.sd_length / math.sqrt(number)
    assert abs(drawn.lengths.mean() - law.mean_length) < FIVE * error
    spread = (np.arange(law.max_length + 1) - law.mean_length) ** 2
    # The variance of a sample variance is (m4 - sd^4) / n, with m4 the fourth central moment.
    error = math.sqrt((float(law.length_probabilities @ spread**2) - law.sd_length**4) / number)
    assert abs(drawn.lengths.var() - law.sd_length**2) < FIVE * error
    for token, count in law.token_counts.items():
        each = drawn.padded(drawn.tokens == token, num_positions=law.max_length, fill=0).sum(1)
        assert abs(each.mean() - count) < FIVE * each.std() / math.sqrt(number)
    for share in (0.1, 0.5, 0.9):
        below = float((drawn.lengths <= law.length_quantile(share)).mean())
        exact = law.length_probabilities[: law.length_quantile(share) + 1].sum()
        assert abs(below - exact) < FIVE * math.sqrt(exact * (1 - exact) / number)
