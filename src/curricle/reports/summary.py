"""What did each strategy reach, and what did that cost?

A `Summary` holds, for every strategy, the final metric over complete runs and the cost of the
first evaluation at or past the target. Written as JSON it is `plain(summary)`, nothing else.

Rules that keep the comparison honest:

- A strategy has a cost to the target only if *every* seed reached it, complete or not; a mean over
  the seeds that happened to get there would flatter it. `reached` tells how many did.
- The final metric is a mean over complete runs; with fewer than two there is no interval.
- Total FLOPs are the student's and the teacher's forward passes while distilling. What training
  the teacher cost is reported apart, because a teacher is used more than once.

Units: examples, FLOPs, seconds of training without evaluation and checkpoints.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from curricle.errors import SpecError, near_names
from curricle.records import Spent
from curricle.reports.quantities import (
    goal_text,
    half_width,
    is_lower_better,
    mean,
    metric_text,
    short,
)
from curricle.reports.runs import Measurement, Run, grouped
from curricle.specs import plain, value


@final
@value
class Costs:
    """What it took to get somewhere; None where that is not known."""

    examples: int | float | None = None
    """Training examples read, repeats included."""
    student_flops: int | float | None = None
    """FLOPs of the student's forward and backward passes."""
    total_flops: int | float | None = None
    """FLOPs of the student and of the teacher's forward passes."""
    seconds: int | float | None = None
    """Seconds of training."""


COSTS = ("examples", "student_flops", "total_flops", "seconds")
"""Names of the fields of `Costs`, in order."""


@final
@value
class Final:
    """A metric of finished students."""

    metric: str
    """Name of the metric."""
    mean: float | None
    """Mean over complete runs; None if there is none."""
    ci95: float | None
    """Half of the 95 % interval; None for fewer than two complete runs."""


@final
@value
class SeedSummary:
    """One run."""

    seed: int
    """Seed of the run."""
    final: dict[str, float]
    """All metrics at the end, or at the last evaluation of an incomplete run."""
    to_target: Costs | None
    """Cost of the first evaluation at or past the target; None if there is none."""
    spent: dict[str, int | float]
    """What the run has consumed."""
    complete: bool
    """Whether the run reached its end."""


@final
@value
class MethodSummary:
    """All runs of one strategy."""

    final: Final
    """The metric of the finished students."""
    to_target: Costs
    """Mean cost over seeds; None in every field unless all seeds reached the target."""
    to_target_ci95: Costs
    """Half of the 95 % intervals of those means; None for a single seed."""
    reached: str
    """How many of the runs reached the target, such as `2/3`."""
    seeds: tuple[SeedSummary, ...]
    """The runs."""


@final
@value
class Summary:
    """A comparison in numbers."""

    task: str
    """What the data are."""
    metric: str
    """Name of the metric by which runs are judged."""
    target: float | None
    """Value of the metric that is to be reached; None if none was set."""
    budget: dict[str, Any]
    """What every run was allowed to consume, as plain data."""
    methods: dict[str, MethodSummary]
    """Strategies by name."""
    teacher: SeedSummary | None = None
    """The teacher's own training, if it was recorded."""


def summarize(
    runs: Sequence[Run],
    *,
    task: str,
    metric: str,
    target: float | None,
    budget: Mapping[str, object],
) -> Summary:
    """Return the comparison of runs in numbers.

    Args:
        runs: Runs as `load_runs` gives them.
        task: What the data are.
        metric: Name of a metric of the records.
        target: Value of the metric that is to be reached, if any.
        budget: What every run was allowed to consume, as plain data.

    Raises:
        SpecError: If an evaluation lacks the metric.
    """
    for run in runs:
        for measurement in run.measurements:
            if metric not in measurement.metrics and not run.is_teacher:
                raise SpecError(
                    f"{metric!r} must be a metric of {str(run.path)!r}; "
                    + near_names(metric, measurement.metrics)
                )
    teachers = [_seed_summary(run, metric, target) for run in runs if run.is_teacher]
    return Summary(
        task=task,
        metric=metric,
        target=target,
        budget=dict(budget),
        methods={
            method: _method_summary(group, metric, target)
            for method, group in grouped(runs).items()
        },
        teacher=teachers[0] if teachers else None,
    )


def write_summary(summary: Summary, path: Path) -> None:
    """Write a summary as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _method_summary(runs: Sequence[Run], metric: str, target: float | None) -> MethodSummary:
    seeds = tuple(_seed_summary(run, metric, target) for run in runs)
    finals = [run.end.metrics[metric] for run in runs if run.end is not None]
    reached = [seed.to_target for seed in seeds if seed.to_target is not None]
    everyone = len(reached) == len(seeds)
    return MethodSummary(
        final=Final(metric=metric, mean=mean(finals) if finals else None, ci95=half_width(finals)),
        to_target=_over_seeds(reached, mean) if everyone else Costs(),
        to_target_ci95=_over_seeds(reached, half_width) if everyone else Costs(),
        reached=f"{len(reached)}/{len(seeds)}",
        seeds=seeds,
    )


def _over_seeds(costs: Sequence[Costs], reduce: Callable[[Sequence[float]], float | None]) -> Costs:
    return Costs(**{name: reduce([getattr(each, name) for each in costs]) for name in COSTS})


def _seed_summary(run: Run, metric: str, target: float | None) -> SeedSummary:
    measured = run.measurements
    first = None if target is None else _first_at(measured, metric, target)
    return SeedSummary(
        seed=run.seed,
        final=measured[-1].metrics if measured else {},
        to_target=None if first is None else _costs(first.spent),
        spent=plain(run.spent) | {"total_flops": run.spent.total_flops},
        complete=run.is_complete,
    )


def _costs(spent: Spent) -> Costs:
    return Costs(**{name: getattr(spent, name) for name in COSTS})


def _first_at(measured: Sequence[Measurement], metric: str, target: float) -> Measurement | None:
    sign = -1.0 if is_lower_better(metric) else 1.0
    return next(
        (
            each
            for each in measured
            if metric in each.metrics and sign * each.metrics[metric] >= sign * target
        ),
        None,
    )


def headline(summary: Summary, *, subject: str = "extraction") -> str:
    """Return in one line what the comparison found.

    The strategy that reached the target with the fewest examples leads the line. A strategy that
    did not reach it gives a lower bound: its mean would be at least what its runs have consumed.
    The line says so when the subject did not lead, when the seeds of two strategies overlap, and
    when another strategy needed fewer FLOPs or seconds.

    Args:
        summary: The comparison.
        subject: The strategy that one expects to lead.
    """
    reached = {
        name: method
        for name, method in summary.methods.items()
        if method.to_target.examples is not None
    }
    if summary.target is None or not reached:
        return _without_leader(summary)
    ranking = sorted(reached, key=lambda name: (_examples(reached[name]), _flops(reached[name])))
    leader = ranking[0]
    first = reached[leader]
    goal = goal_text(summary.metric, summary.target)
    lost = f"{subject} did not win: " if subject in summary.methods and leader != subject else ""
    others = [_against(first, name, reached[name]) for name in ranking[1:]] + [
        _bound(first, name, method)
        for name, method in summary.methods.items()
        if name not in reached
    ]
    opening = f"{lost}{leader} reached {goal} with {short(_examples(first))} examples"
    return ", ".join([opening, *others]) + _cheaper(leader, reached) + _seeds(summary) + "."


def _without_leader(summary: Summary) -> str:
    """Return the line for a comparison without a target, or one that nobody reached."""
    sign = -1.0 if is_lower_better(summary.metric) else 1.0
    finals = {
        name: method.final
        for name, method in summary.methods.items()
        if method.final.mean is not None
    }
    goal = "" if summary.target is None else goal_text(summary.metric, summary.target)
    missed = f"no strategy reached {goal} on every seed" if goal else "no target was set"
    if not finals:
        return f"{missed}, and no run is complete{_seeds(summary)}."
    best = max(finals, key=lambda name: sign * (finals[name].mean or 0.0))
    told = metric_text(summary.metric, finals[best].mean, finals[best].ci95)
    return f"{missed}; best final {summary.metric} {told} ({best}){_seeds(summary)}."


def _examples(method: MethodSummary) -> float:
    return method.to_target.examples or 0.0


def _flops(method: MethodSummary) -> float:
    return method.to_target.total_flops or 0.0


def _against(first: MethodSummary, name: str, other: MethodSummary) -> str:
    """Return how many times fewer examples the leader needed than another that got there."""
    ratio = _examples(other) / max(_examples(first), 1.0)
    told = short(_examples(other))
    latest = max(_seed_costs(first), default=0.0)
    overlap = "; seeds overlap" if latest >= min(_seed_costs(other), default=0.0) else ""
    if f"{ratio:.1f}" == "1.0":
        return f"about as many as {name} ({told}{overlap})"
    return f"{_times(ratio)} times fewer than {name} ({told}{overlap})"


def _seed_costs(method: MethodSummary) -> list[float]:
    costs = [seed.to_target.examples for seed in method.seeds if seed.to_target is not None]
    return [cost for cost in costs if cost is not None]


def _bound(first: MethodSummary, name: str, other: MethodSummary) -> str:
    """Return by how much at least the leader was ahead of one that did not get there."""
    floors = [
        seed.spent["examples"] if seed.to_target is None else seed.to_target.examples or 0.0
        for seed in other.seeds
    ]
    floor = mean(floors)
    ratio = floor / max(_examples(first), 1.0)
    so_far = "" if all(seed.complete for seed in other.seeds) else " so far"
    if other.reached.startswith("0/"):
        told = f"{name} (not reached in {short(floor)}{so_far})"
    else:
        told = f"{name} (reached by {other.reached} seeds, {short(floor)}{so_far} on average)"
    if ratio <= 1.0:
        return f"undecided against {told}"
    return f"at least {_times(ratio, down=True)} times fewer than {told}"


def _times(ratio: float, *, down: bool = False) -> str:
    """Return a ratio with one digit after the point below ten, none above."""
    scale = 10 if ratio < 10 else 1  # noqa: PLR2004 - one digit more below ten
    # A lower bound must not be rounded up.
    whole = int(ratio * scale) if down else round(ratio * scale)
    return f"{whole / scale:g}" if whole < 1000 * scale else short(whole / scale)


def _cheaper(leader: str, reached: Mapping[str, MethodSummary]) -> str:
    """Return which other strategy needed fewer FLOPs or seconds, if one did."""
    told = []
    for cost, words in (("total_flops", "total FLOPs"), ("seconds", "seconds")):
        amounts = {name: getattr(method.to_target, cost) for name, method in reached.items()}
        least = min(amounts, key=lambda name: amounts[name])
        if amounts[least] < amounts[leader]:
            told.append(
                f"fewer {words} by {least} ({short(amounts[least])} against "
                f"{short(amounts[leader])})"
            )
    return f"; but {' and '.join(told)}" if told else ""


def _seeds(summary: Summary) -> str:
    """Return over how many seeds the line speaks, and how many runs are incomplete."""
    counts = sorted({len(method.seeds) for method in summary.methods.values()})
    seeds = [seed for method in summary.methods.values() for seed in method.seeds]
    unfinished = sum(not seed.complete for seed in seeds)
    most = counts[-1] if counts else 0
    span = str(most) if len(counts) <= 1 else f"{counts[0]} to {most}"
    notes = [f"{span} seed{'' if most == 1 else 's'} each"]
    if unfinished:
        notes.append(f"{unfinished} of {len(seeds)} runs incomplete")
    return f"; {', '.join(notes)}"
