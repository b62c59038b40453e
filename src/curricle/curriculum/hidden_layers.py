"""Strategies that match several hidden layers at once: before the logits, or together with them.

| strategy | stages | source |
|---|---|---|
| `hidden_first` | all layer pairs together; then KL to the teacher's logits | HLDF of [HLD] |
| `joint` | all layer pairs and KL to the logits together, in one stage | HLDC of [HLD] |

Both take any objective on hidden states. `extraction` differs: its pairs follow one another, so
that earlier stages end at earlier blocks.

References:
    [HLD] A Study on Hidden Layer Distillation for LLM Pre-Training, arXiv 2605.11513.
"""

from typing import Annotated

from pydantic import Field

from curricle.curriculum.durations import DurationText, duration, remaining_time, split_evenly
from curricle.curriculum.initialization import Start, StartText, start_before_layers
from curricle.curriculum.layer_pairs import (
    LayerObjective,
    LayerTerm,
    Pairs,
    layer_terms,
    listed_pairs,
)
from curricle.curriculum.stages import Curriculum, Stage, TeacherReference
from curricle.objectives.base import MOST_WEIGHT
from curricle.objectives.catalog import AnyObjective
from curricle.objectives.hidden import MatchHidden
from curricle.objectives.logits import MatchLogits
from curricle.values import checked

Share = Annotated[float, Field(gt=0, lt=1)]
"""Part of a curriculum."""


@checked
def hidden_first(  # noqa: PLR0913 - each argument is a decision of the method
    *,
    total: DurationText,
    pairs: Pairs = 1,
    layer_fraction: Share = 0.25,
    layer_objective: LayerObjective = "hidden",
    final_objective: AnyObjective = MatchLogits(),
    teacher: TeacherReference = "final",
    init: StartText | None = None,
    name: str = "hidden_first",
) -> Curriculum:
    """Return hidden layers first, all pairs at once, then logits.

    The first stage runs both models up to the deepest tap only.

    Args:
        total: Length of the curriculum.
        pairs: Layer pairs or a single one; a number r means `evenly_spaced_pairs(r)`.
        layer_fraction: Part of `total` for the stage of the layers.
        layer_objective: Objective at each pair: its kind (`hidden`, `cka`, `procrustes` or
            `relations`), or its fields without `pair`, such as `{kind: relations, heads: 8}`.
        final_objective: Objective of the last stage.
        teacher: Teacher of both stages.
        init: Initialization of the student before the first step: a start or its name, such as
            `least_squares`.
        name: Name of the method in reports.

    Raises:
        SpecError: If there are no pairs, the objective of the layers is another one, no time
            remains for the last stage, or the pairs do not share the projection of a random start.

    Source:
        [HLD], HLDF. Deviation: terms are averaged over pairs, and states of different widths are
        compared by a fixed random projection unless `layer_objective` names another; neither is in
        the public text.
    """
    total = duration(total)
    terms = layer_terms(listed_pairs(pairs), layer_objective)
    (length,) = split_evenly(total, layer_fraction, 1)
    layers = Stage(name="layers", duration=length, objectives=terms, teacher=teacher)
    logits = Stage(
        name="logits",
        duration=remaining_time(total, [length]),
        objectives=(final_objective,),
        teacher=teacher if final_objective.needs_teacher else "final",
    )
    return Curriculum(name=name, stages=(layers, logits), init=_start(init, terms))


@checked
def joint(  # noqa: PLR0913 - each argument is a decision of the method
    *,
    total: DurationText,
    pairs: Pairs = 1,
    layer_objective: LayerObjective = "hidden",
    layer_weight: Annotated[float, Field(gt=0, le=MOST_WEIGHT)] = 1.0,
    final_objective: AnyObjective = MatchLogits(),
    teacher: TeacherReference = "final",
    init: StartText | None = None,
    name: str = "joint",
) -> Curriculum:
    """Return hidden layers and logits together, in a single stage.

    Args:
        total: Length of the curriculum.
        pairs: Layer pairs or a single one; a number r means `evenly_spaced_pairs(r)`.
        layer_objective: Objective at each pair: its kind (`hidden`, `cka`, `procrustes` or
            `relations`), or its fields without `pair`, such as `{kind: relations, heads: 8}`.
        layer_weight: Weight of the mean over the pairs beside the objective of the logits.
        final_objective: Objective of the logits.
        teacher: Teacher of all objectives.
        init: Initialization of the student before the first step: a start or its name, such as
            `least_squares`.
        name: Name of the method in reports.

    Raises:
        SpecError: If there are no pairs, the objective of the layers is another one, or the pairs
            do not share the projection of a random start.

    Source:
        [HLD], HLDC. With a learned projection this is FitNets' hint beside the logits (Romero et
        al. 2014, arXiv 1412.6550), with relations MiniLMv2 beside the logits. Deviation: as in
        `hidden_first`.
    """
    terms = layer_terms(listed_pairs(pairs), layer_objective, weight=layer_weight)
    stage = Stage(
        name="layers and logits",
        duration=total,
        objectives=(final_objective, *terms),
        teacher=teacher,
    )
    return Curriculum(name=name, stages=(stage,), init=_start(init, terms))


def _start(init: Start | str | None, terms: tuple[LayerTerm, ...]) -> Start | None:
    """Return the start of a curriculum with layer pairs."""
    shares = all(isinstance(term, MatchHidden) and term.shared_projection for term in terms)
    return start_before_layers(init, shares_projection=shares)
