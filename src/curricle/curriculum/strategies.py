"""Which curricula are there?

Each strategy is a function that returns a `Curriculum`; there are no strategy classes, and the
engine never learns which strategy made the stages it runs. A new method is one more function, or
a list of stages written by hand.

| strategy | stages | source |
|---|---|---|
| `extraction` | one a layer pair: MSE to a projected teacher layer; then KL to its logits | [CE] |
| `progressive` | one a checkpoint of the teacher's training: KL to its logits | [PD] |
| `one_shot` | KL to the finished teacher's logits | Hinton et al. 2015 |
| `from_labels` | cross-entropy to the labels, no teacher | |

References:
    [CE] Gupta and Karmalkar 2025, arXiv 2503.17494.
    [PD] Panigrahi et al. 2024, arXiv 2410.05464.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from curricle.curriculum.durations import Duration, DurationText, duration
from curricle.curriculum.selection import HasSteps, Select, select_checkpoints
from curricle.curriculum.stages import Curriculum, Stage, TeacherReference
from curricle.curriculum.starts import RandomStart, WarmStart
from curricle.errors import SpecError, near_names
from curricle.objectives.catalog import AnyObjective
from curricle.objectives.hidden import LayerPair, MatchHidden, NamedPair, Normalize, Positions
from curricle.objectives.outputs import FitLabels, MatchLogits
from curricle.objectives.projections import Gaussian, Projection
from curricle.specs import checked

Share = Annotated[float, Field(gt=0, lt=1)]
Schedule = Literal["global", "own"]
State = Literal["keep", "reset"]
Trains = Literal["up_to", "own", "all"]
Stages = Annotated[tuple[Stage, ...], Field(min_length=1)]
MOST_PAIRS = 1_000
"""Layer pairs, hence stages, that a number of pairs may stand for."""
MOST_REFRESHES = 100_000
"""Times at which the teacher may change; the paper has 200."""
TRANSITION_SHARE = 0.05
"""Part of the total for which the checkpoint inside the transition teaches: 1M of 20M in [PD]."""


def uniform(num_pairs: int) -> tuple[LayerPair, ...]:
    """Return layer pairs spread evenly over the depth of both models.

    Pair i of r lies at depth i / (r + 1) of either model, so the last block is left to the
    logits: three pairs of two 4-block models are taps 1, 2, 3, and one pair of a one-block model
    is its only tap.

    Raises:
        SpecError: If `num_pairs` is not positive, or more than 1,000.
    """
    if not 1 <= num_pairs <= MOST_PAIRS:
        raise SpecError(f"'num_pairs' must lie between 1 and {MOST_PAIRS:,}; got {num_pairs}")
    fractions = [float(Fraction(i, num_pairs + 1)) for i in range(1, num_pairs + 1)]
    return tuple(LayerPair(student=depth, teacher=depth) for depth in fractions)


@checked
def extraction(  # noqa: PLR0913 - each argument is a decision the paper leaves open
    *,
    total: DurationText,
    pairs: tuple[NamedPair, ...] | int = 1,
    share: Share | None = None,
    durations: tuple[DurationText, ...] | None = None,
    projection: Projection = Gaussian(),  # noqa: B008 - a frozen value
    shared_projection: bool = False,
    normalize: Normalize = "auto",
    center: bool = False,
    positions: Positions = "all",
    trains: Trains = "up_to",
    schedule: Schedule = "global",
    optimizer_state: State = "keep",
    last: AnyObjective = MatchLogits(),  # noqa: B008 - a frozen value
    teacher: TeacherReference = "final",
    start: WarmStart | None = None,
    name: str = "extraction",
) -> Curriculum:
    """Return curriculum extraction: layers of a finished teacher one after another, then logits.

    Args:
        total: Length of the whole curriculum.
        pairs: Layer pairs, earliest first; a number r means `uniform(r)`.
        share: Part of `total` for all layer stages together, divided equally; a quarter if
            neither this nor `durations` is given.
        durations: Length of each layer stage, instead of `share`.
        projection: Law of the fixed random map from teacher to student width.
        shared_projection: Whether all pairs use one projection.
        normalize: Normalization of both states; see `MatchHidden`.
        center: Whether the mean of the projected states is subtracted.
        positions: Positions that count in the layer stages.
        trains: Which parameters train in the layer stages; `own` freezes earlier layers.
        schedule: Whether the learning rate follows the run's schedule or one for each stage.
        optimizer_state: Whether the optimizer's state is kept at the borders.
        last: Objective of the last stage.
        teacher: Which teacher is read.
        start: What sets the student's embeddings before the first step; a random one shares its
            projection with the pairs.
        name: Name of the method in reports.

    Raises:
        SpecError: If there are no pairs, their number differs from the number of durations,
            `share` is given as well, the layer stages leave nothing for the last one, or the pairs
            do not share the projection of a random start.

    Source:
        [CE], Figure 1. Deviation: none known; shares, freezing and schedule are not in the text
        that is public.
    """
    total = duration(total)
    chosen = uniform(pairs) if isinstance(pairs, int) else pairs
    if not chosen:
        raise SpecError(f"'pairs' must hold at least one layer pair; got {chosen}")
    if share is not None and durations is not None:
        raise SpecError(f"'share' must not be given with 'durations'; got {share}")
    if isinstance(start, RandomStart) and not shared_projection:
        raise SpecError(
            f"'shared_projection' must be true after a random 'start', whose projection it is; "
            f"got {shared_projection}"
        )
    lengths = _lengths(durations) or _equal_parts(total, share or 0.25, len(chosen))
    if len(chosen) != len(lengths):
        raise SpecError(
            f"'durations' must be as many as the {len(chosen)} pairs; got {len(lengths)}"
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
            trains=trains,
            schedule=schedule,
            optimizer_state=optimizer_state,
        )
        for number, (pair, length) in enumerate(zip(chosen, lengths, strict=True), start=1)
    ]
    logits = Stage(
        name="logits",
        duration=_rest(total, lengths),
        objectives=(last,),
        teacher=teacher if last.needs_teacher else "final",
        schedule=schedule,
        optimizer_state=optimizer_state,
    )
    return Curriculum(name=name, stages=(*layers, logits), start=start)


@checked
def progressive(  # noqa: PLR0913 - each argument is a decision of the method
    *,
    total: DurationText,
    trajectory: Any,  # noqa: ANN401 - pydantic cannot check a protocol; done below
    select: Select = "equal",
    refresh: int | None = None,
    speed: Annotated[float, Field(gt=0)] = 1.0,
    durations: tuple[DurationText, ...] | None = None,
    objective: AnyObjective = MatchLogits(),  # noqa: B008 - a frozen value
    start: WarmStart | None = None,
    name: str = "progressive",
) -> Curriculum:
    """Return progressive distillation: the student follows the teacher's checkpoints.

    Which checkpoints teach is said by `select`, or by listing their steps as `trajectory`. Three
    ways to say when the teacher changes. By default every checkpoint is taught for an equal part
    of `total`, but the one inside the transition for a twentieth. With `refresh` R and `speed` f,
    the student at step s is taught by the largest checkpoint not above f * (1 + floor(s / R)) * R,
    as in the paper's code; this needs `total` in steps. With `durations`, each checkpoint but the
    last has its own length; a list of two checkpoints and one duration is the paper's 2-shot.

    Args:
        total: Length of the whole curriculum.
        trajectory: A trajectory, or the steps of the checkpoints to use in order.
        select: `equal` takes all checkpoints, `transition` the one inside the teacher's phase
            transition and the last (2-shot), found from the losses that the trajectory keeps; or
            the steps of those to take.
        refresh: R, student steps between changes of the teacher.
        speed: f, teacher steps for each student step; only with `refresh`.
        durations: Length of every stage but the last.
        objective: Objective of every stage.
        start: What sets the student's embeddings, from the finished teacher's, before the first
            step.
        name: Name of the method in reports.

    Raises:
        SpecError: If there are no checkpoints, the ways are mixed, or the trajectory has no losses
            to find a transition in.

    Source:
        [PD], sections 3 and 4 and the released code's refresh rule. Deviation: before the first
        checkpoint the first one teaches; the paper picks the checkpoint in the transition by eye.
    """
    total = duration(total)
    chosen = select_checkpoints(select, trajectory)
    steps = chosen.steps
    if refresh is not None and (durations is not None or select == "transition"):
        other = "'durations'" if durations is not None else "'select' 'transition'"
        raise SpecError(f"'refresh' must not be combined with {other}; got both")
    if refresh is None and speed != 1.0:
        raise SpecError(
            f"'speed' must be used with 'refresh', without it has no effect; got {speed}"
        )
    if refresh is not None:
        plan = _refreshed(steps, total, refresh, speed)
    else:
        share = TRANSITION_SHARE if select == "transition" else 1 - 1 / len(steps)
        lengths = _lengths(durations) or _equal_parts(total, share, len(steps) - 1)
        if len(lengths) != len(steps) - 1:
            raise SpecError(
                f"'durations' must be one fewer than the {len(steps)} checkpoints; "
                f"got {len(lengths)}"
            )
        plan = list(zip(steps, (*lengths, _rest(total, lengths)), strict=True))
    stages = [
        Stage(name=f"checkpoint {step}", duration=length, objectives=(objective,), teacher=step)
        for step, length in plan
    ]
    return Curriculum(name=name, stages=tuple(stages), start=start, note=chosen.note)


@checked
def one_shot(
    *,
    total: DurationText,
    objective: AnyObjective = MatchLogits(),  # noqa: B008 - a frozen value
    teacher: TeacherReference = "final",
    start: WarmStart | None = None,
    name: str = "one_shot",
) -> Curriculum:
    """Return plain distillation: KL to the finished teacher's logits all along.

    Args:
        total: Length of the curriculum.
        objective: What is minimized.
        teacher: Which teacher is read.
        start: What sets the student's embeddings before the first step.
        name: Name of the method in reports.
    """
    stage = Stage(name="logits", duration=total, objectives=(objective,), teacher=teacher)
    return Curriculum(name=name, stages=(stage,), start=start)


@checked
def from_labels(*, total: DurationText, name: str = "from_labels") -> Curriculum:
    """Return training from the data's labels, without a teacher.

    Args:
        total: Length of the curriculum.
        name: Name of the method in reports.
    """
    stage = Stage(name="labels", duration=total, objectives=(FitLabels(),))
    return Curriculum(name=name, stages=(stage,))


@checked
def staged(
    *,
    total: DurationText,
    stages: Stages,
    start: WarmStart | None = None,
    name: str = "staged",
) -> Curriculum:
    """Return a curriculum from stages written out one by one.

    Args:
        total: Length of the whole; the stages must add up to it.
        stages: The stages in order.
        start: What sets the student's embeddings before the first step.
        name: Name of the method in reports.

    Raises:
        SpecError: If the stages do not add up to `total`.
    """
    rest, last = _rest(duration(total), [stage.duration for stage in stages[:-1]]), stages[-1]
    if rest != last.duration:
        raise SpecError(
            f"'stages' must add up to 'total' {total}; stage {last.name!r} would have to last "
            f"{rest}; got {last.duration}"
        )
    return Curriculum(name=name, stages=stages, start=start)


STRATEGIES: Mapping[str, Callable[..., Curriculum]] = MappingProxyType(
    {
        "extraction": extraction,
        "progressive": progressive,
        "one_shot": one_shot,
        "from_labels": from_labels,
        "staged": staged,
    }
)
"""The strategies that a run spec can name by `kind`."""


def build(
    call: Mapping[str, Any], *, total: Duration, trajectory: HasSteps | Sequence[int] | None
) -> Curriculum:
    """Return the curriculum that a spec's `{kind: ..., arguments}` stands for.

    Args:
        call: The strategy's name as `kind`, and its arguments.
        total: Length of the curriculum; an argument of the same name must not be given.
        trajectory: Checkpoints for strategies that follow a teacher's training.

    Raises:
        SpecError: If the strategy or an argument does not exist or does not fit.
    """
    kind = str(call.get("kind"))
    if kind not in STRATEGIES:
        raise SpecError(f"'kind' {kind!r} is not a strategy; {near_names(kind, STRATEGIES)}")
    strategy = STRATEGIES[kind]
    known = [name for name in inspect.signature(strategy).parameters if name != "total"]
    arguments = {name: given for name, given in call.items() if name != "kind"}
    for name in arguments:
        if name not in known:
            raise SpecError(f"{name!r} is not an argument of {kind}; {near_names(name, known)}")
    if "trajectory" in known:
        arguments.setdefault("trajectory", trajectory)
    return strategy(total=total, **arguments)


def _lengths(given: Sequence[Duration | str] | None) -> tuple[Duration, ...]:
    return tuple(duration(one) for one in given or ())


def _equal_parts(total: Duration, share: float, parts: int) -> tuple[Duration, ...]:
    """Return lengths that make up `share` of the total and differ by one unit at most."""
    # Rounding the borders instead of the lengths keeps the rounding errors from adding up.
    borders = [
        math.floor(total.number * share * part / max(parts, 1) + 0.5) for part in range(parts + 1)
    ]
    return tuple(
        Duration(number=max(1, end - start), unit=total.unit)
        for start, end in itertools.pairwise(borders)
    )


def _rest(total: Duration, lengths: Sequence[Duration]) -> Duration:
    """Return what the lengths leave of the total.

    Raises:
        SpecError: If they leave nothing or are in another unit.
    """
    for length in lengths:
        if length.unit != total.unit:
            raise SpecError(
                f"'durations' must be in {total.unit} like 'total' (which a budget of FLOPs or "
                f"seconds gives in steps); got {length}"
            )
    rest = total.number - sum(length.number for length in lengths)
    if rest < 1:
        raise SpecError(
            f"'total' {total} must be longer than the stages before the last; they take "
            f"{total.number - rest}"
        )
    return Duration(number=rest, unit=total.unit)


def _refreshed(
    steps: tuple[int, ...], total: Duration, refresh: int, speed: float
) -> list[tuple[int, Duration]]:
    """Return (checkpoint, length) by the refresh rule, equal neighbors joined.

    Raises:
        SpecError: If the total is not in steps or `refresh` is not positive.
    """
    if total.unit != "steps" or refresh < 1:
        raise SpecError(f"'refresh' must be positive and 'total' in steps; got {refresh}, {total}")
    if total.number > MOST_REFRESHES * refresh:
        raise SpecError(
            f"'refresh' must be at least {math.ceil(total.number / MOST_REFRESHES)} for a total of "
            f"{total}, so that there are at most {MOST_REFRESHES:,} times; got {refresh}"
        )
    plan: list[tuple[int, int]] = []
    for start in range(0, total.number, refresh):
        # The small term keeps 0.29 * 100 = 28.999999999999996 from missing checkpoint 29.
        bound = speed * ((1 + start // refresh) * refresh) + 1e-6
        step = max((step for step in steps if step <= bound), default=steps[0])
        length = min(refresh, total.number - start)
        if plan and plan[-1][0] == step:
            plan[-1] = (step, plan[-1][1] + length)
        else:
            plan.append((step, length))
    return [(step, Duration(number=length)) for step, length in plan]
