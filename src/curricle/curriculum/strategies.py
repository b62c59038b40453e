"""Strategies: functions that return curricula.

There are no strategy classes, and the engine runs stages independent of the strategy behind them. A
new method is another function, or a list of explicit stages.

| strategy | stages | source |
|---|---|---|
| `extraction` | per layer pair: MSE to a projected teacher layer; then KL to its logits | [CE] |
| `progressive` | per checkpoint of the teacher's training: KL to its logits | [PD] |
| `one_shot` | KL to the finished teacher's logits | Hinton et al. 2015 |
| `low_rank_clone` | KL to the logits, MSE to activations, projected weights | [LRC] |
| `from_labels` | a loss against the labels, no teacher | |
| `hidden_first`, `joint` | see `hidden_layers` | arXiv 2605.11513 |
| `auto` | see `automatic` | |

References:
    [CE] Gupta and Karmalkar 2025, arXiv 2503.17494.
    [PD] Panigrahi et al. 2024, arXiv 2410.05464.
    [LRC] Hao et al. 2025, arXiv 2505.12781.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from curricle.curriculum.automatic import auto
from curricle.curriculum.durations import (
    Duration,
    DurationText,
    StageDuration,
    StageDurationText,
    duration,
    remaining_time,
    split_evenly,
)
from curricle.curriculum.hidden_layers import Share, hidden_first, joint
from curricle.curriculum.initialization import StartText, start_before_layers, warm_start
from curricle.curriculum.layer_pairs import Pairs, listed_pairs
from curricle.curriculum.selection import Select, select_checkpoints
from curricle.curriculum.stages import Curriculum, Stage, TeacherReference
from curricle.errors import SpecError, near_names
from curricle.objectives.base import MOST_WEIGHT, Objective
from curricle.objectives.catalog import AnyObjective
from curricle.objectives.divergences import SquaredError
from curricle.objectives.hidden import MatchHidden, Normalize
from curricle.objectives.labels import LabelLoss, LabelLossName
from curricle.objectives.logits import MatchLogits
from curricle.objectives.low_rank_clone import LowRankClone
from curricle.objectives.paired_states import Positions
from curricle.objectives.projections import Gaussian, Projection
from curricle.renamed import name_hint
from curricle.values import checked

Schedule = Literal["global", "own"]
State = Literal["keep", "reset"]
Trainable = Literal["reached", "new", "all"]
Stages = Annotated[tuple[Stage, ...], Field(min_length=1)]


MOST_REFRESHES = 100_000
"""Maximum number of changes of the teacher; the paper has 200."""
TRANSITION_SHARE = 0.05
"""Part of the total with the checkpoint inside the transition as teacher: 1M of 20M in [PD]."""


@checked
def extraction(  # noqa: PLR0913 - each argument is a decision not stated in the paper
    *,
    total: DurationText,
    pairs: Pairs = 1,
    layer_fraction: Share | None = None,
    durations: tuple[StageDurationText, ...] | None = None,
    projection: Projection = Gaussian(),
    shared_projection: bool = False,
    normalize: Normalize = "auto",
    center: bool = False,
    positions: Positions = "all",
    trainable: Trainable = "reached",
    schedule: Schedule = "global",
    optimizer_state: State = "keep",
    final_objective: AnyObjective = MatchLogits(),
    teacher: TeacherReference = "final",
    init: StartText | None = None,
    name: str = "extraction",
) -> Curriculum:
    """Return curriculum extraction: layers of a finished teacher one after another, then logits.

    Args:
        total: Length of the curriculum.
        pairs: Layer pairs, earliest first, or a single one; a number r means
            `evenly_spaced_pairs(r)`.
        layer_fraction: Part of `total` for all layer stages together, divided equally; a quarter if
            neither this nor `durations` is set.
        durations: Length of each layer stage, instead of `layer_fraction`; for a rule its
            `at_most` is taken from `total`.
        projection: Law of the fixed random map from teacher to student width, `selection` of
            channels, or `learned`, as FitNets do; see `MatchHidden`.
        shared_projection: Whether all pairs use the same projection.
        normalize: Normalization of both states; see `MatchHidden`.
        center: Whether the mean of the projected states is subtracted.
        positions: Counted positions in the layer stages.
        trainable: Trainable parameters in the layer stages; `new` freezes earlier layers.
        schedule: Whether the learning rate follows the run's schedule or a schedule for each stage.
        optimizer_state: Whether the optimizer's state is kept or reset between stages.
        final_objective: Objective of the last stage.
        teacher: Teacher of all stages.
        init: Initialization of the student before the first step: a start or its name, such as
            `least_squares`; a random one shares
            its projection with the pairs.
        name: Name of the method in reports.

    Raises:
        SpecError: If there are no pairs, their number differs from the number of durations,
            both `layer_fraction` and `durations` are set, no time remains for the last stage, or
            the pairs do not share the projection of a random start.

    Source:
        [CE], Figure 1. Deviation: none known; shares, freezing and schedule are not in the public
        text.
    """
    total = duration(total)
    pairs = listed_pairs(pairs)
    if layer_fraction is not None and durations is not None:
        raise SpecError(
            f"'layer_fraction' must not be combined with 'durations'; got {layer_fraction}"
        )
    init = start_before_layers(init, shares_projection=shared_projection)
    lengths = _lengths(durations) or split_evenly(total, layer_fraction or 0.25, len(pairs))
    if len(pairs) != len(lengths):
        raise SpecError(
            f"'durations' must have one entry for each of the {len(pairs)} pairs; "
            f"got {len(lengths)}"
        )
    layers = [
        Stage(
            name=f"layer {number}",
            duration=length,
            objectives=(
                MatchHidden(
                    pair=pair,
                    projection=projection,
                    shared_projection=shared_projection,
                    normalize=normalize,
                    center=center,
                    positions=positions,
                ),
            ),
            teacher=teacher,
            trainable=trainable,
            schedule=schedule,
            optimizer_state=optimizer_state,
        )
        for number, (pair, length) in enumerate(zip(pairs, lengths, strict=True), start=1)
    ]
    logits = Stage(
        name="logits",
        duration=remaining_time(total, lengths),
        objectives=(final_objective,),
        teacher=teacher if final_objective.needs_teacher else "final",
        schedule=schedule,
        optimizer_state=optimizer_state,
    )
    return Curriculum(name=name, stages=(*layers, logits), init=init)


@checked
def progressive(  # noqa: PLR0913 - each argument is a decision of the method
    *,
    total: DurationText,
    trajectory: object,
    select: Select = "equal",
    refresh: int | None = None,
    speed: Annotated[float, Field(gt=0)] = 1.0,
    durations: tuple[StageDurationText, ...] | None = None,
    objective: AnyObjective = MatchLogits(),
    init: StartText | None = None,
    name: str = "progressive",
) -> Curriculum:
    """Return progressive distillation: the student follows the teacher's checkpoints.

    The checkpoints are set by `select`, or by a list of their steps as `trajectory`. There are
    three rules for the change of the teacher. By default every checkpoint is the teacher for an
    equal part of `total`, but the checkpoint inside the transition for a twentieth. With `refresh`
    R and `speed` f, the teacher at step s is the largest checkpoint not above
    f * (1 + floor(s / R)) * R, as in the paper's code; this needs `total` in steps. With
    `durations`, each checkpoint but the last has an explicit length; a list of two checkpoints and
    one duration is the paper's 2-shot.

    Args:
        total: Length of the curriculum.
        trajectory: A trajectory, or the steps of the checkpoints in order.
        select: `equal` for all checkpoints, `transition` for the checkpoint inside the teacher's
            phase transition, located by the losses of the trajectory, and the last (2-shot); or the
            steps of the selected checkpoints.
        refresh: R, student steps between changes of the teacher.
        speed: f, teacher steps for each student step; only with `refresh`.
        durations: Length of every stage but the last; for a rule its `at_most` is taken from
            `total`.
        objective: Objective of every stage.
        init: Initialization of the student's embeddings from the finished teacher's, before the
            first step.
        name: Name of the method in reports.

    Raises:
        SpecError: If there are no checkpoints, the rules are combined, or the trajectory has no
            losses for `transition`.

    Source:
        [PD], sections 3 and 4 and the released code's refresh rule. Deviation: before the first
        checkpoint its teacher is the first one; the paper selects the checkpoint in the transition
        by eye.
    """
    total = duration(total)
    selection = select_checkpoints(select, trajectory)
    steps = selection.steps
    if refresh is not None and (durations is not None or select == "transition"):
        setting = "'durations'" if durations is not None else "'select' 'transition'"
        raise SpecError(f"'refresh' must not be combined with {setting}; got both")
    if refresh is None and speed != 1.0:
        raise SpecError(
            f"'speed' has no effect without 'refresh'; set 'refresh' or remove it (got {speed})"
        )
    plan: Sequence[tuple[int, StageDuration]]
    if refresh is not None:
        plan = _refresh_plan(steps, total, refresh, speed)
    else:
        share = TRANSITION_SHARE if select == "transition" else 1 - 1 / len(steps)
        lengths = _lengths(durations) or split_evenly(total, share, len(steps) - 1)
        if len(lengths) != len(steps) - 1:
            raise SpecError(
                f"'durations' must have one entry fewer than the {len(steps)} checkpoints; "
                f"got {len(lengths)}"
            )
        plan = list(zip(steps, (*lengths, remaining_time(total, lengths)), strict=True))
    stages = [
        Stage(name=f"checkpoint {step}", duration=length, objectives=(objective,), teacher=step)
        for step, length in plan
    ]
    return Curriculum(name=name, stages=tuple(stages), init=warm_start(init), note=selection.note)


@checked
def one_shot(
    *,
    total: DurationText,
    objective: AnyObjective = MatchLogits(),
    label_weight: Annotated[float, Field(ge=0, le=MOST_WEIGHT)] = 0.0,
    label_loss: LabelLossName | None = None,
    teacher: TeacherReference = "final",
    init: StartText | None = None,
    name: str = "one_shot",
) -> Curriculum:
    """Return plain distillation: KL to the finished teacher's logits in a single stage.

    Args:
        total: Length of the curriculum.
        objective: Objective of the stage.
        label_weight: Weight of a second objective, a loss against the data's labels; 0 leaves it
            out.
        label_loss: That loss; see `LabelLoss`. None takes the squared error beside an objective of
            squared errors, as for regression, and else the cross-entropy.
        teacher: Teacher of the stage.
        init: Initialization of the student before the first step: a start or its name, such as
            `least_squares`.
        name: Name of the method in reports.

    Source:
        Hinton et al. 2015 (arXiv 1503.02531), section 2: the weighted sum of both objectives.
        Deviation: the objective of the teacher keeps its own weight; it is not 1 - `label_weight`.
    """
    loss = label_loss or _loss_beside(objective)
    labels = (LabelLoss(weight=label_weight, loss=loss),) if label_weight else ()
    stage = Stage(name="logits", duration=total, objectives=(objective, *labels), teacher=teacher)
    return Curriculum(name=name, stages=(stage,), init=warm_start(init))


def _loss_beside(objective: Objective) -> LabelLossName:
    """Return the label loss of outputs that an objective compares."""
    is_value = isinstance(objective, MatchLogits) and isinstance(objective.divergence, SquaredError)
    return "squared_error" if is_value else "cross_entropy"


@checked
def low_rank_clone(
    *,
    total: DurationText,
    start: Literal["selection", "random"] = "selection",
    clone_weight: Annotated[float, Field(gt=0, le=MOST_WEIGHT)] = 0.2,
    objective: AnyObjective = MatchLogits(),
    label_weight: Annotated[float, Field(ge=0, le=MOST_WEIGHT)] = 0.0,
    label_loss: LabelLossName | None = None,
    name: str = "low_rank_clone",
) -> Curriculum:
    """Return a low-rank clone: the student's weights are trained projections of the teacher's.

    It needs a student of the teacher's architecture, no larger along any axis; the projections are
    merged into its weights at every step. See `LowRankClone`.

    Args:
        total: Length of the curriculum.
        start: Initial projections: `selection` of channels by activations, or `random`.
        clone_weight: Weight of the activations of all linear maps in paired blocks.
        objective: Objective of the outputs.
        label_weight: Weight of a loss against the data's labels; 0 leaves it out.
        label_loss: That loss; see `LabelLoss`. None as in `one_shot`.
        name: Name of the method in reports.

    Source:
        [LRC]; `selection` is that of RED (arXiv 2605.29327). Deviations: those of `LowRankClone`;
        KL at temperature 1 without labels by default, as in `one_shot`, where the paper adds the
        labels' cross-entropy and softens the KL by a temperature.
    """
    loss = label_loss or _loss_beside(objective)
    labels = (LabelLoss(weight=label_weight, loss=loss),) if label_weight else ()
    clone = LowRankClone(start=start, weight=clone_weight)
    stage = Stage(name="clone", duration=total, objectives=(clone, objective, *labels))
    return Curriculum(name=name, stages=(stage,))


@checked
def from_labels(
    *,
    total: DurationText,
    loss: LabelLossName = "cross_entropy",
    init: StartText | None = None,
    name: str = "from_labels",
) -> Curriculum:
    """Return training from the data's labels, without a teacher unless the start reads one.

    Args:
        total: Length of the curriculum.
        loss: Loss against the labels; see `LabelLoss`.
        init: Initialization of the student before the first step: a start or its name, such as
            `least_squares`, which reads a teacher.
        name: Name of the method in reports.
    """
    stage = Stage(name="labels", duration=total, objectives=(LabelLoss(loss=loss),))
    return Curriculum(name=name, stages=(stage,), init=warm_start(init))


@checked
def staged(
    *,
    total: DurationText,
    stages: Stages,
    init: StartText | None = None,
    name: str = "staged",
) -> Curriculum:
    """Return a curriculum of explicit stages.

    Args:
        total: Length of the curriculum; the stages must add up to it, a rule with its `at_most`.
        stages: The stages in order.
        init: Initialization of the student before the first step: a start or its name, such as
            `least_squares`.
        name: Name of the method in reports.

    Raises:
        SpecError: If the stages do not add up to `total`.
    """
    *earlier, last = stages
    remaining = remaining_time(duration(total), [stage.duration for stage in earlier])
    if remaining != last.duration.at_most:
        raise SpecError(
            f"'stages' must add up to 'total' {total}; stage {last.name!r} would have to last "
            f"{remaining}; got {last.duration.at_most}"
        )
    return Curriculum(name=name, stages=stages, init=warm_start(init))


STRATEGIES: Mapping[str, Callable[..., Curriculum]] = MappingProxyType(
    {
        "extraction": extraction,
        "progressive": progressive,
        "one_shot": one_shot,
        "low_rank_clone": low_rank_clone,
        "from_labels": from_labels,
        "staged": staged,
        "hidden_first": hidden_first,
        "joint": joint,
        "auto": auto,
    }
)
"""The strategies of run specs, by `kind`."""


def build(call: Mapping[str, object], *, total: Duration, trajectory: object) -> Curriculum:
    """Return the curriculum of a spec's `{kind: ..., arguments}`.

    Args:
        call: The strategy's name as `kind`, and its arguments.
        total: Length of the curriculum; `call` must not contain it.
        trajectory: Checkpoints for strategies on a teacher's trajectory.

    Raises:
        SpecError: If the strategy or an argument does not exist or does not fit.
    """
    kind = str(call.get("kind"))
    if kind not in STRATEGIES:
        raise SpecError(f"'kind' {kind!r} is not a strategy; {near_names(kind, STRATEGIES)}")
    strategy = STRATEGIES[kind]
    names = [name for name in inspect.signature(strategy).parameters if name != "total"]
    arguments = {name: argument for name, argument in call.items() if name != "kind"}
    for name in arguments:
        if name not in names:
            raise SpecError(f"{name!r} is not an argument of {kind}; {name_hint(name, names)}")
    if "trajectory" in names:
        arguments.setdefault("trajectory", trajectory)
    return strategy(total=total, **arguments)


def _lengths(durations: Sequence[StageDuration | str] | None) -> tuple[StageDuration, ...]:
    return tuple(
        duration(length) if isinstance(length, str) else length for length in durations or ()
    )


def _refresh_plan(
    steps: tuple[int, ...], total: Duration, refresh: int, speed: float
) -> list[tuple[int, Duration]]:
    """Return (checkpoint, length) by the refresh rule, with equal neighbors joined.

    Raises:
        SpecError: If the total is not in steps or `refresh` is not positive.
    """
    if total.unit != "steps" or refresh < 1:
        raise SpecError(f"'refresh' must be positive and 'total' in steps; got {refresh}, {total}")
    if total.number > MOST_REFRESHES * refresh:
        raise SpecError(
            f"'refresh' must be at least {math.ceil(total.number / MOST_REFRESHES)} for a total of "
            f"{total}, for at most {MOST_REFRESHES:,} changes of the teacher; got {refresh}"
        )
    plan: list[tuple[int, int]] = []
    for start in range(0, total.number, refresh):
        # Without the small term 0.29 * 100 = 28.999999999999996 would miss checkpoint 29.
        bound = speed * ((1 + start // refresh) * refresh) + 1e-6
        step = max((step for step in steps if step <= bound), default=steps[0])
        length = min(refresh, total.number - start)
        if plan and plan[-1][0] == step:
            plan[-1] = (step, plan[-1][1] + length)
        else:
            plan.append((step, length))
    return [(step, Duration(number=length)) for step, length in plan]
