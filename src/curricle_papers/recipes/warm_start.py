"""Value of an initialization from the teacher's embeddings.

Tasks, teachers and rates of the recipes for text, grammar and parities; on parities the arms are
compared by the examples to the target. Every arm with a start differs from its method only in the
start; the random start before extraction is the shared projection of its layers. Principal
components are used on text alone: elsewhere the teacher has fewer token vectors than the student
has dimensions.
"""

from collections.abc import Mapping
from dataclasses import replace

from curricle.figure_points import Chart
from curricle.runs.spec import StrategySpec
from curricle.values import Plain
from curricle_papers.recipes.recipe import Comparison, Recipe, Scale, four_strategies, steps
from curricle_papers.recipes.sparse_parity import (
    PARITY_CHART,
    PARITY_MLP,
    PARITY_TARGET,
    PARITY_TRANSFORMER,
)
from curricle_papers.recipes.text_and_grammars import (
    GRAMMAR_STEPS,
    grammar_layers,
    pcfg_comparison,
    text_comparison,
)

RANDOM, PRINCIPAL = ({"kind": kind} for kind in ("random", "principal"))
STARTS: Mapping[str, tuple[str, dict[str, str]]] = {
    "one_shot+random": ("one_shot", RANDOM),
    "one_shot+principal": ("one_shot", PRINCIPAL),
    "extraction+random": ("extraction", RANDOM),
}
"""Arms by name: the method and its initialization."""
PARITY_STEPS: Mapping[str, Mapping[Scale, int]] = {
    "parity": {"smoke": 60, "small": 3000, "paper": 60_000},
    "transformer": {"smoke": 30, "small": 1200, "paper": 60_000},
}
"""Steps of a student on the parities."""


def _panels(scale: Scale) -> Mapping[str, Comparison]:
    extraction = grammar_layers(scale, 3, 0.3)
    grammar = pcfg_comparison(scale, GRAMMAR_STEPS[scale], four_strategies(extraction))
    panels = {"text": _compared(text_comparison(scale)), "grammar": _compared(grammar)}
    for recipe in (PARITY_MLP, PARITY_TRANSFORMER):
        ((name, comparison),) = recipe.panels(scale).items()
        budget = steps(PARITY_STEPS[name][scale])
        spec = replace(comparison.spec, budget=budget, target=PARITY_TARGET)
        panels[name] = _compared(replace(comparison, spec=spec, chart=PARITY_CHART))
    return panels


def _compared(comparison: Comparison) -> Comparison:
    """Return a recipe's panel with its methods begun in several ways."""
    spec = comparison.spec
    extraction = spec.strategies["extraction"]
    shared = replace(extraction, curriculum={**extraction.curriculum, "shared_projection": True})
    methods = {"one_shot": spec.strategies["one_shot"], "extraction": shared}
    arms = {
        name: _started(methods[method], start)
        for name, (method, start) in STARTS.items()
        if start is not PRINCIPAL or spec.task.kind == "text"
    }
    return replace(comparison, spec=replace(spec, strategies=methods | arms))


def _started(method: StrategySpec, start: dict[str, str]) -> StrategySpec:
    call: Plain = {**method.curriculum, "init": start}
    return replace(method, curriculum=call)


WARM_START = Recipe(
    name="warm-start",
    title="Gain from an initialization with the teacher's embeddings",
    source="none; ours",
    known="nothing: the papers begin with random weights",
    costs={"smoke": "seconds", "small": "25 min", "paper": "one GPU, a day or more"},
    chart=Chart(kind="bars", of="final", y="final accuracy"),
    panels=_panels,
)

RECIPES = (WARM_START,)
