"""Choice between the teacher and labels by the price of a step.

A start that fits the whole student by least squares gives it the content of the teacher's weights.
After it, a budget of FLOPs or seconds pays for several times as many steps from labels as with the
teacher, and `PricedLabels` of a curriculum takes them from a price on.

Design: price and number of epochs follow from the bound stages and the budget, so the choice is
made before the first step, stands in the plan, and is made again alike when a run is resumed.
FLOPs stand for seconds in the price; epochs do not follow from seconds, so data of a known length
keep the teacher then. Nothing is measured on held-out data. A budget of steps or examples makes no
choice, since at equal steps a teacher costs nothing.

Source:
    None; ours. `docs/decisions/0015-auto.md` has the measurements.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from curricle.curriculum.durations import Duration
from curricle.curriculum.initialization import LeastSquaresStart
from curricle.curriculum.stages import Curriculum, PricedLabels
from curricle.curriculum.strategies import from_labels
from curricle.data.streams import examples_per_epoch
from curricle.errors import BindError, DataError
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.starting import start_notes

Build = Callable[[Duration], Curriculum]
"""Function from a length to a curriculum."""
Bind = Callable[[Curriculum], BoundRun]
"""Function from a curriculum to its run."""


def with_choice(build: Build, bound: Bind, total: Duration, *, flops: float | None) -> Build:
    """Return a function whose curricula have the teacher or the labels, with a note on the choice.

    Args:
        build: Returns the curriculum of a length.
        bound: Binds a curriculum.
        total: Length at which both are bound.
        flops: The budget in FLOPs; None for one of seconds.

    Raises:
        BindError: If the curriculum does not fit.
    """
    labels = build(total).labels
    if labels is None:
        return build
    run = bound(build(total))
    if not _starts_whole(run):
        return _with_teacher(build, "no start by least squares fits the whole student")
    taken = partial(_from_labels, build, labels)
    try:
        # Data without labels, or with others than those of the loss, show here.
        candidate = bound(taken(total))
    except (BindError, DataError) as error:
        return _with_teacher(build, str(error))
    price = _step_flops(run) / (_step_flops(candidate) or 1)
    words = f"a step with it costs {price:.2g} steps from labels"
    if price < labels.price:
        return _with_teacher(build, f"{words}, fewer than {labels.price:g}")
    if reason := _too_many_epochs(candidate, labels, flops):
        return _with_teacher(build, reason)
    note = f"labels: after the start they take the place of the teacher, since {words}"
    return lambda length: _noted(taken(length), note)


def _starts_whole(run: BoundRun) -> bool:
    """Return whether a run begins with a start by least squares that leaves nothing as drawn."""
    start = run.warm_start
    return (
        start is not None
        and isinstance(start.declared, LeastSquaresStart)
        and start.declared.blocks is None
        and not start_notes(start)
    )


def _step_flops(run: BoundRun) -> int:
    """Return the FLOPs of a step of the last stage, student and teacher."""
    plan = run.stages[-1].plan
    return plan.student_flops + plan.teacher_flops


def _too_many_epochs(candidate: BoundRun, labels: PricedLabels, flops: float | None) -> str:
    """Return why data of a known length would be repeated too often; empty if they are not."""
    stream = candidate.stream
    per_epoch = examples_per_epoch(stream)
    if per_epoch is None:
        return ""
    if flops is None:
        return "a budget of seconds does not give the number of epochs of the data"
    # The start is not subtracted: its cost is known only after it was applied.
    epochs = flops / _step_flops(candidate) * stream.batch_size / per_epoch
    if epochs <= labels.epochs:
        return ""
    return f"the budget pays for {epochs:.3g} epochs of labels, more than {labels.epochs:g}"


def _from_labels(build: Build, labels: PricedLabels, total: Duration) -> Curriculum:
    curriculum = build(total)
    return replace(
        from_labels(total=total, loss=labels.loss, init=curriculum.init, name=curriculum.name),
        note=curriculum.note,
    )


def _with_teacher(build: Build, reason: str) -> Build:
    """Return the function without the choice, with the reason for the teacher."""
    note = f"labels: the teacher is kept, since {reason}"
    return lambda length: _noted(replace(build(length), labels=None), note)


def _noted(curriculum: Curriculum, note: str) -> Curriculum:
    return replace(curriculum, note="; ".join(filter(None, (curriculum.note, note))))
