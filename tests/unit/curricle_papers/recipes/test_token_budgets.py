"""Four budgets, the same models and methods in each."""

from fractions import Fraction
from itertools import pairwise

import pytest

from curricle.curriculum.durations import Duration
from curricle.curriculum.strategies import build
from curricle.runs.spec import RunSpec
from curricle_papers.recipes.recipe import SCALES, Scale
from curricle_papers.recipes.token_budgets import BASELINE, TOKEN_BUDGETS, decoder

EVERY = pytest.mark.parametrize("scale", SCALES)


def specs(scale: Scale) -> list[RunSpec]:
    return [comparison.spec for comparison in TOKEN_BUDGETS.panels(scale).values()]


@EVERY
def test_each_of_four_budgets_is_a_fixed_multiple_of_the_one_before(scale: Scale) -> None:
    tokens = [float(comparison.x or 0) for comparison in TOKEN_BUDGETS.panels(scale).values()]
    budgets = [spec.budget for spec in specs(scale)]
    assert [None if budget is None else budget.number for budget in budgets] == tokens
    ratios = {second / first for first, second in pairwise(tokens)}
    assert len(tokens) == 4
    assert ratios in ({2.0}, {3.0}, {4.0})


@EVERY
def test_panels_differ_in_length_alone(scale: Scale) -> None:
    first, *others = specs(scale)
    for spec in others:
        assert (spec.task, spec.teacher, spec.student) == (first.task, first.teacher, first.student)
        assert (spec.seeds, set(spec.strategies)) == (first.seeds, set(first.strategies))
        rates = {name: strategy.optimizer for name, strategy in spec.strategies.items()}
        assert rates == {name: strategy.optimizer for name, strategy in first.strategies.items()}


@EVERY
def test_methods_end_on_the_logits_except_labels_and_have_the_length_of_the_budget(
    scale: Scale,
) -> None:
    for spec in specs(scale):
        assert spec.budget is not None
        total = spec.budget.duration()
        for name, strategy in spec.strategies.items():
            curriculum = build(strategy.curriculum, total=total, trajectory=None)
            kinds = {objective.kind for objective in curriculum.stages[-1].objectives}
            assert kinds == ({"labels"} if name == "labels" else {"logits"}), name
            tokens = [_tokens(stage.duration.at_most) for stage in curriculum.stages]
            assert min(tokens) >= spec.task.tokens_per_batch
            assert sum(tokens) == total.number


def _tokens(length: Duration) -> Fraction:
    assert length.unit == "tokens"
    return Fraction(length.number, length.divisor)


def test_gains_are_over_one_shot_and_stand_at_flops() -> None:
    chart = TOKEN_BUDGETS.chart
    assert chart.baseline == BASELINE == "one_shot"
    assert chart.x_from == "total_flops"
    assert all(BASELINE in spec.strategies for spec in specs("small"))


def test_a_decoder_has_gated_layers_of_the_usual_proportion() -> None:
    config = decoder(layers=4, heads=4, width=96).config
    assert (config["hidden_size"], config["intermediate_size"]) == (96, 256)
