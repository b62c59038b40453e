"""Random strings of a grammar, with their derivation trees.

All strings of a draw are expanded at once, level by level: one random number a symbol picks its
rule, and the replacements of all symbols make the row of the next level. A draw is therefore a few
dozen calls of numpy, independent of its size.

Axes: example (strings of a draw), token (all tokens of all strings, one string after the other),
level (0 for the tokens themselves, up to the level of the start), position (places of a padded
string).

Design: ancestors and the ends of spans are made for every token and level, in a layout without
padding, because labels of probes and losses at the ends of spans are then plain selections.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Int, Shaped

from curricle.data.synthetic.grammars import Grammar
from curricle.errors import DataError, SpecError

IGNORED = -100
"""Label of places without a token, as in torch's losses."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Derivations:
    """Strings with the symbols above each of their tokens."""

    lengths: Int[np.ndarray, " example"]
    """Tokens of each string."""
    ancestors: Int[np.ndarray, "level token"]
    """Symbol above each token at each level, as numbered in the grammar."""
    ends: Bool[np.ndarray, "level token"]
    """True where a token is the last that the symbol above it covers; always, at level 0."""

    @property
    def tokens(self) -> Int[np.ndarray, " token"]:
        """Return the terminals, as numbered in the grammar."""
        tokens: Int[np.ndarray, " token"] = self.ancestors[0]
        return tokens

    def strings(self) -> list[list[int]]:
        """Return the terminals of each string."""
        borders = np.cumsum(self.lengths)[:-1]
        return [tokens.tolist() for tokens in np.split(self.tokens, borders)]

    def padded(
        self, values: Shaped[np.ndarray, " token"], *, num_positions: int, fill: int
    ) -> Shaped[np.ndarray, "example position"]:
        """Return values of the tokens as rows of equal length, one row per string.

        Args:
            values: One value a token, for example `ancestors[2]`.
            num_positions: Length of the rows.
            fill: Value after the end of a string.

        Raises:
            DataError: If a string is longer than the rows.
        """
        if len(self.lengths) and self.lengths.max() > num_positions:
            raise DataError(
                f"'num_positions' must hold the longest string, {self.lengths.max()} tokens; "
                f"got {num_positions}"
            )
        rows = np.full((len(self.lengths), num_positions), fill, dtype=values.dtype)
        # Rows are filled in the order in which the strings follow each other.
        rows[np.arange(num_positions) < self.lengths[:, None]] = values
        return rows

    def ancestor_labels(self, *, num_positions: int) -> Int[np.ndarray, "example position level"]:
        """Return the symbol above each token at each level as labels for a probe.

        Args:
            num_positions: Length of the rows; labels are -100 after the end of a string.
        """
        rows = [
            self.padded(symbols, num_positions=num_positions, fill=IGNORED)
            for symbols in self.ancestors
        ]
        return np.stack(rows, axis=-1).astype(np.int64)


@final
class Sampler:
    """Draws derivations of a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        """Turn the rules into tables.

        Args:
            grammar: The grammar; the draws begin at its start.
        """
        self.grammar = grammar
        alternatives = grammar.alternatives
        self._num_levels = grammar.num_levels
        longest = max(len(right) for rights in alternatives.values() for right in rights)
        size = max(alternatives) + 1
        self._first = np.zeros(size, dtype=np.int64)
        self._number = np.zeros(size)
        self._replacements = np.zeros((len(grammar.rules), longest), dtype=np.int16)
        rule = 0
        for symbol, rights in alternatives.items():
            self._first[symbol], self._number[symbol] = rule, len(rights)
            for right in rights:
                self._replacements[rule, : len(right)] = right
                rule += 1
        self._lengths = np.count_nonzero(self._replacements, axis=1)

    def draw(self, num_strings: int, generator: np.random.Generator) -> Derivations:
        """Return independent derivations.

        Args:
            num_strings: How many; positive.
            generator: Where the random numbers come from; read once a level.

        Raises:
            SpecError: If the number of strings is not positive.
        """
        if num_strings < 1:
            raise SpecError(f"'num_strings' must be positive; got {num_strings}")
        # From the start down: the symbols of each level, and how many symbols replace each.
        rows = [np.full(num_strings, self.grammar.start, dtype=np.int16)]
        counts: list[Int[np.ndarray, " symbol"]] = []
        for _ in range(self._num_levels):
            symbols = rows[-1]
            picks = (generator.random(len(symbols)) * self._number[symbols]).astype(np.int64)
            rules = self._first[symbols] + picks
            replacements = self._replacements[rules]
            rows.append(replacements[replacements != 0])
            counts.append(self._lengths[rules])
        return self._with_ancestors(rows[::-1], counts[::-1])

    def _with_ancestors(
        self, rows: list[Int[np.ndarray, " _"]], counts: list[Int[np.ndarray, " _"]]
    ) -> Derivations:
        """Return the derivations, from the symbols of the levels 0 to the start."""
        tokens = rows[0]
        ancestors = np.empty((len(rows), len(tokens)), dtype=np.int16)
        ends = np.zeros(ancestors.shape, dtype=np.bool_)
        ancestors[0], ends[0] = tokens, True
        widths = np.ones(len(tokens), dtype=np.int64)
        for level, (symbols, count) in enumerate(zip(rows[1:], counts, strict=True), start=1):
            widths = np.add.reduceat(widths, np.cumsum(count) - count)
            ancestors[level] = np.repeat(symbols, widths)
            ends[level, np.cumsum(widths) - 1] = True
        return Derivations(lengths=widths, ancestors=ancestors, ends=ends)
