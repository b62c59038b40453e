"""Random strings of a grammar with their derivation trees.

All strings of a draw are expanded together, level by level: a random number for each symbol picks
its rule, and the replacements of all symbols are the row of the next level. So a draw of any size
takes a few dozen calls of numpy.

Axes: example (strings of a draw), token (all tokens of all strings, one string after the other),
level (0 for the tokens themselves, up to the level of the start), position (places of a padded
string).

Design: ancestors and the ends of spans are computed for every token and level, in a layout without
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
    """Symbol above each token at each level, with the numbers of the grammar."""
    ends: Bool[np.ndarray, "level token"]
    """True at the last token below each symbol of a level; everywhere at level 0."""

    @property
    def tokens(self) -> Int[np.ndarray, " token"]:
        """Return the terminals, with the numbers of the grammar."""
        tokens: Int[np.ndarray, " token"] = self.ancestors[0]
        return tokens

    def strings(self) -> list[list[int]]:
        """Return the terminals of each string."""
        borders = np.cumsum(self.lengths)[:-1]
        return [string.tolist() for string in np.split(self.tokens, borders)]

    def padded(
        self, values: Shaped[np.ndarray, " token"], *, num_positions: int, fill: int
    ) -> Shaped[np.ndarray, "example position"]:
        """Return values of tokens as a row of equal length for each string.

        Args:
            values: A value for each token, for example `ancestors[2]`.
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
        # Assignment by a mask fills rows in order, as the strings follow each other.
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
    """Sampler of derivations of a grammar."""

    def __init__(self, grammar: Grammar) -> None:
        """Convert the rules to tables.

        Args:
            grammar: The grammar.
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
            num_strings: Number of derivations; positive.
            generator: Source of random numbers; read once a level.

        Raises:
            SpecError: If the number is not positive.
        """
        if num_strings < 1:
            raise SpecError(f"'num_strings' must be positive; got {num_strings}")
        # From the start down: the symbols of each level, and the number of their replacements.
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
