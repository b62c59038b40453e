"""Layer pairs of strategies, and the terms that compare the states at them.

A strategy takes its pairs as a list or as a number, and the objective of its layers as fields
without a pair: the same objective is made for each pair.
"""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, Field

from curricle.errors import SpecError
from curricle.objectives.hidden import LayerPair, MatchHidden, NamedPair
from curricle.objectives.matched_geometries import MatchCKA, MatchProcrustes
from curricle.objectives.matched_relations import MatchRelations
from curricle.values import Plain, parse, plain

MOST_PAIRS = 1_000
"""Maximum number of layer pairs, hence of stages."""
LayerTerm = MatchHidden | MatchCKA | MatchProcrustes | MatchRelations
"""Objective at a layer pair."""
LAYER_TERM = Annotated[LayerTerm, Field(discriminator="kind")]
"""Field type of such an objective, selected by `kind`."""


def _as_pairs(pairs: object) -> object:
    """Return a single layer pair, or its fields, as a list of one."""
    return (pairs,) if isinstance(pairs, (LayerPair, Mapping)) else pairs


Pairs = Annotated[tuple[NamedPair, ...] | int, BeforeValidator(_as_pairs)]
"""Type of a `checked` function's argument: layer pairs, a single one, or their number."""


LayerObjective = Plain | str
"""Fields of an objective at a layer pair without the pair, or its kind alone."""


def evenly_spaced_pairs(num_pairs: int) -> tuple[LayerPair, ...]:
    """Return layer pairs spread evenly over the depth of both models.

    Pair i of r lies at depth i / (r + 1) of the student, so the last block is trained by the logits
    only if there are more blocks than pairs, and at the same depth of the teacher: three pairs of
    4 and 8 blocks are 1-2, 2-4 and 3-6, as are those of 3 and 6 blocks, and the single pair of a
    one-block model is its only tap.

    Raises:
        SpecError: If `num_pairs` is not positive, or more than 1,000.
    """
    if not 1 <= num_pairs <= MOST_PAIRS:
        raise SpecError(f"'num_pairs' must lie between 1 and {MOST_PAIRS:,}; got {num_pairs}")
    fractions = [float(Fraction(i, num_pairs + 1)) for i in range(1, num_pairs + 1)]
    return tuple(LayerPair(student=depth, teacher=depth) for depth in fractions)


def listed_pairs(pairs: tuple[LayerPair, ...] | int) -> tuple[LayerPair, ...]:
    """Return layer pairs, evenly spaced ones for a number.

    Args:
        pairs: The pairs or their number.

    Raises:
        SpecError: If there are none.
    """
    listed = evenly_spaced_pairs(pairs) if isinstance(pairs, int) else pairs
    if not listed:
        raise SpecError(f"'pairs' must hold at least one layer pair; got {listed}")
    return listed


def layer_terms(
    pairs: tuple[LayerPair, ...], objective: LayerObjective, *, weight: float = 1.0
) -> tuple[LayerTerm, ...]:
    """Return a term for each layer pair; together they weigh as much as one.

    Args:
        pairs: The layer pairs.
        objective: Fields of the objective without `pair`, or its kind.
        weight: Factor of the mean over the pairs.

    Raises:
        SpecError: If the objective is not one of layers, or has a wrong field.
    """
    fields = {"kind": objective} if isinstance(objective, str) else objective
    if "pair" in fields:
        raise SpecError(
            f"'layer_objective' must have no 'pair', since 'pairs' holds the "
            f"taps; got {objective!r}"
        )
    terms: list[LayerTerm] = [
        parse(LAYER_TERM, {**fields, "pair": plain(pair)}, source="'layer_objective'")
        for pair in pairs
    ]
    return tuple(replace(term, weight=term.weight * weight / len(pairs)) for term in terms)
