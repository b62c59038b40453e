"""Ablations of the decisions that the papers leave open for extraction.

Every arm differs from the first, `reference`, in one thing; `learned-projections` differs so from
`own-projections`, since what is learned cannot be shared. On parity arms differ by the
examples to the goal, elsewhere by their final accuracy. On the grammar and on text two arms tell
the *order* of layers from the matching of hidden states: one stage on the last layer alone, with
the same share of the steps, and the same layers matched, through the same projection, beside the
logits all along. These, and one-shot, are also run at a half and a quarter of the learning rate.
"""

from collections.abc import Mapping
from dataclasses import replace

from curricle.figure_points import Chart
from curricle.runs.spec import StrategySpec
from curricle.training.setup.optimizers import Optimizer
from curricle.training.setup.settings import TrainingSettings
from curricle.values import Plain
from curricle_papers.recipes.recipe import Comparison, Recipe, Scale, steps, taps
from curricle_papers.recipes.sparse_parity import (
    COMPILED_STEPS,
    PARITY_CHART,
    PARITY_GOAL,
    SEEDS,
    parity_size,
)
from curricle_papers.recipes.text_and_grammars import (
    GRAMMAR_STEPS,
    grammar_layers,
    pcfg_comparison,
    text_comparison,
)


def _arms(reference: Plain, changes: Mapping[str, Plain]) -> Plain:
    arms = {"reference": reference} | {name: reference | change for name, change in changes.items()}
    return {name: StrategySpec(curriculum=call) for name, call in arms.items()}


def _parity(scale: Scale) -> Comparison:
    layer, total = {"smoke": (20, 60), "small": (750, 4000), "paper": (15_000, 60_000)}[scale]
    every = {"smoke": 20, "small": 100, "paper": 1000}[scale]
    changes: dict[str, Plain] = {
        "sign": {"projection": {"kind": "sign"}},
        "orthogonal": {"projection": {"kind": "orthogonal"}},
        "quarter-scale": {"projection": {"kind": "gaussian", "scale": 0.25}},
        "four-times-scale": {"projection": {"kind": "gaussian", "scale": 4.0}},
        "learned": {"projection": {"kind": "learned"}},
        "learned-layernorm": {"projection": {"kind": "learned"}, "normalize": "layernorm"},
        "centered": {"center": True},
        "layernorm": {"normalize": "layernorm"},
        "rms": {"normalize": "rms"},
        "third-of-stage": {"durations": [f"{layer // 3} steps"]},
        "twice-the-stage": {"durations": [f"{2 * layer} steps"]},
    }
    reference: Plain = {"kind": "extraction", "durations": [f"{layer} steps"]}
    spec = replace(
        parity_size(scale),
        strategies=_arms(reference, changes),
        seeds=SEEDS[scale],
        budget=steps(total),
        goal=PARITY_GOAL,
        engine=TrainingSettings(
            eval_every=every,
            log_every=every,
            threads=1,
            device="cuda" if scale == "paper" else "cpu",
            compiled_steps=COMPILED_STEPS if scale == "paper" else 1,
        ),
    )
    return Comparison(spec=spec, chart=PARITY_CHART)


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
            "own-layer-only": {"trainable": "new"},
            "reset-optimizer": {"optimizer_state": "reset"},
            "schedule-per-stage": {"schedule": "own"},
            "selected-positions": {"positions": "selected"},
        },
    )
    strategies = {
        "hidden-all-along": _hidden_all_along(total, reference),
        "one_shot": StrategySpec(curriculum={"kind": "one_shot"}),
    }
    comparison = pcfg_comparison(scale, total, arms | strategies)
    spec = comparison.spec
    strategies = {**spec.strategies, **_slower(strategies, spec.optimizer)}
    return replace(comparison, spec=replace(spec, strategies=strategies))


def _text(scale: Scale) -> Comparison:
    comparison = text_comparison(scale)
    assert comparison.spec.budget is not None  # noqa: S101 - for the type checker
    methods = comparison.spec.strategies
    extraction = methods["extraction"]
    last = {"smoke": 2, "small": 3, "paper": 12}[scale]
    optimizer = extraction.optimizer or comparison.spec.optimizer
    strategies = {
        "hidden-all-along": _hidden_all_along(
            int(comparison.spec.budget.number), extraction.curriculum
        ),
        "one_shot": methods["one_shot"],
    }
    fast = {name: replace(strategy, optimizer=optimizer) for name, strategy in strategies.items()}
    arms = {
        "reference": extraction,
        **{
            name: replace(extraction, curriculum={**extraction.curriculum, "pairs": taps(tap)})
            for name, tap in (("last-layer-alone", last), ("first-layer-alone", 1))
        },
        **fast,
        **_slower(fast, optimizer),
    }
    return Comparison(
        spec=replace(comparison.spec, output_dir="runs/ablation-text", strategies=arms)
    )


def _hidden_all_along(total: int, extraction: Plain) -> StrategySpec:
    """Return logits, with the layers of an extraction matched beside them to the last step."""
    pairs = extraction["pairs"]
    hidden = [
        {
            "kind": "hidden",
            "pair": pair,
            "weight": 1.0 / len(pairs),
            "shared_projection": extraction["shared_projection"],
        }
        for pair in pairs
    ]
    stage = {
        "name": "all",
        "duration": f"{total} steps",
        "objectives": [{"kind": "logits"}, *hidden],
    }
    return StrategySpec(curriculum={"kind": "staged", "stages": [stage]})


def _slower(arms: Mapping[str, StrategySpec], optimizer: Optimizer) -> dict[str, StrategySpec]:
    """Return arms with a half and a quarter of a learning rate."""
    return {
        f"{name}-{word}": replace(
            strategy, optimizer=replace(optimizer, learning_rate=optimizer.learning_rate * factor)
        )
        for name, strategy in arms.items()
        for word, factor in (("half-rate", 0.5), ("quarter-rate", 0.25))
    }


def _projection(scale: Scale) -> Mapping[str, Comparison]:
    return {"parity": _parity(scale), "grammar": _grammar(scale), "text": _text(scale)}


ABLATION_PROJECTION = Recipe(
    name="ablation-projection",
    title="Effect of projection, normalization, freezing and choice of layers on extraction",
    source="2503.17494, decisions that its public text leaves open",
    known="the original is not published; first measurements on text are in docs/journal.md",
    costs={"smoke": "seconds", "small": "35 min", "paper": "one GPU, some hours"},
    chart=Chart(kind="bars", of="final", y="final accuracy"),
    panels=_projection,
)

RECIPES = (ABLATION_PROJECTION,)
