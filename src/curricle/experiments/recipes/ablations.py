"""What does each decision that the papers leave open do to extraction?

Every arm differs from the first, `reference`, in one thing; `learned-projections` differs so from
`own-projections`, since what is learned cannot be shared. `parity` has a target far away, so its
arms are compared by what they reach within a fixed number of examples. On the grammar and on text
two arms tell the *order* of layers from the matching of hidden states: one stage on the last layer
alone, with the same share of the steps, and hidden states matched beside the logits all along. Arms
with `-slow` in their names have a quarter of the learning rate, and so has one-shot on text.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from curricle.experiments.recipes.language import (
    COSINE,
    GRAMMAR_STEPS,
    TEXT_STEPS,
    WIKIPEDIA_MLM,
    grammar_layers,
    pcfg_comparison,
)
from curricle.experiments.recipes.parity import SEEDS, parity_size
from curricle.experiments.recipes.recipe import Comparison, Recipe, Scale, steps, taps
from curricle.experiments.spec import StrategySpec, Target
from curricle.points import Chart
from curricle.training.optimizers import AdamW
from curricle.training.settings import EngineSettings


def _arms(reference: dict[str, Any], changes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    arms = {"reference": reference} | {name: reference | change for name, change in changes.items()}
    return {name: StrategySpec(curriculum=call) for name, call in arms.items()}


def _parity(scale: Scale) -> Comparison:
    layer, total = {"smoke": (20, 60), "small": (750, 3000), "paper": (15_000, 60_000)}[scale]
    changes: dict[str, dict[str, Any]] = {
        "sign": {"projection": {"kind": "sign"}},
        "orthogonal": {"projection": {"kind": "orthogonal"}},
        "learned": {"projection": {"kind": "learned"}},
        "centered": {"center": True},
        "layernorm": {"normalize": "layernorm"},
        "rms": {"normalize": "rms"},
        "third-of-stage": {"durations": [f"{layer // 3} steps"]},
        "twice-the-stage": {"durations": [f"{2 * layer} steps"]},
    }
    reference: dict[str, Any] = {"kind": "extraction", "durations": [f"{layer} steps"]}
    spec = replace(
        parity_size(scale),
        strategies=_arms(reference, changes),
        seeds=SEEDS[scale],
        budget=steps(total),
        target=Target(),
        engine=EngineSettings(
            evaluate_every=max(total // 30, 10),
            record_every=100,
            threads=1,
            device="cuda" if scale == "paper" else "cpu",
        ),
    )
    return Comparison(spec=spec)


def _grammar(scale: Scale) -> Comparison:
    total = GRAMMAR_STEPS[scale]
    last = 2 if scale == "smoke" else 4
    reference = {"kind": "extraction", **grammar_layers(scale, 3, 0.3)}
    arms = _arms(
        reference,
        {
            "last-layer-alone": {"pairs": taps(last)},
            "first-layer-alone": {"pairs": taps(1)},
            "every-layer": {"pairs": taps(*range(1, last + 1))},
            "plain-states": {"normalize": "none"},
            "own-projections": {"shared_projection": False},
            "learned-projections": {"projection": {"kind": "learned"}, "shared_projection": False},
            "own-layer-only": {"trains": "own"},
            "reset-optimizer": {"optimizer_state": "reset"},
            "schedule-per-stage": {"schedule": "own"},
            "selected-positions": {"positions": "selected"},
        },
    )
    others = {
        "hidden-all-along": _hidden_all_along(total, range(1, last + 1)),
        "one_shot": StrategySpec(curriculum={"kind": "one_shot"}),
    }
    slow = {f"{name}-slow": replace(one, optimizer=_rate(3e-3)) for name, one in others.items()}
    return pcfg_comparison(scale, total, arms | others | slow)


def _text(scale: Scale) -> Comparison:
    (whole,) = WIKIPEDIA_MLM.panels(scale).values()
    methods = whole.spec.strategies
    extraction = methods["extraction"]
    last = 12 if scale == "paper" else 2 if scale == "smoke" else 4
    kept = _hidden_all_along(TEXT_STEPS[scale], range(1, last + 1))
    arms = {
        "reference": extraction,
        **{
            name: replace(extraction, curriculum={**extraction.curriculum, "pairs": taps(tap)})
            for name, tap in (("last-layer-alone", last), ("first-layer-alone", 1))
        },
        "hidden-all-along": replace(kept, optimizer=extraction.optimizer),
        "hidden-all-along-slow": kept,
        "one_shot": methods["one_shot"],
    }
    return Comparison(spec=replace(whole.spec, output_dir="runs/ablation-text", strategies=arms))


def _hidden_all_along(total: int, read: Iterable[int]) -> StrategySpec:
    """Return logits with hidden states matched beside them from the first step to the last."""
    pairs = taps(*read)
    hidden = [{"kind": "hidden", "pair": pair, "weight": 1.0 / len(pairs)} for pair in pairs]
    stage = {
        "name": "all",
        "duration": f"{total} steps",
        "objectives": [{"kind": "logits"}, *hidden],
    }
    return StrategySpec(curriculum={"kind": "staged", "stages": [stage]})


def _rate(rate: float) -> AdamW:
    return AdamW(learning_rate=rate, betas=(0.9, 0.95), schedule=COSINE)


def _projection(scale: Scale) -> Mapping[str, Comparison]:
    return {"parity": _parity(scale), "grammar": _grammar(scale), "text": _text(scale)}


ABLATION_PROJECTION = Recipe(
    name="ablation-projection",
    title="What projection, normalization, freezing and the choice of layers do to extraction",
    source="2503.17494, decisions that its public text leaves open",
    known="nothing is known of the original; first looks at text are in docs/journal.md",
    costs={"smoke": "seconds", "small": "35 min", "paper": "one GPU, some hours"},
    chart=Chart(kind="bars", of="final", y="final accuracy"),
    panels=_projection,
)

RECIPES = (ABLATION_PROJECTION,)
