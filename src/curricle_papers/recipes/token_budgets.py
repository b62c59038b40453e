"""Gains of distillation methods on next-token students against the number of training tokens.

One panel a budget, each two to four times the one before, with the same teacher, students and
seeds in all. The question is that of the hidden-layer study (arXiv 2605.11513), in miniature: a
gain at a small budget may be gone at a large one. The chart has negative log-likelihood against
FLOPs of student and teacher, and the report names for each method the budget at which its gain over
`one_shot` ends (see `reports.gains`). Budgets are equal in tokens, not in FLOPs.

The corpus is the shipped sample unless another text is named, as WikiText-2 and books by
`--set task.corpus=[wikitext-2,books]` (two folders). Finished students are scored on other data by
`curricle evaluate FOLDER --all-students`.

Each method has the best of three learning rates at every budget, chosen by a held-out seed (see
`FirstPass`): the best rate falls as the budget grows.
"""

from collections.abc import Mapping

from curricle.figure_points import Chart
from curricle.models.huggingface import HuggingFaceSpec
from curricle.runs.budget import Budget
from curricle.runs.spec import Goal, RunSpec, StrategySpec, TeacherSpec
from curricle.tasks import TextTask
from curricle.training.setup.optimizers import AdamW, Schedule
from curricle.training.setup.settings import TrainingSettings
from curricle.values import Plain
from curricle_papers.recipes.recipe import Comparison, FirstPass, Recipe, Scale, length, taps

BASELINE = "one_shot"
"""Method over which gains are measured."""
SEEDS: Mapping[Scale, tuple[int, ...]] = {"smoke": (0,), "small": (0, 1, 2), "paper": (0, 1, 2)}
STEPS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (8, 16, 32, 64),
    "small": (24, 72, 216, 648),
    "paper": (16, 64, 256, 1024),
}
"""Steps of the budgets."""
EVALUATIONS = 8
"""Evaluations of a student in the course of its training."""
COSINE = Schedule(warmup=0.06, decay="cosine")
TEACHER_RATE = 3e-3
RATES = (3e-3, 1e-2, 3e-2)
"""Learning rates among which each method has its best, at every budget anew."""
ALL_SEEDS = 1e6
"""Seconds of a panel that pay for every seed, so that the seeds of all budgets are the same."""
HIDDEN_SHARE = 0.3
"""Part of the steps for the stages on hidden states."""


def decoder(*, layers: int, heads: int, width: int) -> HuggingFaceSpec:
    """Return a Llama-like decoder whose gated layers are 8/3 as wide as its residual stream.

    Args:
        layers: Number of blocks.
        heads: Attention heads of a block, as many as those of keys and values.
        width: Width of the residual stream; a multiple of 8 and of `heads`.
    """
    return HuggingFaceSpec(
        model_type="llama",
        head="causal_lm",
        config={
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_size": width,
            "intermediate_size": width * 8 // 3 // 8 * 8,
        },
    )


def _strategies(scale: Scale) -> dict[str, StrategySpec]:
    """Return the compared methods; at smoke the models have two blocks."""
    calls: dict[str, Plain] = {
        "labels": {"kind": "from_labels"},
        "one_shot": {"kind": "one_shot"},
        "hidden_first": {
            "kind": "hidden_first",
            "pairs": taps(*range(1, 3 if scale == "smoke" else 5)),
            "layer_fraction": HIDDEN_SHARE,
            "layer_objective": {"kind": "hidden", "shared_projection": True},
        },
        "extraction": {
            "kind": "extraction",
            "pairs": taps(1, 2),
            "shared_projection": True,
            "layer_fraction": HIDDEN_SHARE,
        },
        "least_squares": {"kind": "one_shot", "init": "least_squares"},
        "auto": {"kind": "auto"},
    }
    return {name: StrategySpec(curriculum=call) for name, call in calls.items()}


def tokens_per_step(scale: Scale) -> int:
    """Return the tokens of a step."""
    return _task(scale).tokens_per_batch


def _task(scale: Scale) -> TextTask:
    return TextTask(
        objective="next_token",
        vocabulary_size={"smoke": 300, "small": 1024, "paper": 4096}[scale],
        window={"smoke": 16, "small": 64, "paper": 128}[scale],
        batch_size={"smoke": 8, "small": 16, "paper": 128}[scale],
        evaluation_batches={"smoke": 1, "small": 30, "paper": 20}[scale],
    )


def _panels(scale: Scale) -> Mapping[str, Comparison]:
    wide, narrow = {
        "smoke": (decoder(layers=2, heads=2, width=32), decoder(layers=2, heads=2, width=16)),
        "small": (decoder(layers=4, heads=4, width=128), decoder(layers=4, heads=4, width=48)),
        "paper": (decoder(layers=4, heads=4, width=256), decoder(layers=4, heads=4, width=64)),
    }[scale]
    teacher = TeacherSpec(
        model=wide,
        total=length({"smoke": 32, "small": 3000, "paper": 3000}[scale]),
        checkpoints=2,
        optimizer=AdamW(learning_rate=TEACHER_RATE, schedule=COSINE),
    )
    batch = tokens_per_step(scale)
    return {
        f"tokens-{steps * batch}": Comparison(
            spec=RunSpec(
                output_dir="runs/token-budgets",
                task=_task(scale),
                teacher=teacher,
                student=narrow,
                strategies=_strategies(scale),
                seeds=SEEDS[scale],
                budget=Budget(number=steps * batch, unit="tokens"),
                goal=Goal(metric="nll", final_of=BASELINE),
                optimizer=AdamW(learning_rate=RATES[1], schedule=COSINE),
                engine=_engine(scale, steps),
            ),
            x=float(steps * batch),
            first_pass=None if scale == "smoke" else FirstPass(rates=RATES, seconds=ALL_SEEDS),
        )
        for steps in STEPS[scale]
    }


def _engine(scale: Scale, steps: int) -> TrainingSettings:
    every = max(steps // EVALUATIONS, 2)
    return TrainingSettings(
        device="cuda" if scale == "paper" else "cpu",
        precision="bfloat16" if scale == "paper" else "float32",
        max_grad_norm=1.0,
        eval_every=every,
        log_every=every,
        save_every=max(every, 256),
        threads=1,
    )


TOKEN_BUDGETS = Recipe(
    name="token-budgets",
    title="Gains over one-shot on next tokens, at four token budgets",
    source="none; ours, on the question of 2605.11513",
    known=(
        "at 123M and 735M parameters, up to 168B tokens and equal compute, hidden layers beside or "
        "before the logits gain in perplexity, and not consistently on downstream tasks"
    ),
    costs={"smoke": "seconds", "small": "90 min of one core", "paper": "one GPU, 8 min"},
    chart=Chart(
        kind="lines",
        of="final",
        x="total FLOPs",
        y="final negative log-likelihood in nats",
        log_x=True,
        x_from="total_flops",
        baseline=BASELINE,
    ),
    panels=_panels,
)

RECIPES = (TOKEN_BUDGETS,)
