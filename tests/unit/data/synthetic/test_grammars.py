"""Grammars: what a value refuses, its levels, and the shipped rules."""

from dataclasses import replace

import pytest

from curricle.data.synthetic.grammars import GRAMMARS, Grammar, shipped, written
from curricle.errors import SpecError
from curricle.values import fingerprint, parse, plain

SMALL = Grammar(name="small", start=6, rules=written("6 = 5 4 | 4\n5 = 1 2\n4 = 2 | 1 1"))


def test_rules_are_read_line_by_line() -> None:
    assert written("\n 7 = 3 1 | 1 2 3 \n\n 8 = 2\n") == ((7, (3, 1)), (7, (1, 2, 3)), (8, (2,)))


@pytest.mark.parametrize("line", ["7 - 3", "7 = a", "= 3", "7 = 3 = 1"])
def test_a_line_that_is_no_rule_is_refused(line: str) -> None:
    with pytest.raises(SpecError, match=rf"^a rule must read like '7 = 3 1 .*; got '{line}'$"):
        written(line)


def test_symbols_without_rules_are_terminals() -> None:
    assert SMALL.terminals == (1, 2)
    assert SMALL.alternatives == {6: ((5, 4), (4,)), 5: ((1, 2),), 4: ((2,), (1, 1))}


def test_levels_run_from_the_terminals_to_the_start() -> None:
    assert SMALL.levels == ((1, 2), (4, 5), (6,))
    assert SMALL.num_levels == 2


def test_a_lower_start_keeps_the_terminals_and_has_fewer_levels() -> None:
    lower = replace(SMALL, start=5)
    assert lower.levels == ((1, 2), (5,))
    assert lower.terminals == SMALL.terminals


def test_a_grammar_is_read_back_from_plain_data() -> None:
    assert parse(Grammar, plain(SMALL)) == SMALL
    assert fingerprint(replace(SMALL, start=5)) != fingerprint(SMALL)


@pytest.mark.parametrize(
    ("start", "rules", "sentence"),
    [
        (1, "2 = 1", r"'start' must be a symbol with rules, one of \[2\]; got 1"),
        (2, "2 = 1 | 1", r"'rules' must differ, .*; got \(2, \(1,\)\) twice"),
        (3, "3 = 2\n2 = 3", r"'rules' must not lead .* itself; got a circle among \[2, 3\]"),
        (3, "3 = 2 1\n2 = 1", r"'rules' must lead .* of one level; got levels \[0, 1\] from 3"),
        (2, "2 = 0", "'Grammar.rules.0.1.0' .*greater than 0; got 0"),
        (2, "2 = 40000", "less than 32768; got 40000"),
        (2, "2 = ", "'Grammar.rules.0.1' .*at least 1 item"),
    ],
)
def test_a_mistake_in_a_grammar_is_told(start: int, rules: str, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        Grammar(name="wrong", start=start, rules=written(rules))


@pytest.mark.parametrize(("name", "rules"), [("cfg3b", 32), ("cfg3b-p2", 31), ("cfg3f", 54)])
def test_shipped_grammars_have_six_levels_of_three_symbols_above_the_terminals(
    name: str, rules: int
) -> None:
    grammar = shipped(name)
    assert len(grammar.rules) == rules
    assert grammar.levels == (
        (1, 2, 3),
        (7, 8, 9),
        (10, 11, 12),
        (13, 14, 15),
        (16, 17, 18),
        (19, 20, 21),
        (22,),
    )


def test_the_variant_lacks_one_rule() -> None:
    assert set(shipped("cfg3b").rules) - set(shipped("cfg3b-p2").rules) == {(9, (2, 1))}


def test_a_shipped_grammar_begins_at_any_symbol() -> None:
    assert shipped("cfg3f", start=16).levels[-1] == (16,)
    with pytest.raises(SpecError, match=r"'start' must be a symbol with rules, .*; got 3$"):
        shipped("cfg3f", start=3)


def test_a_misspelt_name_is_told_with_those_that_are_there() -> None:
    with pytest.raises(SpecError, match="'grammar' 'cfg3c' is not shipped; did you mean 'cfg3"):
        shipped("cfg3c")
    assert set(GRAMMARS) == {"cfg3b", "cfg3b-p2", "cfg3f"}
