"""What does each decision that the papers leave open do to extraction?

Every arm differs from the first, `reference`, in one thing. `parity` has a target far away, so its
arms are compared by what they reach within a fixed number of examples. On the grammar two arms tell
the *order* of layers from the matching of hidden states: one stage on the last layer alone, with
the same share of the steps, and hidden states matched beside the logits all along.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from curricle.experiments.recipes.language import BUDGETS, pcfg_comparison
from curricle.experiments.recipes.parity import SEEDS, parity_size
from curricle.experiments.recipes.recipe import Comparison, Recipe, Scale, steps, taps
from curricle.experiments.spec import StrategySpec, Target
from curricle.points import Chart
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
    total = BUDGETS[scale][0]
    last = 2 if scale == "smoke" else 4
    kept = [{"kind": "logits"}] + [
        {"kind": "hidden", "pair": {"student": tap, "teacher": tap}, "weight": 1.0 / last}
        for tap in range(1, last + 1)
    ]
    reference: dict[str, Any] = {
        "kind": "extraction",
        "pairs": taps(*range(1, last + 1)),
        "share": 0.4,
    }
    arms = _arms(
        reference,
        {
            "last-layer-alone": {"pairs": taps(last)},
            "first-layer-alone": {"pairs": taps(1)},
            "plain-states": {"normalize": "none"},
            "shared-projection": {"shared_projection": True},
            "learned-projection": {"projection": {"kind": "learned"}},
            "own-layer-only": {"trains": "own"},
            "reset-optimizer": {"optimizer_state": "reset"},
            "schedule-per-stage": {"schedule": "own"},
            "selected-positions": {"positions": "selected"},
        },
    )
    arms["hidden-all-along"] = StrategySpec(
        curriculum={
            "kind": "staged",
            "stages": [{"name": "all", "duration": f"{total} steps", "objectives": kept}],
        }
    )
    arms["one_shot"] = StrategySpec(curriculum={"kind": "one_shot"})
    return pcfg_comparison(scale, total, arms)


def _projection(scale: Scale) -> Mapping[str, Comparison]:
    return {"parity": _parity(scale), "grammar": _grammar(scale)}


ABLATION_PROJECTION = Recipe(
    name="ablation-projection",
    title="What projection, normalization, freezing and the choice of layers do to extraction",
    source="2503.17494, decisions that its public text leaves open",
    known="nothing is known of the original; first looks at text are in docs/journal.md",
    costs={"smoke": "seconds", "small": "30 min", "paper": "one GPU, some hours"},
    chart=Chart(kind="bars", of="final", y="final accuracy"),
    panels=_projection,
)

RECIPES = (ABLATION_PROJECTION,)
