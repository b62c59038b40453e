"""Golden cases of strategies, stages, objectives and optimizers."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curricle import (
    SGD,
    AdamW,
    Curriculum,
    LabelLoss,
    LayerPair,
    MatchHidden,
    MatchLogits,
    Schedule,
    Stage,
    Trajectory,
    extraction,
    from_labels,
    one_shot,
    open_trajectory,
    progressive,
)
from curricle.objectives.divergences import JSD, ReverseKL, TotalVariation
from curricle.objectives.hidden import Normalize
from curricle.objectives.projections import Gaussian, Identity, Learned, Orthogonal, Sign
from curricle.objectives.temperature import LearnedTemperature
from curricle.teachers.trajectory import TrajectoryWriter
from tests.golden.cases import TOTAL, Run, cases, distilled, of, only, texts, words
from tests.golden.outcomes import Performance
from tests.parts import embedder, mlp

PAIR = LayerPair(student=1, teacher=1)
LOSSES = (0.70, 0.70, 0.69, 0.35, 0.05, 0.05, 0.04, 0.05)
"""Losses of a teacher at steps 10, 20, ... with a phase transition at step 40."""
WARM = Schedule(warmup=0.2, decay="linear", floor=0.1)


def trajectory(folder: Path) -> Trajectory:
    """Return checkpoints of a teacher that has the weights of seed n at step n."""
    writer = TrajectoryWriter(folder / "trajectory", [])
    for number, loss in enumerate(LOSSES, start=1):
        writer.save(mlp(16, 12, seed=10 * number).module, 10 * number, loss)
    return open_trajectory(folder / "trajectory")


def followed(
    folder: Path, curriculum: Callable[[Trajectory], Curriculum], **arguments: Any
) -> Performance:
    """Return the performance of a distillation from the checkpoints of `trajectory`."""
    checkpoints = trajectory(folder)
    return distilled(folder, curriculum(checkpoints), trajectory=checkpoints, **arguments)


def several_objectives() -> Curriculum:
    """Return stages with several objectives, each with another rule for weights and rates."""
    hidden = MatchHidden(pair=PAIR, projection=Sign(), center=True)
    deep = MatchHidden(pair=LayerPair(student=2, teacher=0.5), projection=Learned(), weight=0.5)
    return Curriculum(
        name="by hand",
        stages=(
            Stage(name="layers", duration="4 steps", objectives=(hidden, deep), trainable="new"),
            Stage(
                name="anchored",
                duration="24 examples",
                objectives=(hidden, MatchLogits(weight=0.1), MatchLogits(divergence=ReverseKL())),
                trainable="all",
                learning_rate_scale=2.0,
            ),
            Stage(
                name="outputs",
                duration="5 steps",
                objectives=(MatchLogits(weight=0.7), LabelLoss(weight=0.3)),
                optimizer_state="reset",
                schedule="own",
            ),
        ),
    )


STRATEGIES: dict[str, Run] = {
    "extraction": of(distilled, extraction(total=TOTAL)),
    "extraction of two pairs with frozen earlier layers": of(
        distilled,
        extraction(
            total="18 steps",
            pairs=2,
            layer_fraction=0.6,
            trainable="new",
            schedule="own",
            optimizer_state="reset",
        ),
        optimizer=AdamW(learning_rate=0.01, weight_decay=0.1),
    ),
    "extraction that runs the whole student": of(
        distilled, extraction(total=TOTAL, durations=("5 steps",), trainable="all", center=True)
    ),
    "extraction with a shared projection": of(
        distilled,
        extraction(total=TOTAL, pairs=2, layer_fraction=0.5, shared_projection=True),
        new_student=lambda: mlp(5, 5),
        new_teacher=lambda: mlp(12, 12, seed=1),
    ),
    "extraction that ends with labels": of(
        distilled, extraction(total="96 examples", final_objective=LabelLoss())
    ),
    "progressive over a trajectory": of(
        followed, lambda checkpoints: progressive(total="16 steps", trajectory=checkpoints)
    ),
    "progressive with refresh": of(
        followed,
        lambda checkpoints: progressive(
            total="16 steps", trajectory=checkpoints, refresh=4, speed=5.0
        ),
    ),
    "progressive through the transition": of(
        followed,
        lambda checkpoints: progressive(
            total="16 steps", trajectory=checkpoints, select="transition"
        ),
    ),
    "progressive with durations": of(
        followed,
        lambda checkpoints: progressive(
            total="14 steps",
            trajectory=checkpoints,
            select=(20, 50, 80),
            durations=("5 steps", "3 steps"),
            objective=MatchLogits(divergence=JSD(beta=0.3)),
        ),
        optimizer=AdamW(learning_rate=0.01),
    ),
    "one shot": of(distilled, one_shot(total=TOTAL)),
    "one shot from a checkpoint": of(
        followed, lambda _checkpoints: one_shot(total=TOTAL, teacher=30)
    ),
    "from labels": of(distilled, from_labels(total=TOTAL)),
    "stages by hand": of(
        distilled,
        several_objectives(),
        optimizer=SGD(learning_rate=0.05, momentum=0.9, weight_decay=0.01, schedule=WARM),
    ),
}
LAWS: dict[str, Any] = {
    "gaussian": Gaussian(),
    "wide gaussian": Gaussian(scale=2.0),
    "sign": Sign(),
    "orthogonal": Orthogonal(),
    "identity": Identity(),
    "learned": Learned(),
}
RULES: tuple[Normalize, ...] = ("none", "layernorm", "rms")
HIDDEN: dict[str, Run] = {
    f"hidden {name}, {rule}": of(
        distilled,
        only(MatchHidden(pair=PAIR, projection=law, normalize=rule), duration="6 steps"),
        new_student=lambda: mlp(12, 4),
        new_teacher=lambda: mlp(12, 12, seed=1),
    )
    for (name, law), rule in itertools.product(LAWS.items(), RULES)
}
HIDDEN |= {
    "hidden orthogonal to fewer features, centered": of(
        distilled, only(MatchHidden(pair=PAIR, projection=Orthogonal(), center=True))
    ),
    "hidden learned, centered": of(
        distilled,
        only(MatchHidden(pair=PAIR, projection=Learned(), center=True, normalize="rms")),
        settings={"gradient_accumulation_steps": 2},
    ),
    "hidden states at all positions with data": of(
        texts,
        only(MatchHidden(pair=PAIR)),
        new_data=lambda: words(selects=False),
    ),
    "hidden states at selected positions": of(
        texts, only(MatchHidden(pair=PAIR, positions="selected", center=True))
    ),
}
LOGITS: dict[str, Run] = {
    f"logits {name}": of(texts, only(objective))
    for name, objective in {
        "forward KL": MatchLogits(),
        "reverse KL": MatchLogits(divergence=ReverseKL()),
        "JSD": MatchLogits(divergence=JSD(beta=0.3)),
        "total variation": MatchLogits(divergence=TotalVariation()),
        "with temperatures": MatchLogits(
            teacher_temperature=2.0, student_temperature=1.5, scale="temperature_squared"
        ),
        "of the likeliest class": MatchLogits(teacher_temperature=0.0),
        "of the first classes": MatchLogits(num_classes=7),
        "forward KL in chunks": MatchLogits(chunk=2),
        "reverse KL in chunks": MatchLogits(divergence=ReverseKL(), chunk=4),
        "JSD in chunks": MatchLogits(divergence=JSD(), chunk="auto", student_temperature=2.0),
        "total variation in chunks": MatchLogits(divergence=TotalVariation(), chunk=3),
        "with a global learned temperature": LearnedTemperature(ramp=0.5, label_weight=0.0),
        "with a learned temperature of positions": LearnedTemperature(
            variant="instance", hidden=6, ramp=1.0, label_weight=0.2
        ),
    }.items()
}
LOGITS |= {
    "logits and labels": of(texts, only(MatchLogits(weight=0.7), LabelLoss(weight=0.3))),
    "logits and labels in chunks": of(
        texts, only(MatchLogits(weight=0.7, chunk=2), LabelLoss(weight=0.3, chunk=3))
    ),
    "logits at all positions with data": of(
        texts, only(MatchLogits(chunk=5)), new_data=lambda: words(selects=False)
    ),
    "logits and hidden states of words": of(
        texts,
        only(MatchLogits(), MatchHidden(pair=PAIR, normalize="layernorm")),
        new_student=lambda: embedder(3, 5),
        optimizer=AdamW(learning_rate=0.02),
    ),
}
OPTIMIZERS: dict[str, Run] = {
    f"optimizer {name}": of(
        distilled, extraction(total=TOTAL, layer_fraction=0.4), optimizer=optimizer
    )
    for name, optimizer in {
        "SGD with momentum": SGD(learning_rate=0.1, momentum=0.9),
        "SGD with weight decay": SGD(learning_rate=0.1, weight_decay=0.1, schedule=WARM),
        "AdamW": AdamW(learning_rate=0.01),
        "AdamW with weight decay": AdamW(
            learning_rate=0.01, betas=(0.8, 0.9), weight_decay=0.1, epsilon=1e-6, schedule=WARM
        ),
    }.items()
}
CASES = cases(STRATEGIES | HIDDEN | LOGITS | OPTIMIZERS)
