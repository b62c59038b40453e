"""Recipes of the figures on grammars and on text.

At scale `small` the grammar is started two levels lower, which makes strings of about 49 instead
of 276 tokens, the encoders are narrower, and they are ModernBERTs: a BERT, whose positions are
absolute, is still on its first plateau after 2,000 steps of 16 strings. `wikipedia-mlm` is then
`recipes/text-mlm.yaml`; it reads the shipped sample, and Wikipedia from the Hub at `paper`, unless
another text is named: `--set task.corpus=wikitext-2` (a folder), `--set
task.corpus=[wikitext-2,books]` (both as one), or any data set as `datasets:NAME:CONFIG`.
"""

from collections.abc import Mapping
from dataclasses import replace

from curricle.figure_points import Chart
from curricle.models.huggingface import HuggingFaceSpec
from curricle.runs.demo import text_demo
from curricle.runs.spec import Goal, RunSpec, StrategySpec, TeacherSpec
from curricle.tasks import PcfgTask, TextTask
from curricle.training.setup.optimizers import AdamW, Schedule
from curricle.training.setup.settings import TrainingSettings
from curricle.values import Plain
from curricle_papers.recipes.recipe import (
    Comparison,
    Recipe,
    Scale,
    four_strategies,
    length,
    steps,
    taps,
)

SEEDS: Mapping[Scale, tuple[int, ...]] = {"smoke": (0,), "small": (0, 1, 2), "paper": (0, 1, 2)}
COSINE = Schedule(warmup=0.06, decay="cosine")


def encoder(*, layers: int, heads: int, width: int, model_type: str = "bert") -> HuggingFaceSpec:
    """Return an encoder for masked tokens, with the papers' proportions.

    Args:
        layers: Number of blocks.
        heads: Attention heads of a block.
        width: Width of the residual stream.
        model_type: `bert`, or another family of encoders.
    """
    return HuggingFaceSpec(
        model_type=model_type,
        config={
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "hidden_size": width,
            "intermediate_size": 4 * width if model_type == "bert" else 2 * width,
        },
    )


def _engine(scale: Scale, total: int, *, micro_batches: int = 1) -> TrainingSettings:
    """Return the settings of a panel.

    Args:
        scale: Size.
        total: Steps of each student.
        micro_batches: Micro-batches of a step at scale `paper`: of 32,000 to 94,000 tokens, since
            launches bound passes of 8,192 (docs/performance.md, steps on a GPU).
    """
    on_gpu = scale == "paper"
    return TrainingSettings(
        device="cuda" if on_gpu else "cpu",
        # On a CPU the attention of narrow heads is several times slower in bfloat16.
        precision="bfloat16" if on_gpu else "float32",
        max_grad_norm=1.0,
        gradient_accumulation_steps=micro_batches if on_gpu else 1,
        compile="both" if on_gpu else "none",
        eval_every=max(total // 40, 5),
        log_every=max(total // 80, 5),
        threads=None if on_gpu else 1,
    )


def pcfg_comparison(scale: Scale, total: int, strategies: Mapping[str, StrategySpec]) -> Comparison:
    """Return a comparison of encoders on the grammar.

    Args:
        scale: Size.
        total: Steps of each student.
        strategies: The strategies.
    """
    start, batch, held_out = {"smoke": (10, 8, 4), "small": (16, 16, 16), "paper": (22, 512, 4)}[
        scale
    ]
    wide, narrow = {
        "smoke": (
            encoder(layers=2, heads=2, width=16, model_type="modernbert"),
            encoder(layers=2, heads=1, width=8, model_type="modernbert"),
        ),
        "small": (
            encoder(layers=4, heads=4, width=64, model_type="modernbert"),
            encoder(layers=4, heads=1, width=16, model_type="modernbert"),
        ),
        "paper": (
            encoder(layers=4, heads=32, width=256),
            encoder(layers=4, heads=8, width=64),
        ),
    }[scale]
    teacher_rate, rate = (5e-3, 5e-3) if scale == "paper" else (3e-3, 1.2e-2)
    return Comparison(
        spec=RunSpec(
            output_dir="runs/pcfg",
            task=PcfgTask(start=start, batch_size=batch, evaluation_batches=held_out),
            teacher=TeacherSpec(
                model=wide,
                total=length({"smoke": 12, "small": 1500, "paper": 8000}[scale]),
                checkpoints={"smoke": 4, "small": 6, "paper": 8}[scale],
                optimizer=_adam(teacher_rate),
            ),
            student=narrow,
            strategies=dict(strategies),
            seeds=SEEDS[scale],
            budget=steps(total),
            goal=Goal(metric="accuracy", final_of="one_shot"),
            optimizer=_adam(rate),
            engine=_engine(scale, total, micro_batches=4),
        )
    )


def _adam(rate: float) -> AdamW:
    """Return the optimizer of the second paper's grammar."""
    return AdamW(learning_rate=rate, betas=(0.9, 0.95), schedule=COSINE)


BUDGETS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (12,),
    "small": (500, 1000, 1500),
    "paper": (4000, 6000, 8000),
}
GRAMMAR_STEPS: Mapping[Scale, int] = {"smoke": 12, "small": 1000, "paper": 6000}
"""Steps of a student where there is one budget only."""


FIRST_CHOICE = {"kind": "logits", "teacher_temperature": 0.0}
"""The teacher's arg-max as target, which temperature 1e-4 of the second paper comes to."""
IN_CHUNKS: Plain = {"kind": "logits", "chunk": "auto"}
"""Logits of a large vocabulary on a GPU, whose loss takes a kernel."""
TARGETS = {"one_shot": "objective", "progressive": "objective", "extraction": "final_objective"}
"""By strategy, the argument with the objective on logits."""
LAYERS: Mapping[int, tuple[int, ...]] = {1: (4,), 2: (2, 4), 3: (1, 3, 4)}
"""Blocks of four that are followed, equally spaced with the last among them, by their number."""


def grammar_layers(scale: Scale, number: int, share: float) -> Plain:
    """Return the arguments of extraction from a number of layers.

    Args:
        scale: Size; at smoke there are two layers, and both are read.
        number: How many layers.
        share: Their part of the steps.
    """
    read = range(1, 3) if scale == "smoke" else LAYERS[number]
    return {"pairs": taps(*read), "layer_fraction": share, "shared_projection": True}


def _extraction(scale: Scale, number: int, share: float) -> StrategySpec:
    return StrategySpec(curriculum={"kind": "extraction", **grammar_layers(scale, number, share)})


def _pcfg_mlm(scale: Scale) -> Mapping[str, Comparison]:
    share = 0.45  # 2,700 of 6,000 steps.
    panels: dict[str, Comparison] = {}
    for number, total in enumerate(BUDGETS[scale], start=1):
        panels[f"steps-{total}"] = pcfg_comparison(
            scale,
            total,
            four_strategies(grammar_layers(scale, number, share)),
        )
    if scale != "smoke":
        total = GRAMMAR_STEPS[scale]
        panels["layers"] = pcfg_comparison(
            scale,
            total,
            {
                "one_shot": StrategySpec(curriculum={"kind": "one_shot"}),
                "extraction-1-layer": _extraction(scale, 1, share),
                "extraction-3-layers": _extraction(scale, 3, share),
            },
        )
    if scale != "small":
        panels["official"] = _as_published(panels[f"steps-{max(BUDGETS[scale])}"])
    return panels


def _as_published(comparison: Comparison) -> Comparison:
    """Return a comparison with the sampling, masking and targets of the second paper's code."""
    spec = comparison.spec
    assert isinstance(spec.task, PcfgTask)  # noqa: S101 - for the type checker
    strategies = _with_logits(spec.strategies, FIRST_CHOICE)
    task = replace(spec.task, grammar="cfg3b-p2", masking_quirk=True)
    return replace(comparison, spec=replace(spec, task=task, strategies=strategies))


def _with_logits(
    strategies: Mapping[str, StrategySpec], objective: Plain
) -> dict[str, StrategySpec]:
    """Return strategies with another objective on logits, where they have one.

    Args:
        strategies: The four strategies.
        objective: The objective.
    """
    return {
        name: replace(strategy, curriculum={**strategy.curriculum, TARGETS[name]: objective})
        if name in TARGETS
        else strategy
        for name, strategy in strategies.items()
    }


PCFG_MLM = Recipe(
    name="pcfg-mlm",
    title="A narrow encoder learns the grammar cfg3b from a wide one on masked tokens",
    source="2503.17494 Fig 4a-c; 2410.05464 Fig 4",
    known=(
        "extraction is above one-shot at 4000, 6000 and 8000 steps with 2, 3 and 4 stages, and "
        "with three layers above one layer at 2700 + 3300; at 8000 steps progressive .958, "
        "one-shot .928, labels .926, teacher .970, on cfg3b-p2 with the masking quirk and the "
        "teacher's arg-max as target: panel `official` of scale paper; other panels have cfg3b, "
        "no quirk, and probabilities"
    ),
    costs={"smoke": "seconds", "small": "20 min", "paper": "one GPU, some hours"},
    chart=Chart(kind="curves"),
    panels=_pcfg_mlm,
)


def _decoder(*, layers: int, heads: int, width: int) -> HuggingFaceSpec:
    return HuggingFaceSpec(
        model_type="gpt2",
        head="causal_lm",
        config={"n_layer": layers, "n_head": heads, "n_embd": width},
    )


def _pcfg_gpt(scale: Scale) -> Mapping[str, Comparison]:
    start, batch, total = {"smoke": (10, 8, 12), "small": (16, 16, 1500), "paper": (22, 512, 8000)}[
        scale
    ]
    layers, wide, narrow = {
        "smoke": (2, (2, 16), (1, 8)),
        "small": (4, (8, 64), (2, 16)),
        "paper": (4, (32, 256), (8, 64)),
    }[scale]
    teacher_steps = {"smoke": 12, "small": 2000, "paper": 8000}[scale]
    spec = RunSpec(
        output_dir="runs/pcfg-gpt",
        task=PcfgTask(
            grammar="cfg3f",
            start=start,
            objective="next_token",
            span_level=1,
            batch_size=batch,
            evaluation_batches=4,
        ),
        teacher=TeacherSpec(
            model=_decoder(layers=layers, heads=wide[0], width=wide[1]),
            total=length(teacher_steps),
            checkpoints=4,
        ),
        student=_decoder(layers=layers, heads=narrow[0], width=narrow[1]),
        strategies=four_strategies(grammar_layers(scale, 2, 0.3)),
        seeds=SEEDS[scale],
        budget=steps(total),
        goal=Goal(metric="accuracy", final_of="one_shot"),
        optimizer=AdamW(learning_rate=2e-3, schedule=COSINE),
        engine=_engine(scale, total, micro_batches=4),
    )
    return {"gpt": Comparison(spec=spec)}


PCFG_GPT = Recipe(
    name="pcfg-gpt",
    title="A narrow decoder learns the grammar cfg3f from a wide one, token by token",
    source="2410.05464, autoregressive experiment",
    known="4 layers, 32 to 8 heads; the loss counts tokens that end a span; numbers not available",
    costs={"smoke": "seconds", "small": "30 min", "paper": "one GPU, some hours"},
    chart=Chart(kind="curves"),
    panels=_pcfg_gpt,
)


WIKIPEDIA = "datasets:wikimedia/wikipedia:20231101.en"
"""The data set that scale `paper` reads, from the Hugging Face Hub."""


def _wikipedia(scale: Scale) -> Mapping[str, Comparison]:
    total = {"smoke": 12, "small": 1000, "paper": 120_000}[scale]
    wide, narrow = {
        "smoke": (
            encoder(layers=2, heads=2, width=16, model_type="modernbert"),
            encoder(layers=2, heads=2, width=8, model_type="modernbert"),
        ),
        "small": (
            encoder(layers=4, heads=4, width=256, model_type="modernbert"),
            encoder(layers=4, heads=4, width=64, model_type="modernbert"),
        ),
        "paper": (
            encoder(layers=12, heads=12, width=768),
            encoder(layers=12, heads=4, width=256),
        ),
    }[scale]
    read = {"smoke": (1,), "small": (1, 2), "paper": (3, 6, 9)}[scale]
    # Those of the small scale were looked at on WikiText-2; at the large one nothing was.
    rates = (
        {}
        if scale == "paper"
        else {
            name: AdamW(learning_rate=rate, schedule=COSINE)
            for name, rate in (("progressive", 6e-3), ("extraction", 1.2e-2))
        }
    )
    strategies = four_strategies(
        {"pairs": taps(*read), "shared_projection": True, "layer_fraction": 0.3}
    )
    if scale == "paper":
        strategies = _with_logits(strategies, IN_CHUNKS)
    spec = RunSpec(
        output_dir="runs/wikipedia-mlm",
        task=TextTask(
            corpus=WIKIPEDIA if scale == "paper" else "sample",
            vocabulary_size={"smoke": 300, "small": 4096, "paper": 30_000}[scale],
            window={"smoke": 16, "small": 64, "paper": 128}[scale],
            batch_size={"smoke": 8, "small": 32, "paper": 256}[scale],
            evaluation_batches={"smoke": 1, "small": 60, "paper": 60}[scale],
        ),
        teacher=TeacherSpec(
            model=wide,
            total=length({"smoke": 12, "small": 2500, "paper": 120_000}[scale]),
            checkpoints={"smoke": 3, "small": 5, "paper": 15}[scale],
            optimizer=AdamW(learning_rate=2e-3 if scale != "paper" else 5e-4, schedule=COSINE),
        ),
        student=narrow,
        strategies={
            name: replace(call, optimizer=rates.get(name)) for name, call in strategies.items()
        },
        seeds=SEEDS[scale],
        budget=steps(total),
        goal=Goal(metric="accuracy", final_of="one_shot"),
        optimizer=AdamW(learning_rate=5e-4 if scale == "paper" else 3e-3, schedule=COSINE),
        engine=_engine(scale, total),
    )
    if scale == "small":
        engine = replace(spec.engine, precision="bfloat16", save_every=500, device="auto")
        spec = replace(spec, engine=replace(engine, eval_every=25, log_every=25))
    return {"text": Comparison(spec=spec)}


def text_comparison(scale: Scale) -> Comparison:
    """Return a comparison on text for many arms: `wikipedia-mlm`, at scale small the text demo.

    Args:
        scale: Size.
    """
    (comparison,) = _wikipedia(scale).values()
    if scale != "small":
        return comparison
    demo = text_demo(comparison.spec.output_dir)
    return Comparison(
        spec=replace(demo, seeds=SEEDS[scale], engine=replace(demo.engine, precision="float32"))
    )


WIKIPEDIA_MLM = Recipe(
    name="wikipedia-mlm",
    title="A narrow encoder learns masked tokens of a text from a wide one",
    source="2503.17494 Fig 3c; 2410.05464, Wikipedia and Books",
    known=(
        "BERT 12 x 768 to 256 wide: extraction above one-shot (Fig 3c, no numbers); at 24k, 60k "
        "and 120k steps labels .361 / .465 / .500, one-shot .381 / .478 / .508, progressive .403 / "
        ".483 / .515"
    ),
    costs={"smoke": "seconds", "small": "45 min", "paper": "one GPU, a day or more"},
    chart=Chart(kind="curves"),
    panels=_wikipedia,
)

RECIPES = (PCFG_MLM, PCFG_GPT, WIKIPEDIA_MLM)
