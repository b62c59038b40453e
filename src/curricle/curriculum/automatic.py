"""Strategy without settings: the start and the stages follow from the models.

The choices are values that binding, budget and run resolve: `AutoStart`, the first start that can
be bound, `UnlessExplained`, a stage that is left out by the share that the student explains before
it, and `PricedLabels`, labels in the place of a teacher whose steps are expensive.
"""

from curricle.curriculum.durations import (
    DurationText,
    UnlessExplained,
    UntilPlateau,
    duration,
    remaining_time,
    split_evenly,
)
from curricle.curriculum.initialization import AutoStart, StartText, warm_start
from curricle.curriculum.stages import Curriculum, PricedLabels, Stage
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.values import checked

EXPLAINED_SHARE = 0.05
"""Share of the teacher's logits which a student explains before `auto` matches them alone."""
MOST_LAYER_SHARE = 0.3
"""Largest part of the total for the layer stage of `auto`."""
AUTO_PAIRS = tuple(LayerPair(student=depth, teacher=depth) for depth in (0.5, 0.999))
"""Layer pairs of `auto`: the middle and the last blocks of both models."""


@checked
def auto(
    *,
    total: DurationText,
    objective: MatchLogits = MatchLogits(),
    labels: PricedLabels | None = PricedLabels(),
    init: StartText | None = AutoStart(),
    name: str = "auto",
) -> Curriculum:
    """Return a curriculum without settings, whose start and layer stage follow from the models.

    The student begins with the first closed-form start that the models allow. If it explains
    `EXPLAINED_SHARE` of the teacher's logits then, the logits alone are matched, which is one-shot
    after a start. Otherwise the middle block is matched first and then the last, each until its
    loss no longer falls; the steps that are left go to the logits. A stage on a layer that the
    models do not have is left out, too. The plan and the records of the run have the reasons.

    Under a budget of FLOPs or seconds the student learns from labels after a least-squares start,
    if a step with the teacher costs twice a step from labels or more and the budget pays for few
    epochs. With a length of steps or examples, and for data without labels, the teacher is kept.

    Args:
        total: Length of the curriculum.
        objective: Objective on the logits.
        labels: Loss against the labels and the price from which on they are taken; None always
            keeps the teacher.
        init: Initialization of the student before the first step; None for a student whose weights
            are to be kept.
        name: Name of the method in reports.

    Source:
        None; ours. `docs/decisions/0015-auto.md` has the measurements behind the constants.
    """
    total = duration(total)
    longest = split_evenly(total, MOST_LAYER_SHARE, len(AUTO_PAIRS))
    layers = [
        Stage(
            name=f"layer {number}",
            duration=UnlessExplained(
                share=EXPLAINED_SHARE, duration=UntilPlateau(at_most=length, window=50, patience=2)
            ),
            objectives=(MatchHidden(pair=pair, shared_projection=True, normalize="layernorm"),),
            required=False,
        )
        for number, (pair, length) in enumerate(zip(AUTO_PAIRS, longest, strict=True), start=1)
    ]
    logits = Stage(name="logits", duration=remaining_time(total, longest), objectives=(objective,))
    return Curriculum(
        name=name,
        stages=(*layers, logits),
        init=warm_start(init),
        saved="steps",
        labels=labels,
    )
