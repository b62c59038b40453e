"""Exact statistics of the strings of a grammar.

The distribution of the lengths, the expected number of each terminal and the entropy follow from
the rules by a dynamic program over the levels: given the rule above them, subtrees are independent.
`num_derivations` counts the derivation trees of a string.

Axes: length (number of terminals, from 0), terminal.

Design: float64 throughout. The numbers are exact up to its rounding, about one part in 10^15.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import final

import numpy as np
from jaxtyping import Float

from curricle.data.synthetic.grammars import Grammar
from curricle.errors import DataError, SpecError


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StringStatistics:
    """Distribution of the strings of a symbol."""

    length_probabilities: Float[np.ndarray, " length"]
    """Probability of each length, from 0 to the largest with a positive probability."""
    token_counts: Mapping[int, float]
    """Expected number of each terminal in a string."""
    entropy: float
    """Entropy of the derivation in bits; equal to that of the string in unambiguous grammars."""

    @property
    def min_length(self) -> int:
        """Return the length of the shortest string, in tokens."""
        return int(np.flatnonzero(self.length_probabilities)[0])

    @property
    def max_length(self) -> int:
        """Return the length of the longest string, in tokens."""
        return len(self.length_probabilities) - 1

    @property
    def mean_length(self) -> float:
        """Return the expected length, in tokens."""
        return float(self.length_probabilities @ np.arange(len(self.length_probabilities)))

    @property
    def sd_length(self) -> float:
        """Return the standard deviation of the length, in tokens."""
        squared = (np.arange(len(self.length_probabilities)) - self.mean_length) ** 2
        return math.sqrt(float(self.length_probabilities @ squared))

    @property
    def token_frequencies(self) -> dict[int, float]:
        """Return the share of each terminal in all tokens."""
        return {token: count / self.mean_length for token, count in self.token_counts.items()}

    @property
    def entropy_per_token(self) -> float:
        """Return the entropy of the derivation divided by the expected length, in bits."""
        return self.entropy / self.mean_length

    def length_quantile(self, share: float) -> int:
        """Return the smallest length not exceeded by a share of the strings.

        Args:
            share: Between 0 and 1.

        Raises:
            SpecError: If it is not.
        """
        if not 0 <= share <= 1:
            raise SpecError(f"'share' must lie between 0 and 1; got {share}")
        # Probabilities with the exact sum of a share may miss it by rounding.
        reached = np.cumsum(self.length_probabilities) >= share - 1e-12
        return max(int(reached.argmax()), self.min_length)

    def expected_longest(self, num_strings: int) -> float:
        """Return the expected length of the longest of n independent strings, in tokens.

        E max = sum over l >= 0 of 1 - P(length <= l)^n.

        Args:
            num_strings: n; positive.

        Raises:
            SpecError: If it is not.
        """
        if num_strings < 1:
            raise SpecError(f"'num_strings' must be positive; got {num_strings}")
        shorter = np.cumsum(self.length_probabilities[:-1]) ** num_strings
        return float(np.sum(1 - shorter))


def string_statistics(grammar: Grammar) -> StringStatistics:
    """Return the distribution of the strings of a grammar."""
    terminals, rules = grammar.terminals, grammar.alternatives
    unit = np.array([0.0, 1.0])
    laws = {
        terminal: StringStatistics(
            length_probabilities=unit,
            token_counts={token: float(token == terminal) for token in terminals},
            entropy=0.0,
        )
        for terminal in terminals
    }
    for level in grammar.levels[1:]:
        for symbol in level:
            rights = [[laws[child] for child in right] for right in rules[symbol]]
            laws[symbol] = _mixture(rights, terminals)
    return laws[grammar.start]


def _mixture(
    rights: Sequence[Sequence[StringStatistics]], terminals: Sequence[int]
) -> StringStatistics:
    """Return the distribution of equally likely rows of independent symbols."""
    lengths = [reduce(np.convolve, (law.length_probabilities for law in row)) for row in rights]
    mixture = np.zeros(max(map(len, lengths)))
    for probabilities in lengths:
        mixture[: len(probabilities)] += probabilities / len(rights)
    laws = [law for row in rights for law in row]
    return StringStatistics(
        length_probabilities=mixture,
        token_counts={
            token: sum(law.token_counts[token] for law in laws) / len(rights) for token in terminals
        },
        entropy=math.log2(len(rights)) + sum(law.entropy for law in laws) / len(rights),
    )


def num_derivations(grammar: Grammar, string: Sequence[int]) -> int:
    """Return the number of derivations of a string from the start; 0 if it is not in the grammar.

    N_s[i, j], the number of derivations of the tokens from i up to j from symbol s, is the sum over
    the rules of s of the matrix product of the replacements' N. Exact below 2^53; takes about a
    second for a string of 400 tokens.

    Args:
        grammar: The grammar.
        string: Terminals, as symbols of the grammar.

    Raises:
        DataError: If a token is not a terminal.
    """
    foreign = set(string) - set(grammar.terminals)
    if foreign:
        raise DataError(
            f"'string' must hold the terminals {grammar.terminals} only; got {min(foreign)}"
        )
    size, tokens = len(string), np.array(string, dtype=np.int64)
    counts = {terminal: np.zeros((size + 1, size + 1)) for terminal in grammar.terminals}
    for terminal, matrix in counts.items():
        places = np.flatnonzero(tokens == terminal)
        matrix[places, places + 1] = 1
    rules = grammar.alternatives
    for level in grammar.levels[1:]:
        for symbol in level:
            products = [
                reduce(np.matmul, (counts[child] for child in right)) for right in rules[symbol]
            ]
            counts[symbol] = np.sum(products, axis=0)
    return int(counts[grammar.start][0, size])
