"""Recipes of the figures on sparse parity.

At scale `small` the degree is 4 and the teacher 2,000 wide, with the step sizes of the demo. The
papers take single examples at learning rate 0.005; here a step reads 64 at 64 times that rate,
rounded to 0.3, which moves the weights as far per example.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from curricle.curriculum.durations import Duration
from curricle.figure_points import Chart
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.mlp import MLPSpec
from curricle.runs.budget import Budget
from curricle.runs.demo import parity_demo
from curricle.runs.spec import Goal, RunSpec, StrategySpec, TeacherSpec
from curricle.tasks import ParityTask
from curricle.training.setup.optimizers import SGD, AdamW, Schedule
from curricle.training.setup.settings import TrainingSettings
from curricle_papers.recipes.recipe import (
    Comparison,
    Recipe,
    Scale,
    four_strategies,
    length,
    steps,
    taps,
)

SEEDS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (0,),
    "small": (0, 1, 2, 3, 4),
    "paper": (0, 1, 2),
}
PARITY_GOAL = Goal(metric="accuracy", number=0.99)
"""Where arms of ablations are compared."""
PARITY_CHART = Chart(kind="bars", of="examples", y="examples to 99 % accuracy")
"""How such a comparison is drawn: final accuracies are all at chance or at one."""
PAPER_STEPS = 312_500
"""20M examples of 64 a step."""
COMPILED_STEPS = 25
"""Steps in one call at the scale `paper`: on an H100 one of them takes a quarter of the time of a
single step. It divides the intervals of all recipes at that scale. Batched students would need one
`data_seed`, and seeds would no longer differ in their data."""


def _strategies(calls: Mapping[str, dict[str, object]]) -> dict[str, StrategySpec]:
    return {name: StrategySpec(curriculum=call) for name, call in calls.items()}


def parity_size(scale: Scale) -> RunSpec:
    """Return the demo at the size of a scale, with no strategies yet.

    Args:
        scale: Size.
    """
    small = replace(parity_demo("runs/parity"), seeds=None, strategies={})
    if scale == "small":
        return small
    if scale == "smoke":
        return replace(
            small,
            task=ParityTask(num_inputs=12, degree=2, batch_size=32, evaluation_examples=256),
            teacher=TeacherSpec(
                model=MLPSpec(widths=(64,)), total=Duration(number=100), checkpoints=25
            ),
            student=MLPSpec(widths=(16,)),
            budget=steps(60),
            engine=TrainingSettings(eval_every=20, log_every=20, threads=1),
        )
    return replace(
        small,
        task=ParityTask(num_inputs=100, degree=6, batch_size=64),
        teacher=TeacherSpec(
            model=MLPSpec(widths=(50_000,)),
            total=Duration(number=PAPER_STEPS),
            checkpoints=200,
        ),
        budget=steps(PAPER_STEPS),
        engine=TrainingSettings(
            device="cuda", eval_every=1500, log_every=1500, compiled_steps=COMPILED_STEPS
        ),
    )


def _comparison(spec: RunSpec, strategies: Mapping[str, StrategySpec], scale: Scale) -> Comparison:
    return Comparison(spec=replace(spec, strategies=dict(strategies), seeds=SEEDS[scale]))


def _mlp(scale: Scale) -> Mapping[str, Comparison]:
    # Rounded up: a bound just below a checkpoint would take the one before it, all along.
    refresh = {"smoke": 4, "small": 500, "paper": math.ceil(PAPER_STEPS / 200)}[scale]
    layer = {"smoke": 20, "small": 750, "paper": 15_000}[scale]
    strategies = four_strategies({"durations": [f"{layer} steps"]}, {"refresh": refresh})
    return {"parity": _comparison(parity_size(scale), strategies, scale)}


PARITY_MLP = Recipe(
    name="parity-mlp",
    title="A narrow network learns a sparse parity from a wide one, by four strategies",
    source="2503.17494 Fig 3a; 2410.05464 Fig 1",
    known=(
        "(100,6), 50,000 to 100 wide: extraction and progressive reach 100 % by about 10.5M to 11M "
        "examples, one-shot stays at chance through 20M, labels reach .66 (.45 to .87) at 20M"
    ),
    costs={"smoke": "seconds", "small": "5 min", "paper": "one H100, 8 min with --jobs 12"},
    chart=Chart(kind="curves"),
    panels=_mlp,
)


def _two_shot(scale: Scale) -> Mapping[str, Comparison]:
    # Steps of the teacher's training, seed 0; the one inside is found from its losses.
    outside = {
        "smoke": {"before": 20, "after": 80},
        "small": {"before": 9500, "early-inside": 10_500, "after": 12_000},
        "paper": {"before": 151_562, "after": 168_750},
    }[scale]
    final = {"smoke": 100, "small": 12_500, "paper": PAPER_STEPS}[scale]
    first = {"smoke": 20, "small": 1000, "paper": 15_625}[scale]
    calls: dict[str, dict[str, object]] = {"one_shot": {"kind": "one_shot"}}
    two_shot: dict[str, object] = {"kind": "progressive", "durations": [f"{first} steps"]}
    for name, step in outside.items():
        calls[f"{name}-{step}"] = two_shot | {"trajectory": [step, final]}
    calls["inside"] = two_shot | {"select": "transition"}
    strategies = _strategies(calls)
    return {"two-shot": _comparison(parity_size(scale), strategies, scale)}


PARITY_TWO_SHOT = Recipe(
    name="parity-two-shot",
    title="One intermediate checkpoint helps if it lies inside the teacher's phase transition",
    source="2410.05464, 2-shot figure",
    known=(
        "T = 1M examples: the checkpoint inside (10.2M) brings the student to 1.0 by about 1.7M; "
        "those before (9.7M) and after (10.8M) leave it at chance through 2M"
    ),
    costs={"smoke": "seconds", "small": "8 min", "paper": "one GPU, about an hour"},
    chart=Chart(kind="curves"),
    panels=_two_shot,
)


def _gpt(heads: int, inputs: int) -> HuggingFaceSpec:
    return HuggingFaceSpec(
        model_type="gpt2",
        head="causal_lm",
        config={
            "n_layer": 2,
            "n_head": heads,
            "n_embd": 8 * heads,
            "tie_word_embeddings": False,
            "n_positions": inputs,
        },
    )


def _transformer(scale: Scale) -> Mapping[str, Comparison]:
    inputs, degree, teacher, student = {
        "smoke": (8, 2, 2, 1),
        "small": (30, 4, 8, 2),
        "paper": (100, 6, 32, 4),
    }[scale]
    total = {"smoke": 30, "small": 4000, "paper": 250_000}[scale]
    layer = {"smoke": 6, "small": 300, "paper": 20_000}[scale]
    every = {"smoke": 10, "small": 100, "paper": 5000}[scale]
    spec = RunSpec(
        output_dir="runs/parity-transformer",
        task=ParityTask(
            num_inputs=inputs, degree=degree, encoding="tokens", batch_size=32,
            evaluation_examples=256 if scale == "smoke" else 2048,
        ),
        teacher=TeacherSpec(
            model=_gpt(teacher, inputs),
            total=length(total),
            checkpoints=min(25, total),
            optimizer=AdamW(
                learning_rate=3e-4 if scale == "paper" else 1e-3,
                schedule=Schedule(warmup=0.06, decay="cosine"),
            ),
        ),
        student=_gpt(student, inputs),
        strategies=four_strategies({"pairs": taps(1, 2), "durations": [f"{layer} steps"] * 2}),
        seeds=SEEDS[scale],
        budget=steps(total),
        goal=Goal(metric="accuracy", number=0.99, ends_run=True),
        optimizer=AdamW(
            learning_rate=1e-4 if scale == "paper" else 1e-3,
            schedule=Schedule(warmup=0.06, decay="cosine"),
        ),
        engine=TrainingSettings(
            device="cuda" if scale == "paper" else "cpu",
            eval_every=every,
            log_every=every,
            threads=None if scale == "paper" else 1,
        ),
        # Transformers have dropout, which multi-steps do not draw.
        share_teacher=scale == "paper",
    )  # fmt: skip
    return {"transformer": Comparison(spec=spec)}


PARITY_TRANSFORMER = Recipe(
    name="parity-transformer",
    title="A transformer with few heads learns a sparse parity from one with many",
    source="2503.17494 Fig 3b; 2410.05464 Fig 1",
    known=(
        "(100,6), 32 to 4 heads: the teacher leaves chance at 3M examples; progressive is at .98 "
        "by 3.6M, one-shot and labels stay at chance through 8M; extraction beats one-shot"
    ),
    costs={"smoke": "seconds", "small": "30 min", "paper": "one GPU, some hours"},
    chart=Chart(kind="curves"),
    panels=_transformer,
)


def _hierarchical(scale: Scale) -> Mapping[str, Comparison]:
    task, total, layer = {
        "smoke": (ParityTask(num_inputs=12, degree=2, depth=2, batch_size=32), 60, 20),
        "small": (ParityTask(num_inputs=50, degree=4, depth=3, batch_size=64), 40_000, 1500),
        "paper": (ParityTask(num_inputs=100, degree=5, depth=3, batch_size=64), 125_000, 15_000),
    }[scale]
    widths = {"smoke": (64, 32), "small": (2000, 200), "paper": (50_000, 1000)}[scale]
    learned, checkpoints = {"smoke": (60, 6), "small": (20_000, 25), "paper": (125_000, 25)}[scale]
    spec = replace(
        parity_size(scale),
        task=task,
        teacher=TeacherSpec(
            model=MLPSpec(widths=(widths[0],)),
            total=length(learned),
            checkpoints=checkpoints,
        ),
        student=MLPSpec(widths=(widths[1],)),
        budget=steps(total),
        goal=Goal(metric="accuracy", number=0.95, ends_run=True),
    )
    # Each checkpoint for as long as it took the teacher to come to it.
    strategies = four_strategies(
        {"durations": [f"{layer} steps"]}, {"refresh": math.ceil(learned / checkpoints)}
    )
    return {"hierarchical": _comparison(spec, strategies, scale)}


PARITY_HIERARCHICAL = Recipe(
    name="parity-hierarchical",
    title="A tree of parities with several labels",
    source="2410.05464, hierarchical generalization",
    known="8 labels, k = 5, 35 of 100 inputs: the lessons of the single parity carry over",
    costs={"smoke": "seconds", "small": "20 min", "paper": "one GPU, about an hour"},
    chart=Chart(kind="curves"),
    panels=_hierarchical,
)


LAYER_STEPS_PER_INPUT = 7.5
"""Length of the layer stage for each input; proportional to them in the theory."""


def _sample_complexity(scale: Scale) -> Mapping[str, Comparison]:
    sizes = {
        "smoke": (8, 12),
        "small": (25, 35, 50, 70, 100),
        "paper": (50, 70, 100, 140, 200),
    }[scale]
    degree = {"smoke": 2, "small": 4, "paper": 4}[scale]
    return {f"d-{inputs}": replace(_sized(scale, inputs, degree), x=inputs) for inputs in sizes}


def _sized(scale: Scale, inputs: int, degree: int) -> Comparison:
    layer = round(LAYER_STEPS_PER_INPUT * inputs)
    evaluation = 512 if scale == "smoke" else 4096
    base = parity_size(scale)
    # No strategy here follows checkpoints, and those of wide teachers fill a disk.
    teacher = replace(base.teacher, checkpoints=1) if scale == "paper" else base.teacher
    spec = replace(
        base,
        teacher=teacher,
        task=ParityTask(
            num_inputs=inputs, degree=degree, batch_size=64, evaluation_examples=evaluation
        ),
        budget=steps(200 if scale == "smoke" else 60_000 if scale == "small" else 600_000),
        goal=Goal(metric="accuracy", number=0.9, ends_run=True),
        engine=replace(base.engine, eval_every=25, log_every=100, threads=1),
    )
    strategies = _strategies(
        {
            "from_labels": {"kind": "from_labels"},
            "one_shot": {"kind": "one_shot"},
            "extraction": {"kind": "extraction", "durations": [f"{layer} steps"]},
        }
    )
    return _comparison(spec, strategies, scale)


SAMPLE_COMPLEXITY = Recipe(
    name="sample-complexity",
    title="Examples to 90 % accuracy against the number of inputs, at fixed degree",
    source="2503.17494 Theorems 1.1 and 4.3",
    known=(
        "extraction: a power of d that does not depend on k; one-shot: about d^(k-1); "
        "the paper gives no measurement"
    ),
    costs={"smoke": "seconds", "small": "15 min", "paper": "one GPU, some hours"},
    chart=Chart(
        kind="lines",
        of="examples",
        x="number of inputs d",
        y="examples to 90 % accuracy",
        log_x=True,
        log_y=True,
        slopes=True,
    ),
    panels=_sample_complexity,
)

RATE_PER_EXAMPLE = 0.3 / 64
"""Learning rate of the demo, for each example of a batch."""


def _batch_size(scale: Scale) -> Mapping[str, Comparison]:
    sizes = (16, 32) if scale == "smoke" else (1, 4, 16, 64, 256)
    return {f"batch-{size}": replace(_batched(scale, size), x=size) for size in sizes}


def _batched(scale: Scale, size: int) -> Comparison:
    base = parity_size("smoke" if scale == "smoke" else "small")
    assert isinstance(base.task, ParityTask)  # noqa: S101 - for the type checker
    examples, interval = (2000, 256) if scale == "smoke" else (6_400_000, 12_800)
    every = max(1, interval // size)
    spec = replace(
        base,
        task=replace(base.task, batch_size=size),
        # No strategy here asks the teacher anything.
        teacher=TeacherSpec(model=base.teacher.model, total=length(1), checkpoints=1),
        budget=Budget(number=examples, unit="examples"),
        goal=Goal(metric="accuracy", number=0.9, ends_run=True),
        optimizer=SGD(learning_rate=RATE_PER_EXAMPLE * size),
        engine=TrainingSettings(
            eval_every=every,
            log_every=every,
            threads=1,
            compiled_steps=COMPILED_STEPS if scale == "paper" else 1,
        ),
    )
    return _comparison(spec, _strategies({"from_labels": {"kind": "from_labels"}}), scale)


PARITY_BATCH_SIZE = Recipe(
    name="parity-batch-size",
    title="With a learning rate in proportion, the batch size does not move the transition",
    source="own check of the equivalence that the parity recipes rest on",
    known="the papers train on single examples at learning rate 0.005",
    costs={
        "smoke": "seconds",
        "small": "an hour, a third of it with compiled steps",
        "paper": "as small",
    },
    chart=Chart(
        kind="lines",
        of="examples",
        x="examples a step",
        y="examples to 90 % accuracy, from labels",
        log_x=True,
    ),
    panels=_batch_size,
)

RECIPES = (
    PARITY_MLP,
    PARITY_TWO_SHOT,
    PARITY_TRANSFORMER,
    PARITY_HIERARCHICAL,
    SAMPLE_COMPLEXITY,
    PARITY_BATCH_SIZE,
)
