"""Probabilistic context-free grammars of the grammar task.

The symbols of a `Grammar` have levels: the rules of a symbol replace it by symbols of the next
lower level, and all rules of a symbol are equally likely. Level 0 has the terminals, so a level is
also the number of rules above a token, and all leaves of a derivation tree are equally deep.

Axes: none; symbols are positive numbers.

Design: a grammar has the rules of all symbols, also above its start, so that a grammar with a lower
start has the same terminals, hence the same vocabulary, and shorter strings.

Source:
    Allen-Zhu and Li 2023, Physics of Language Models, part 1 (arXiv 2305.13673), for `cfg3b` and
    `cfg3f`, as published in facebookresearch/PhysicsLM4. Panigrahi et al. 2024 (arXiv 2410.05464)
    use `cfg3b` without the rule 9 = 2 1, here `cfg3b-p2`.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Final, final

from pydantic import Field

from curricle.errors import SpecError, near_names
from curricle.values import value

Symbol = Annotated[int, Field(gt=0, lt=2**15)]
Rule = tuple[Symbol, Annotated[tuple[Symbol, ...], Field(min_length=1)]]
"""A symbol and its replacement."""


@final
@value
class Grammar:
    """Rules from a start symbol to strings of terminals, level by level."""

    name: str
    """Name in reports."""
    start: Symbol
    """First symbol of every derivation."""
    rules: tuple[Rule, ...]
    """Symbols with their replacements; rules of the same symbol are equally likely."""

    def __post_init__(self) -> None:
        """Check that the rules lead down level by level.

        Raises:
            SpecError: If the start has no rule, a rule occurs twice, or rules form a cycle or lead
                to several levels.
        """
        if self.start not in self.alternatives:
            raise SpecError(
                f"'start' must be a symbol with rules, one of {sorted(self.alternatives)}; "
                f"got {self.start}"
            )
        if len(set(self.rules)) != len(self.rules):
            repeated = next(rule for rule in self.rules if self.rules.count(rule) > 1)
            raise SpecError(
                f"'rules' must differ, for all are equally likely; got {repeated} twice"
            )
        _check_levels(self.alternatives)

    @property
    def alternatives(self) -> dict[int, tuple[tuple[int, ...], ...]]:
        """Return the replacements of each symbol with rules."""
        replacements: dict[int, tuple[tuple[int, ...], ...]] = {}
        for symbol, replacement in self.rules:
            replacements[symbol] = (*replacements.get(symbol, ()), replacement)
        return replacements

    @property
    def terminals(self) -> tuple[int, ...]:
        """Return the symbols without rules, in ascending order."""
        used = {symbol for _, replacement in self.rules for symbol in replacement}
        return tuple(sorted(used - self.alternatives.keys()))

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Return the symbols below the start by level, from terminals to the start."""
        rules = self.alternatives
        levels: list[tuple[int, ...]] = [(self.start,)]
        while levels[-1][0] in rules:
            below = {child for symbol in levels[-1] for right in rules[symbol] for child in right}
            levels.append(tuple(sorted(below)))
        return tuple(reversed(levels))

    @property
    def num_levels(self) -> int:
        """Return the number of rules above every token, the level of the start."""
        return len(self.levels) - 1


def _check_levels(alternatives: Mapping[int, tuple[tuple[int, ...], ...]]) -> None:
    """Check that all replacements of a symbol are of the next lower level.

    Raises:
        SpecError: If not.
    """
    waiting = {
        symbol: {child for right in rights for child in right}
        for symbol, rights in alternatives.items()
    }
    children = set().union(*waiting.values())
    levels = dict.fromkeys(children - waiting.keys(), 0)
    while waiting:
        ready = [symbol for symbol, below in waiting.items() if below <= levels.keys()]
        if not ready:
            raise SpecError(
                f"'rules' must not lead from a symbol back to itself; "
                f"got a circle among {sorted(waiting)}"
            )
        for symbol in ready:
            below = {levels[child] for child in waiting.pop(symbol)}
            if len(below) > 1:
                raise SpecError(
                    f"'rules' must lead from a symbol to symbols of one level; "
                    f"got levels {sorted(below)} from {symbol}"
                )
            levels[symbol] = below.pop() + 1


def written(text: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Return the rules in a text such as `7 = 3 1 | 1 2 3`, one symbol a line.

    Args:
        text: Lines with a symbol, an equals sign, and its replacements, separated by bars.

    Raises:
        SpecError: If a line has another form.
    """
    rules: list[tuple[int, tuple[int, ...]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            symbol, rights = line.split("=")
            rules += [(int(symbol), tuple(map(int, right.split()))) for right in rights.split("|")]
        except ValueError:
            raise SpecError(f"a rule must read like '7 = 3 1 | 1 2 3'; got {line!r}") from None
    return tuple(rules)


_CFG3B: Final = written(
    """
    22 = 21 20    | 20 19
    19 = 16 17 18 | 17 18 16
    20 = 17 16 18 | 16 17
    21 = 18 16    | 16 18 17
    16 = 15 13    | 13 15 14
    17 = 14 13 15 | 15 13 14
    18 = 15 14 13 | 14 13
    13 = 11 12    | 12 11
    14 = 11 10 12 | 10 11 12
    15 = 12 11 10 | 11 12 10
    10 = 7 9 8    | 9 8 7
    11 = 8 7 9    | 7 8 9
    12 = 8 9 7    | 9 7 8
     7 = 3 1      | 1 2 3
     8 = 3 2      | 3 1 2
     9 = 3 2 1    | 2 1
    """
)
_CFG3F: Final = written(
    """
    22 = 20 21    | 20 19 21 | 21 19 19 | 20 20
    19 = 18 16 18 | 17 18    | 18 18
    20 = 16 16    | 16 17    | 17 16 18
    21 = 18 17    | 17 16    | 16 17 18 | 16 18
    16 = 15 15    | 13 15 13 | 14 13    | 14 14
    17 = 15 14 13 | 14 15    | 15 14
    18 = 14 15 13 | 15 13 13 | 13 15
    13 = 11 12    | 12 11 12 | 10 12 11
    14 = 10 12    | 12 10 12 | 12 11    | 10 12 12
    15 = 10 11 11 | 11 11 10 | 10 10    | 12 12 11
    10 = 8 9 9    | 9 7 9    | 7 9 9
    11 = 8 8      | 9 7      | 9 7 7
    12 = 7 9 7    | 9 8      | 8 8 9
     7 = 2 2 1    | 3 2 2    | 3 1 2    | 3 2
     8 = 3 1 1    | 1 2      | 3 3 1
     9 = 1 2 1    | 3 3      | 1 1
    """
)
GRAMMARS: Final = MappingProxyType(
    {
        grammar.name: grammar
        for grammar in (
            Grammar(name="cfg3b", start=22, rules=_CFG3B),
            Grammar(
                name="cfg3b-p2",
                start=22,
                rules=tuple(rule for rule in _CFG3B if rule != (9, (2, 1))),
            ),
            Grammar(name="cfg3f", start=22, rules=_CFG3F),
        )
    }
)
"""The shipped grammars by name; all have the terminals 1, 2 and 3 and the start 22."""


def shipped(name: str, *, start: int | None = None) -> Grammar:
    """Return a shipped grammar with any of its symbols as start.

    Args:
        name: A key of `GRAMMARS`.
        start: First symbol of derivations; None for the grammar's own. Lower ones give shorter
            strings.

    Raises:
        SpecError: If there is no grammar of that name, or no such symbol.
    """
    if name not in GRAMMARS:
        raise SpecError(f"'grammar' {name!r} is not shipped; {near_names(name, GRAMMARS)}")
    grammar = GRAMMARS[name]
    return grammar if start is None else replace(grammar, start=start)
