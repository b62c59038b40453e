"""What is it worth to begin with the teacher's embeddings instead of random ones?

The masked tokens of `wikipedia-mlm` with a short window and narrower models, so that five
strategies take little longer than one there. Every arm with a start differs from its method only in
that; the random start before extraction is the projection that all its layers share. Rates are
those of the methods without a start, found at the larger size.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from curricle.experiments.recipes.language import COSINE, WIKIPEDIA_MLM, encoder
from curricle.experiments.recipes.recipe import Comparison, Recipe, Scale, length, steps
from curricle.experiments.spec import RunSpec, StrategySpec
from curricle.experiments.tasks import TextTask
from curricle.points import Chart
from curricle.training.optimizers import AdamW

RANDOM, PRINCIPAL = ({"kind": kind} for kind in ("random", "principal"))
STARTS: Mapping[str, tuple[str, dict[str, str]]] = {
    "one_shot+random": ("one_shot", RANDOM),
    "one_shot+principal": ("one_shot", PRINCIPAL),
    "extraction+random": ("extraction", RANDOM),
}
"""Arms by name: the method, and what it begins with."""


def _sized(scale: Scale) -> RunSpec:
    """Return the task and the models, with the strategies of `wikipedia-mlm`."""
    (whole,) = WIKIPEDIA_MLM.panels(scale).values()
    spec = replace(whole.spec, output_dir="runs/warm-start")
    if scale != "small":
        return spec
    wide, narrow = (
        encoder(layers=4, heads=4, width=width, model_type="modernbert") for width in (192, 48)
    )
    return replace(
        spec,
        task=TextTask(vocabulary_size=2048, window=48, batch_size=32, evaluation_batches=60),
        teacher=replace(
            spec.teacher,
            model=wide,
            total=length(1500),
            checkpoints=1,
            optimizer=AdamW(learning_rate=2e-3, schedule=COSINE),
        ),
        student=narrow,
        budget=steps(800),
    )


def _started(method: StrategySpec, start: dict[str, str]) -> StrategySpec:
    call: dict[str, Any] = {**method.curriculum, "start": start}
    return replace(method, curriculum=call)


def _text(scale: Scale) -> Mapping[str, Comparison]:
    spec = _sized(scale)
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
