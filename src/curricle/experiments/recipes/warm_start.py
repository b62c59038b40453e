"""What is it worth to begin with the teacher's embeddings instead of random ones?

The task, teacher and rates of `wikipedia-mlm`. Every arm with a start differs from its method only
in that; the random start before extraction is the projection that all its layers share.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from curricle.experiments.recipes.language import WIKIPEDIA_MLM
from curricle.experiments.recipes.recipe import Comparison, Recipe, Scale
from curricle.experiments.spec import StrategySpec
from curricle.points import Chart

RANDOM, PRINCIPAL = ({"kind": kind} for kind in ("random", "principal"))
STARTS: Mapping[str, tuple[str, dict[str, str]]] = {
    "one_shot+random": ("one_shot", RANDOM),
    "one_shot+principal": ("one_shot", PRINCIPAL),
    "extraction+random": ("extraction", RANDOM),
}
"""Arms by name: the method, and what it begins with."""


def _started(method: StrategySpec, start: dict[str, str]) -> StrategySpec:
    call: dict[str, Any] = {**method.curriculum, "start": start}
    return replace(method, curriculum=call)


def _text(scale: Scale) -> Mapping[str, Comparison]:
    (whole,) = WIKIPEDIA_MLM.panels(scale).values()
    spec = replace(whole.spec, output_dir="runs/warm-start")
    methods = {name: spec.strategies[name] for name in ("one_shot", "extraction")}
    arms = {name: _started(methods[method], start) for name, (method, start) in STARTS.items()}
    return {"text": Comparison(spec=replace(spec, strategies=methods | arms))}


WARM_START = Recipe(
    name="warm-start",
    title="What a student gains that begins with its teacher's embeddings",
    source="none; ours",
    known="nothing: the papers begin with random weights",
    costs={"smoke": "seconds", "small": "25 min", "paper": "one GPU, a day or more"},
    chart=Chart(kind="bars", of="final", y="final accuracy"),
    panels=_text,
)

RECIPES = (WARM_START,)
