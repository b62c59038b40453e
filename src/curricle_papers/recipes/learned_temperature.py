"""Learned temperature of Li et al. (adversarial to the student) combined with extraction.

A learned temperature is a curriculum of difficulty: it needs neither checkpoints nor layers, so it
competes with one-shot distillation and can be the last objective of extraction. Arms with `T4`
have the same two losses in the same proportion at a fixed temperature, which separates the effect
of learning the temperature from that of a high temperature and of the labels. All arms of a panel
share a learning rate, except `one_shot-fast` on parity with twice the rate: a high temperature
makes gradients larger, which plain SGD does not compensate.
"""

from collections.abc import Mapping
from dataclasses import replace

from curricle.figure_points import Chart
from curricle.runs.spec import StrategySpec
from curricle.training.setup.settings import TrainingSettings
from curricle.values import Plain
from curricle_papers.recipes.recipe import Comparison, Recipe, Scale, steps
from curricle_papers.recipes.sparse_parity import (
    COMPILED_STEPS,
    PARITY_CHART,
    PARITY_GOAL,
    SEEDS,
    parity_size,
)
from curricle_papers.recipes.text_and_grammars import GRAMMAR_STEPS, grammar_layers, pcfg_comparison

LEARNED: Plain = {"kind": "learned_temperature"}
FIXED: tuple[Plain, ...] = (
    {
        "kind": "logits",
        "student_temperature": 4.0,
        "teacher_temperature": 4.0,
        "scale": "temperature_squared",
        "weight": 0.9,
    },
    {"kind": "labels", "weight": 0.1},
)
"""Baseline of the paper: the same weights at temperature 4."""


def _arms(total: int, extraction: Plain) -> dict[str, StrategySpec]:
    """Return the strategies of a panel.

    Args:
        total: Steps of each student.
        extraction: Arguments of extraction without its last objective.
    """
    instances = LEARNED | {"variant": "instance"}
    fixed = {"name": "logits", "duration": f"{total} steps", "objectives": list(FIXED)}
    layers = {"kind": "extraction", **extraction}
    calls: dict[str, Plain] = {
        "one_shot": {"kind": "one_shot"},
        "one_shot+T4": {"kind": "staged", "stages": [fixed]},
        "one_shot+temperature": {"kind": "one_shot", "objective": LEARNED},
        "one_shot+instances": {"kind": "one_shot", "objective": instances},
        "extraction": layers,
        "extraction+temperature": layers | {"final_objective": LEARNED},
    }
    return {name: StrategySpec(curriculum=call) for name, call in calls.items()}


def _parity(scale: Scale) -> Comparison:
    layer, total = {"smoke": (20, 60), "small": (750, 6000), "paper": (15_000, 200_000)}[scale]
    spec = replace(
        parity_size(scale),
        strategies=_arms(total, {"durations": [f"{layer} steps"]}),
        seeds=SEEDS[scale],
        budget=steps(total),
        goal=PARITY_GOAL,
        engine=TrainingSettings(
            eval_every=max(total // 60, 10),
            log_every=max(total // 60, 10),
            threads=1,
            device="cuda" if scale == "paper" else "cpu",
            compiled_steps=COMPILED_STEPS if scale == "paper" else 1,
        ),
    )
    fast = replace(
        spec.strategies["one_shot"],
        optimizer=replace(spec.optimizer, learning_rate=2 * spec.optimizer.learning_rate),
    )
    strategies = {**spec.strategies, "one_shot-fast": fast}
    return Comparison(spec=replace(spec, strategies=strategies), chart=PARITY_CHART)


def _panels(scale: Scale) -> Mapping[str, Comparison]:
    total, layers = GRAMMAR_STEPS[scale], grammar_layers(scale, 3, 0.3)
    return {
        "parity": _parity(scale),
        "pcfg": pcfg_comparison(scale, total, _arms(total, layers)),
    }


LEARNED_TEMPERATURE = Recipe(
    name="learned-temperature",
    title="Gain from a temperature learned against the student, for one-shot and extraction",
    source="2211.16231, on the tasks of 2503.17494 and 2410.05464",
    known=(
        "on CIFAR-100 0.3 to 0.6 points above a fixed temperature of 4 (ResNet-56 to ResNet-20: "
        "70.66 to 71.19 %), on ImageNet 70.83 to 71.32 %; nothing is known of our tasks"
    ),
    costs={"smoke": "seconds", "small": "20 min", "paper": "one GPU, some hours"},
    chart=Chart(kind="bars", of="final", y="final accuracy"),
    panels=_panels,
)

RECIPES = (LEARNED_TEMPERATURE,)
