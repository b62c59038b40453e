"""Budgets, and the length of training that a budget pays for.

A budget is a number of examples, tokens, steps, epochs, FLOPs or seconds. For the first four every
strategy runs equally long. For FLOPs (student and teacher together) and seconds the cost of a warm
start and of one step of each stage is measured first, and each strategy gets as many steps as the
budget pays for: cheap stages buy more of them.
"""

import dataclasses
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import Annotated, Literal, final

from pydantic import BeforeValidator, Field

from curricle.curriculum.durations import DECIMAL, FRACTION, Duration, exact_fraction
from curricle.curriculum.stages import Curriculum
from curricle.data.loader_workers import ended_workers
from curricle.data.streams import examples_per_epoch
from curricle.errors import BindError, SpecError
from curricle.models.restoring import modes_kept, train
from curricle.records import Usage
from curricle.runs.label_choice import with_choice
from curricle.training.binding.bound_run import BoundRun
from curricle.training.binding.bound_stages import BoundStage
from curricle.training.binding.starting import apply_start
from curricle.training.loop.stepping import stepping
from curricle.values import parse, value

SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
PROVISIONAL = Duration(number=1_000_000)
"""Length with which a strategy is built to look at its stages before its length is known."""
WARM_UP_STEPS, TIMED_STEPS = 5, 15
SHORTFALL = 0.05
"""Share of a budget's steps that a curriculum may leave unused, as where lengths are rounded."""
MOST_STEPS = 10**12
"""Number of steps beyond which a budget of FLOPs or seconds is not searched."""


@final
@value
class Budget:
    """Limit for each strategy."""

    number: float = Field(gt=0)
    """How much; positive."""
    unit: Literal["steps", "examples", "tokens", "epochs", "flops", "seconds"]
    """Unit; epochs need data of a known length; FLOPs count student and teacher, seconds only
    training."""

    @property
    def is_length(self) -> bool:
        """Return whether the budget is a length of training, independent of the cost of a step."""
        return self.unit not in ("flops", "seconds")

    def duration(self) -> Duration:
        """Return the length that a budget of steps, examples, tokens or epochs stands for.

        Raises:
            SpecError: If it is a budget of FLOPs or seconds, or not a whole number.
        """
        unit = self.unit
        if unit == "epochs":
            return Duration.of(exact_fraction(self.number), unit)
        # Not `unit in (...)`, which would not tell the type checker what is left.
        if unit == "flops" or unit == "seconds" or self.number != int(self.number):
            raise SpecError(
                f"'budget' must be a whole number of steps, examples or tokens; got {self}"
            )
        return Duration(number=int(self.number), unit=unit)

    def __str__(self) -> str:
        """Return the form that specs use."""
        return f"{self.number:g} {self.unit}"


def _plain_flops(match: re.Match[str]) -> str:
    """Return the end of a budget such as `GFLOPs` as `G flops`."""
    prefix = match[1].upper()
    return f"{'k' if prefix == 'K' else prefix} flops"


def budget(text: object) -> object:
    """Return the fields of a budget written as `2.5M examples` or `30 seconds`.

    FLOPs have their prefix at either word and any case: `10G flops`, `10 GFLOPs`.

    A `Budget` or its fields are returned as they are, for pydantic to judge.

    Raises:
        SpecError: If the text is not a number and a unit.
    """
    if isinstance(text, (Budget, Mapping)):
        return text
    match = re.fullmatch(rf"\s*({FRACTION})\s+(epochs?)\s*", str(text))
    if match is not None:
        return {"number": float(Fraction(match[1])), "unit": "epochs"}
    plain = re.sub(r"(?i)([kMGT]?)flops?\s*$", _plain_flops, str(text))
    match = re.fullmatch(rf"\s*({DECIMAL})\s*([kMGT]?)\s+(\w+)\s*", plain)
    try:
        number, suffix, unit = match.groups() if match is not None else ("", "", "")
        unit = "epochs" if unit == "epoch" else unit
        amount = float(number.replace("_", "")) * SUFFIXES[suffix]
    except ValueError:
        raise SpecError(
            f"a budget must read like '1500 steps', '2.5M examples', '4T flops' or '60 seconds', "
            f"with a blank; got {text!r}"
        ) from None
    return {"number": round(amount, 6), "unit": unit}


def budget_of(text: Budget | str) -> Budget:
    """Return a budget, or that of a text such as `2.5M examples`."""
    parsed: Budget = text if isinstance(text, Budget) else parse(Budget, budget(text))
    return parsed


AnyBudget = Annotated[Budget, BeforeValidator(budget)]
"""Field type that takes a `Budget`, its fields, or a text such as `2.5M examples`."""


def fitted(
    limit: Budget,
    build: Callable[[Duration], Curriculum],
    bound: Callable[[Curriculum], BoundRun],
) -> Curriculum:
    """Return a strategy's curriculum at the length that a budget pays for.

    Args:
        limit: The budget.
        build: Gives the strategy's curriculum of a length.
        bound: Binds a curriculum, which measures its stages.

    Raises:
        SpecError: If the budget does not pay for the shortest curriculum.
        _LengthError: If the curriculum has the same cost at every length.
    """
    if limit.is_length:
        return build(limit.duration())
    run = bound(build(PROVISIONAL))
    remaining = _after_start(limit, run)
    costs: Sequence[float]
    if limit.unit == "flops":
        costs = [stage.plan.student_flops + stage.plan.teacher_flops for stage in run.stages]
    else:
        costs = seconds_per_step(run)
    names = [stage.declared.name for stage in run.stages]
    return build(
        Duration(number=_longest(remaining, build, run, dict(zip(names, costs, strict=True))))
    )


def bind_within(
    limit: Budget,
    build: Callable[[Duration], Curriculum],
    bound: Callable[[Curriculum], BoundRun],
    *,
    name: str,
    length: Duration | None = None,
    has_goal: bool = False,
) -> BoundRun:
    """Return a strategy's run, bound at the length that a budget pays for.

    Args:
        limit: The budget.
        build: Gives the strategy's curriculum of a length.
        bound: Binds a curriculum.
        name: Name of the strategy, for errors.
        length: Length in place of that of the budget, as of a run that is resumed.
        has_goal: Whether the metric is to reach a value, which only evaluations notice.

    Raises:
        BindError: If the parts do not fit; the strategy is named.
        SpecError: If the curriculum does not have the length of the budget; the strategy is named.
    """
    build = _of_currency(limit, build)
    try:
        if not limit.is_length:
            flops = limit.number if limit.unit == "flops" else None
            build = with_choice(build, bound, PROVISIONAL, flops=flops)
        run = bound(fitted(limit, build, bound) if length is None else build(length))
        if length is None and limit.is_length:
            _check_length(run, limit.duration(), f"the budget {limit}")
    except BindError as error:
        raise BindError(f"{name!r}: {error}") from None
    except _LengthError as error:
        raise SpecError(
            f"'strategies' must map {name!r} to a curriculum as long as 'total', so that budgets "
            f"are equal; got {error}; hand on 'total', as in "
            f"lambda total: curricle.one_shot(total=total)"
        ) from None
    return dataclasses.replace(run, notes=(*run.notes, *_goal_notes(run))) if has_goal else run


def _of_currency(
    limit: Budget, build: Callable[[Duration], Curriculum]
) -> Callable[[Duration], Curriculum]:
    """Return the function with saved steps in FLOPs where a budget counts cost.

    Of seconds the FLOPs are an estimate.
    """
    if limit.is_length:
        return build

    def built(total: Duration) -> Curriculum:
        curriculum = build(total)
        is_kept = curriculum.saved == "steps"
        return dataclasses.replace(curriculum, saved="flops") if is_kept else curriculum

    return built


@final
class _LengthError(Exception):
    """A curriculum whose length does not follow from `total`."""


def _check_length(run: BoundRun, total: Duration, source: str) -> None:
    """Check that a bound curriculum is as long as its total, with the longest length of rules.

    Args:
        run: The bound curriculum.
        total: Length that the curriculum was built with.
        source: Where the total comes from, in words.

    Raises:
        _LengthError: If it is longer, or shorter by more than lengths are rounded.
    """
    expected = total.steps(
        batch_size=run.stream.batch_size,
        tokens_per_batch=run.stream.tokens_per_batch,
        examples_per_epoch=examples_per_epoch(run.stream),
    )
    # The border of each stage may be rounded to a step of its own.
    rounding = len(run.stages)
    surplus = run.num_steps - expected
    if surplus > rounding or -surplus > max(rounding, SHORTFALL * expected):
        raise _LengthError(
            f"{run.num_steps:,} step{'s' * (run.num_steps != 1)} where {source} stands for "
            f"{expected:,}"
        )


def _goal_notes(run: BoundRun) -> tuple[str, ...]:
    """Return a note if a goal cannot be noticed before the end of a run."""
    every = run.settings.eval_every
    if every < run.num_steps:
        return ()
    return (
        (
            f"goal: the metric is evaluated at the end alone, since 'eval_every' is {every:,} and "
            f"the run has {run.num_steps:,} steps; a smaller 'eval_every' shows when the goal is "
            f"reached"
        ),
    )


def _longest(
    limit: Budget,
    build: Callable[[Duration], Curriculum],
    run: BoundRun,
    costs: Mapping[str, float],
) -> int:
    """Return the largest number of steps within the budget, by bisection.

    Raises:
        SpecError: If the budget does not pay for the shortest curriculum.
        _LengthError: If the curriculum has the same cost at every length.
    """
    dearest = max(costs.values())

    def cost(steps: int) -> float:
        try:
            stages = build(Duration(number=steps)).stages
        except SpecError:
            # Too short for the strategy's fixed stages.
            return 0.0 if steps < run.num_steps else float("inf")
        # How many stages there are may depend on the length; only far beyond the provisional one
        # can there be stages that have not been measured.
        return sum(
            stage.duration.at_most.number * costs.get(stage.name, dearest) for stage in stages
        )

    low, high = 0, 1
    while cost(high) <= limit.number and high < MOST_STEPS:
        low, high = high, high * 2
    # A cost that fits at any length, or at none, may be the same for all of them.
    if high >= MOST_STEPS or low == 0:
        cost_words = f"{cost(PROVISIONAL.number):.3g} {limit.unit}"
        source = f"'total' {PROVISIONAL} ({cost_words} of the budget {limit})"
        _check_length(run, PROVISIONAL, source)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit.number else (low, middle)
    if low == 0 or cost(low) == 0:
        reason = (
            f"one step costs {dearest:.3g} {limit.unit}"
            if len(costs) == 1
            else "the stages before the last cost more"
        )
        raise SpecError(f"'budget' {limit} must pay for every stage; {reason}")
    return low


def _after_start(limit: Budget, run: BoundRun) -> Budget:
    """Return the rest of a budget of FLOPs or seconds after a warm start.

    The start is applied, since its cost depends on the matrices that it solves; the student comes
    back as it was.

    Raises:
        SpecError: If it leaves nothing.
    """
    if run.warm_start is None:
        return limit
    with _prepared(run):
        usage = apply_start(run.warm_start, Usage(), run.settings.placement)
    flops = usage.student_flops + usage.teacher_flops
    spent = flops if limit.unit == "flops" else usage.seconds
    if spent >= limit.number:
        raise SpecError(
            f"'budget' {limit} must pay for the warm start; it costs {spent:.3g} {limit.unit}"
        )
    return dataclasses.replace(limit, number=limit.number - spent)


@contextmanager
def _prepared(run: BoundRun) -> Iterator[None]:
    """Prepare student and teacher for training; afterwards the student is as it was."""
    module = run.student.module
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    teacher, settings = run.teacher, run.settings
    teaching = nullcontext() if teacher is None else teacher.teaching(settings.teacher_inference)
    with ended_workers(run.stream), settings.stated_threads(), modes_kept(module), teaching:
        train(module)
        try:
            yield
        finally:
            module.load_state_dict(weights)


def seconds_per_step(run: BoundRun) -> list[float]:
    """Return the median seconds of one step of each stage; the student comes back as it was."""
    with _prepared(run):
        return [statistics.median(_times(run, stage)) for stage in run.stages]


def _times(run: BoundRun, stage: BoundStage) -> list[float]:
    """Return the seconds of some steps of a stage."""
    # A step costs the same with any weights, and the checkpoints need not be there yet.
    timed = dataclasses.replace(
        stage, declared=dataclasses.replace(stage.declared, teacher="final")
    )
    placement = run.settings.placement
    times = []
    with stepping(run, timed, run.optimizer.build(run.student.module.parameters())) as stepper:
        for number in range(WARM_UP_STEPS + TIMED_STEPS):
            started = placement.now()
            # A stage may be shorter than that, and a schedule has no rate for steps outside it.
            stepper.take(stage.span.start + number % stage.span.most, stage.span.end)
            times.append(placement.now() - started)
    return times[WARM_UP_STEPS:]
