"""All methods on nine tasks at equal total FLOPs.

The budget of a task is the FLOPs of a number of one-shot steps; student, teacher and calibration
count, and the training of the teacher, which is the same for all methods, does not. Statistics
that a stage takes when it begins, as the share that `auto` measures, come on top, some 2 % at most.
A first pass with a held-out seed chooses the learning rate of each method and task from three; then
the seeds follow that the seconds of the task pay for. Costs are those to one-shot's mean final
accuracy, and on parities, where one-shot may end at chance, to 99 %.

The text is the shipped sample unless `--set task.corpus=FOLDER` names another, and sentences are
classified if `--set polarity:task.data=FOLDER` names rows with `text` and `label`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from curricle.example_tasks import ExamplesTask, TensorsTask
from curricle.figure_points import Chart
from curricle.models.cnn import CNNSpec
from curricle.models.huggingface import HuggingFaceSpec
from curricle.models.mlp import MLPSpec
from curricle.runs.budget import Budget
from curricle.runs.spec import Goal, Model, RunSpec, StrategySpec, TeacherSpec
from curricle.tasks import ParityTask, PcfgTask, Task, TextTask
from curricle.training.setup.optimizers import SGD, AdamW, Optimizer, Schedule
from curricle.training.setup.settings import TrainingSettings
from curricle_papers.recipes.method_table import METHODS, Layers, Trait
from curricle_papers.recipes.recipe import Comparison, FirstPass, Recipe, Scale, length, taps
from curricle_papers.recipes.sparse_parity import PARITY_GOAL
from curricle_papers.recipes.text_and_grammars import encoder

ONE_SHOT_END = Goal(final_of="one_shot")
ADAM = AdamW(learning_rate=3e-3)
TEXT_RATES = (3e-3, 1e-2, 3e-2)
POINTS = 16
"""Evaluations and training losses of a one-shot run."""
FACTOR: Mapping[Scale, float] = {"smoke": 0.02, "small": 1.0, "paper": 10.0}
"""Length of all runs as a multiple of those at scale `small`."""
SECONDS: Mapping[Scale, float] = {"smoke": 60.0, "small": 900.0, "paper": 30_000.0}
"""Seconds of training for all students of a task; the nine tasks of scale `paper` take six hours
of twelve processes."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A task with its models and lengths, at scale `small`."""

    task: Task
    """Data."""
    teacher: Model
    """Model that teaches."""
    student: Model
    """Model that learns."""
    teacher_steps: int
    """Length of the teacher's training."""
    steps: int
    """Length of one-shot."""
    step_flops: int
    """FLOPs of a step of one-shot, which make the budget."""
    rates: tuple[float, ...]
    """Learning rates of the first pass."""
    layers: Layers
    """Layer pairs and the share of their stages."""
    traits: frozenset[Trait] = frozenset()
    """What some methods depend on."""
    optimizer: Optimizer = ADAM
    """How all models are trained; the students' rate is that of the first pass."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students."""
    goal: Goal = ONE_SHOT_END
    """Value to which costs are compared."""
    clip: float | None = 1.0
    """Maximum norm of a gradient."""


def _gpt(heads: int, width: int, layers: int, **config: object) -> HuggingFaceSpec:
    sizes = {"n_layer": layers, "n_head": heads, "n_embd": width, **config}
    return HuggingFaceSpec(model_type="gpt2", head="causal_lm", config=sizes)


PARITY_GPT: Mapping[str, object] = {
    "tie_word_embeddings": False,
    # With GPT-2's .02, of much wider models, and its dropout, the teacher may stay at chance.
    "initializer_range": 0.1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


def _llama(heads: int, width: int) -> HuggingFaceSpec:
    return HuggingFaceSpec(
        model_type="llama",
        head="causal_lm",
        config={
            "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_size": width,
            "intermediate_size": 2 * width,
        },
    )


def _classifier(heads: int, width: int) -> HuggingFaceSpec:
    model = encoder(layers=2, heads=heads, width=width)
    return replace(model, head="sequence_classification")


RESIDUAL = Layers(pairs=tuple(taps(1, 2)), share=0.3, shared=True)
"""Layers of transformers of three blocks."""
CONVOLUTIONS = CNNSpec(channels=(32, 64), stride=2)
SETTINGS: Mapping[str, Setting] = {
    "parity-mlp": Setting(
        task=ParityTask(num_inputs=100, degree=4, batch_size=64),
        teacher=MLPSpec(widths=(2000,)),
        student=MLPSpec(widths=(100,)),
        teacher_steps=12_500,
        steps=6000,
        step_flops=28_748_800,
        rates=(0.1, 0.3, 0.9),
        layers=Layers(pairs=tuple(taps(1)), share=0.15),
        traits=frozenset({"mlp"}),
        optimizer=SGD(learning_rate=0.3),
        seeds=(0, 1, 2, 3, 4),
        goal=PARITY_GOAL,
        clip=None,
    ),
    "parity-transformer": Setting(
        task=ParityTask(
            num_inputs=20, degree=3, encoding="tokens", batch_size=64, evaluation_examples=512
        ),
        teacher=_gpt(8, 64, 2, **PARITY_GPT),
        student=_gpt(2, 16, 2, **PARITY_GPT),
        teacher_steps=600,
        steps=300,
        step_flops=298_872_832,
        rates=(1e-3, 2e-3, 4e-3),
        optimizer=AdamW(learning_rate=1e-3, schedule=Schedule(warmup=0.16, decay="cosine")),
        layers=Layers(pairs=tuple(taps(1, 2)), share=0.4),
        traits=frozenset({"few tokens"}),
        seeds=(0, 1, 2, 3, 4),
        goal=PARITY_GOAL,
    ),
    "cfg3b": Setting(
        task=PcfgTask(start=16, batch_size=16, evaluation_batches=8),
        teacher=encoder(layers=3, heads=4, width=64, model_type="modernbert"),
        student=encoder(layers=3, heads=1, width=16, model_type="modernbert"),
        teacher_steps=800,
        steps=350,
        step_flops=343_484_160,
        rates=TEXT_RATES,
        layers=Layers(pairs=tuple(taps(1, 3)), share=0.3, shared=True),
        traits=frozenset({"few tokens"}),
    ),
    "cfg3f": Setting(
        task=PcfgTask(
            grammar="cfg3f",
            start=16,
            objective="next_token",
            span_level=1,
            batch_size=8,
            evaluation_batches=16,
        ),
        teacher=_gpt(4, 64, 3),
        student=_gpt(2, 16, 3),
        teacher_steps=800,
        steps=350,
        step_flops=260_958_976,
        rates=TEXT_RATES,
        layers=Layers(pairs=tuple(taps(1, 3)), share=0.3, shared=True),
        traits=frozenset({"few tokens"}),
    ),
    "text-masked": Setting(
        task=TextTask(vocabulary_size=1024, window=32, batch_size=16, evaluation_batches=20),
        teacher=encoder(layers=3, heads=4, width=96, model_type="modernbert"),
        student=encoder(layers=3, heads=2, width=32, model_type="modernbert"),
        teacher_steps=1200,
        steps=300,
        step_flops=408_821_760,
        rates=TEXT_RATES,
        layers=RESIDUAL,
    ),
    "text-next": Setting(
        task=TextTask(
            objective="next_token",
            vocabulary_size=1024,
            window=32,
            batch_size=16,
            evaluation_batches=16,
        ),
        teacher=_llama(4, 96),
        student=_llama(2, 32),
        teacher_steps=1200,
        steps=300,
        step_flops=572_522_496,
        rates=TEXT_RATES,
        layers=RESIDUAL,
    ),
    "polarity": Setting(
        task=ExamplesTask(
            data="sentence-polarity",
            vocabulary_size=2048,
            window=32,
            batch_size=32,
            evaluation_batches=34,
        ),
        teacher=_classifier(4, 64),
        student=_classifier(2, 16),
        teacher_steps=600,
        steps=400,
        step_flops=251_983_872,
        rates=(1e-3, 3e-3, 1e-2),
        layers=Layers(pairs=tuple(taps(1)), share=0.3, shared=True),
        optimizer=AdamW(learning_rate=1e-3),
    ),
    "digits-cnn": Setting(
        task=TensorsTask(encoding="image", batch_size=32),
        teacher=CONVOLUTIONS,
        student=CNNSpec(channels=(8, 16), stride=2),
        teacher_steps=2000,
        steps=2000,
        step_flops=6_117_376,
        rates=TEXT_RATES,
        layers=Layers(pairs=tuple(taps(1, 2)), share=0.3),
        traits=frozenset({"cnn"}),
        clip=None,
    ),
    "digits-mlp": Setting(
        task=TensorsTask(encoding="image", batch_size=32),
        teacher=CONVOLUTIONS,
        student=MLPSpec(widths=(32, 32), axes=2),
        teacher_steps=2000,
        steps=2000,
        step_flops=5_574_656,
        rates=TEXT_RATES,
        layers=Layers(pairs=tuple({**pair, "reading": "pooled"} for pair in taps(1, 2)), share=0.3),
        traits=frozenset({"image to vector"}),
        clip=None,
    ),
}
"""The tasks by panel."""
SMOKE_PANELS = ("parity-mlp", "digits-mlp", "polarity")
"""Panels of scale `smoke`."""
SMOKE_METHODS = ("labels", "one_shot", "extraction")
"""Methods of scale `smoke`, whose budget pays for no start."""


def setting_comparison(name: str, scale: Scale) -> Comparison:
    """Return the comparison of all methods on a task.

    Args:
        name: Name of the panel.
        scale: Size.
    """
    setting = SETTINGS[name]
    steps = max(12, round(FACTOR[scale] * setting.steps))
    reasons = {method.name: method.reason(setting.traits) for method in METHODS}
    every = max(1, steps // POINTS)
    spec = RunSpec(
        output_dir=f"runs/{name}",
        task=setting.task,
        teacher=TeacherSpec(
            model=setting.teacher,
            total=length(max(12, round(FACTOR[scale] * setting.teacher_steps))),
            optimizer=setting.optimizer,
        ),
        student=setting.student,
        strategies={
            method.name: StrategySpec(curriculum=method.call(setting.layers))
            for method in METHODS
            if not reasons[method.name]
        },
        seeds=setting.seeds,
        budget=Budget(number=steps * setting.step_flops, unit="flops"),
        goal=setting.goal,
        optimizer=setting.optimizer,
        engine=TrainingSettings(
            # Small models gain nothing from a GPU that many processes share.
            device="auto" if scale == "paper" else "cpu",
            max_grad_norm=setting.clip,
            eval_every=every,
            log_every=every,
            threads=1,
        ),
    )
    return Comparison(
        spec=spec,
        first_pass=FirstPass(rates=setting.rates, seconds=SECONDS[scale]),
        left_out={name: reason for name, reason in reasons.items() if reason},
    )


def _panels(scale: Scale) -> Mapping[str, Comparison]:
    if scale != "smoke":
        return {name: setting_comparison(name, scale) for name in SETTINGS}
    return {name: _smoke(setting_comparison(name, scale)) for name in SMOKE_PANELS}


def _smoke(comparison: Comparison) -> Comparison:
    """Return a comparison of few methods, rates and seeds."""
    spec, first_pass = comparison.spec, comparison.first_pass
    assert first_pass is not None  # noqa: S101 - for the type checker
    few = {name: spec.strategies[name] for name in SMOKE_METHODS}
    return replace(
        comparison,
        spec=replace(spec, strategies=few, seeds=(0,)),
        first_pass=replace(first_pass, rates=first_pass.rates[:2]),
    )


METHODS_RECIPE = Recipe(
    name="methods",
    title="All methods on nine tasks at equal total FLOPs",
    source="none; ours, of the methods' papers",
    known="nothing: no paper compares them at equal total FLOPs",
    costs={
        "smoke": "seconds",
        "small": "2 h of one core, 9 min with --jobs 16",
        "paper": "6 h with --jobs 12",
    },
    chart=Chart(kind="bars", of="final", y="final accuracy"),
    panels=_panels,
)

RECIPES = (METHODS_RECIPE,)
