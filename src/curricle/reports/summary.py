"""Numbers of a comparison: final metric and cost of each strategy.

A `Summary` holds, for every strategy, the final metric over complete runs and the cost of the
first evaluation at or past the goal. Written as JSON it is `plain(summary)`, nothing else.

Rules that keep the comparison honest:

- A strategy has a cost to the goal only if *every* seed reached it, complete or not; a mean over
  the seeds that reached it would flatter it. `reached` is their number.
- Where the goal is the mean final value of a strategy, some of that strategy's own seeds fall
  short of it. Its cost is that of its whole runs, at whose end it has that value, unless every seed
  reached it earlier.
- The final metric is a mean over complete runs; with fewer than two there is no interval. Of a run
  that ended at its goal it is the value there.
- Seeds that all repeat one run count as one, without an interval (see `replicates`).
- Planned runs without records are named in `missing`.
- Where the direction of the metric is unknown (`better` is None),
  no goal can be reached and no strategy is called best.
- The closed gap between training from labels and the teacher is a share of final metrics; see
  `gaps` for its base, its interval and where it is undefined.
- Total FLOPs are the student's and the teacher's forward passes while distilling. The
  training of the teacher is reported apart, because a teacher is used more than once.

Units: examples, FLOPs, seconds of training without evaluation and checkpoints.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import final

from curricle.errors import CheckpointError, SpecError, near_names
from curricle.files import write_text
from curricle.metrics import Direction
from curricle.records import Usage, has_subject
from curricle.reports.directions import direction_of, remedy
from curricle.reports.formatting import (
    goal_text,
    half_width,
    mean,
    mean_text,
    metric_text,
)
from curricle.reports.gaps import GapClosed, gap_base, gap_closed
from curricle.reports.replicates import replicates, replicates_note
from curricle.reports.run_folders import Measurement, Run, grouped
from curricle.reports.student_warnings import warnings_on_ends
from curricle.values import plain, value


@final
@value
class Costs:
    """Costs up to a point of a run; None where unknown."""

    examples: int | float | None = None
    """Training examples read, repeats included."""
    student_flops: int | float | None = None
    """FLOPs of the student's forward and backward passes."""
    total_flops: int | float | None = None
    """FLOPs of the student and of the teacher's forward passes."""
    seconds: int | float | None = None
    """Seconds of training."""


@final
@value
class _Aim:
    """Metric, goal and direction by which runs are judged."""

    metric: str
    """Name of the metric."""
    goal: float | None
    """Value that is to be reached; None if none was set."""
    better: Direction | None
    """Which values are better."""

    def is_reached_by(self, measurement: Measurement) -> bool:
        """Return whether a measurement is at or past the goal."""
        number = measurement.metrics.get(self.metric)
        if self.goal is None or number is None or not measurement.is_taught:
            return False
        return number <= self.goal if self.better == "lower" else number >= self.goal


COSTS = ("examples", "student_flops", "total_flops", "seconds")
"""Names of the fields of `Costs`, in order."""
BUDGET_COSTS = MappingProxyType({"flops": "total_flops", "seconds": "seconds"})
"""Field of `Costs` of budgets that are no lengths; of others it is that of examples."""
WIDE = 8
"""From here on the cheapest strategy is lost at the left of a linear axis."""


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
    to_goal: Costs | None
    """Cost of the first evaluation at or past the goal; None if there is none."""
    usage: dict[str, int | float]
    """Cost of the run."""
    complete: bool
    """Whether the run reached its end."""
    is_bound: bool = False
    """Whether `to_goal` is an upper bound, since the run was evaluated once."""


@final
@value
class MethodSummary:
    """All runs of one strategy."""

    final: Final
    """The metric of the finished students."""
    to_goal: Costs
    """Mean cost over seeds; None in every field unless all seeds reached the goal. For the
    strategy whose final value is the goal see the rules above."""
    to_goal_ci95: Costs
    """Half of the 95 % intervals of those means; None for a single seed."""
    reached: str
    """How many of the runs reached the goal, such as `2/3`."""
    seeds: tuple[SeedSummary, ...]
    """The runs."""
    notes: tuple[str, ...] = ()
    """Decisions made at binding by default, and warnings about the ends of its students,
    one sentence each."""
    gap_closed: GapClosed | None = None
    """Share of the gap between `Summary.gap_base` and the teacher that it closes; None where that
    is undefined (see `gaps`)."""
    are_replicates: bool = True
    """Whether the seeds are draws of their own; if not, they count as one (see `replicates`)."""

    @property
    def counted(self) -> tuple[SeedSummary, ...]:
        """Return the runs that count in means and intervals: of equal ones the first complete."""
        if self.are_replicates:
            return self.seeds
        return tuple(seed for seed in self.seeds if seed.complete)[:1]

    @property
    def finals(self) -> dict[int, float]:
        """Return the final metric of each complete run that counts, by its seed."""
        return {seed.seed: seed.final[self.final.metric] for seed in self.counted if seed.complete}

    @property
    def final_text(self) -> str:
        """Return the mean of the final metric with its interval; a dash without a complete run."""
        finals = [*self.finals.values()]
        return mean_text(self.final.metric, finals) if finals else metric_text("", None)

    def costs(self, name: str) -> dict[int, int | float]:
        """Return by seed the costs whose mean is `to_goal`; empty if it has none.

        Args:
            name: Field of `Costs`.
        """
        if self.to_goal.examples is None:
            return {}
        reached = {seed.seed: seed.to_goal for seed in self.counted if seed.to_goal is not None}
        if len(reached) == len(self.counted):
            return {seed: getattr(costs, name) for seed, costs in reached.items()}
        # The strategy whose final value is the goal costs its whole runs.
        return {seed.seed: seed.usage[name] for seed in self.counted if seed.complete}

    @property
    def is_bound(self) -> bool:
        """Return whether the cost to the goal is an upper bound.

        So it is where a run was evaluated once, which reached the goal at any time before.
        """
        return any(seed.is_bound for seed in self.counted)

    @property
    def costs_whole_runs(self) -> bool:
        """Return whether the cost to the goal is that of whole runs, as not every seed reached it.

        So it is for a strategy whose own final value is the goal.
        """
        is_reached = all(seed.to_goal is not None for seed in self.seeds)
        return self.to_goal.examples is not None and not is_reached

    def spent(self, name: str) -> dict[int, int | float]:
        """Return a cost of each run at the goal, or by its end.

        Args:
            name: Field of `Costs`.
        """
        return {
            seed.seed: seed.usage[name]
            if seed.to_goal is None
            else getattr(seed.to_goal, name) or 0
            for seed in self.counted
        }


@final
@value
class Summary:
    """A comparison in numbers."""

    task: str
    """Description of the data."""
    metric: str
    """Name of the metric by which runs are judged."""
    goal: float | None
    """Value of the metric that is to be reached; None if none was set."""
    budget: dict[str, object]
    """Limit for every run, as plain data."""
    methods: dict[str, MethodSummary]
    """Strategies by name."""
    teacher: SeedSummary | None = None
    """The teacher's own training, if it was recorded."""
    goal_of: str | None = None
    """Strategy with the goal as its mean final value; None if the goal was set as a number."""
    missing: tuple[str, ...] = ()
    """Runs that were wanted and are not there, in words."""
    caution: str = ""
    """Why no verdict may be read from the numbers; empty if one may."""
    better: Direction | None = None
    """Direction of the metric; None if unknown."""
    teacher_final: float | None = None
    """The metric of the finished teacher on the held-out data; None if it was not measured."""
    gap_base: str | None = None
    """Strategy at which the closed gap is 0: training from labels, else `one_shot`; None if no
    strategy has a closed gap."""

    @property
    def gap_note(self) -> str:
        """Return in a sentence the two ends of the closed gap; empty if no strategy has one."""
        if self.gap_base is None:
            return ""
        base = self.methods[self.gap_base].final_text
        teacher = metric_text(self.metric, self.teacher_final)
        return f"Gap closed: 0 is {self.gap_base} ({base}), 1 is the teacher ({teacher})."

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the notes of all strategies, each once, after the strategies that have it."""
        holders: dict[str, list[str]] = {}
        for name, method in self.methods.items():
            for text in method.notes:
                holders.setdefault(text, []).append(name)
        return tuple(self._owned(text, names) for text, names in holders.items())

    def _owned(self, text: str, names: Sequence[str]) -> str:
        """Return a note after its strategies; all of them are left out before a subject."""
        are_all = len(names) == len(self.methods)
        if are_all and has_subject(text):
            return text
        owner = "all strategies" if are_all and len(names) > 1 else ", ".join(names)
        return f"{owner}: {text}"

    @property
    def goal_words(self) -> str:
        """Return the goal in words; empty if there is none."""
        if self.goal is None:
            return ""
        if self.goal_of is None:
            return goal_text(self.metric, self.goal)
        words = self.metric.replace("_", " ")
        return f"{self.goal_of}'s final {words} ({metric_text(self.metric, self.goal)})"

    @property
    def gap(self) -> str:
        """Return in a sentence which runs are missing; empty if none is."""
        if not self.missing:
            return ""
        num_requested = len(self.missing) + sum(
            len(method.seeds) for method in self.methods.values()
        )
        verb = "is" if len(self.missing) == 1 else "are"
        names = ", ".join(self.missing)
        return f"{len(self.missing)} of {num_requested} runs {verb} missing: {names}."

    @property
    def source_note(self) -> str:
        """Return in a sentence the cost of the strategy that set the goal, if of whole runs."""
        source = self.methods.get(self.goal_of or "")
        if source is None or not source.costs_whole_runs:
            return ""
        return (
            f"{self.goal_of} ends at the goal by definition: its cost is that of its whole runs, "
            f"though {source.reached} seeds reached it themselves."
        )

    @property
    def lead(self) -> str:
        """Return the field of `Costs` by which strategies are ranked: that of the budget."""
        return BUDGET_COSTS.get(str(self.budget.get("unit")), "examples")

    @property
    def is_wide(self) -> bool:
        """Return whether costs to the goal differ so much that they need a logarithmic axis."""
        if self.goal is None:
            return False
        methods = self.methods.values()
        costs = [
            method.to_goal.examples or mean([*method.spent("examples").values()])
            for method in methods
        ]
        return max(costs) > WIDE * min(costs)


def summarize(  # noqa: PLR0913 - everything but the runs has a default
    runs: Sequence[Run],
    *,
    metric: str | None = None,
    goal: float | None = None,
    goal_of: str | None = None,
    budget: Mapping[str, object] | None = None,
    missing: Sequence[str] = (),
    caution: str = "",
    better: Direction | None = None,
    teacher_final: float | None = None,
) -> Summary:
    """Return the comparison of runs in numbers.

    Args:
        runs: Runs as `load_runs` gives them, at least one of a student.
        metric: Name of a metric of the records; that of the first run if None.
        goal: Value of the metric that is to be reached, if any.
        goal_of: Strategy with the goal as its mean final value.
        budget: Limit for every run, as plain data.
        missing: Planned runs without records, in words.
        caution: Reason against any verdict; empty if there is none.
        better: Direction of the metric; None takes that declared by the runs, else derives it
            from the name.
        teacher_final: The metric of the finished teacher on the held-out data; None takes that at
            the end of its recorded training, if there is one.

    Raises:
        CheckpointError: If there is no run of a student, or their tasks differ.
        SpecError: If an evaluation lacks the metric, or a goal is set for a metric of unknown
            direction.
    """
    groups = grouped(runs)
    if not groups:
        raise CheckpointError("a report must hold at least one run of a student; got none")
    _check_task(runs)
    opening = next(iter(groups.values()))[0].opening
    judged = metric or opening.metric
    _check_metric(runs, judged)
    students = [run for group in groups.values() for run in group]
    better = better or direction_of(students, judged)
    if goal_of is not None:
        goal = _final(groups[goal_of], judged).mean
    if goal is not None and better is None:
        raise SpecError(f"'goal' needs a metric with a direction; {remedy(judged)}")
    aim = _Aim(metric=judged, goal=goal, better=better)
    warnings = warnings_on_ends(groups, judged, better)
    teachers = [_seed_summary(run, aim) for run in runs if run.is_teacher]
    if teacher_final is None and teachers and teachers[0].complete:
        teacher_final = teachers[0].final.get(judged)
    base, gaps = _gaps(groups, aim, teacher_final)
    return Summary(
        task=opening.task,
        metric=judged,
        goal=goal,
        budget=dict(budget or {}),
        methods={
            method: _method_summary(
                group,
                aim,
                is_source=method == goal_of,
                warnings=warnings[method],
                gap=gaps.get(method),
            )
            for method, group in groups.items()
        },
        teacher=teachers[0] if teachers else None,
        goal_of=None if goal is None else goal_of,
        missing=tuple(missing),
        caution=caution,
        better=better,
        teacher_final=teacher_final,
        gap_base=base,
    )


def _gaps(
    groups: Mapping[str, Sequence[Run]], aim: _Aim, teacher: float | None
) -> tuple[str | None, dict[str, GapClosed]]:
    """Return the base, and the closed gap of each strategy that has one."""
    if teacher is None or aim.better is None:
        return None, {}
    finals = {
        name: {
            run.seed: run.end.metrics[aim.metric] for run in replicates(runs) if run.end is not None
        }
        for name, runs in groups.items()
    }
    base = gap_base(groups, finals, aim.better)
    if base is None:
        return None, {}
    gaps = {
        name: gap
        for name, numbers in finals.items()
        if (gap := gap_closed(numbers, finals[base], teacher, aim.better)) is not None
    }
    return (base if gaps else None), gaps


def _check_task(runs: Sequence[Run]) -> None:
    """Check that students learned one task; a run from Python has no name for its own.

    Raises:
        CheckpointError: If there are two.
    """
    seen: dict[str, Run] = {}
    for run in runs:
        if run.opening.task and not run.is_teacher:
            seen.setdefault(run.opening.task, run)
    if len(seen) > 1:
        (task, run), (second_task, second), *_ = seen.items()
        raise CheckpointError(
            f"runs of one report must be of one task; got {task!r} in {str(run.path)!r} and "
            f"{second_task!r} in {str(second.path)!r}"
        )


def _check_metric(runs: Sequence[Run], metric: str) -> None:
    """Check that students were judged by a metric.

    Raises:
        SpecError: If an evaluation lacks it.
    """
    for run in runs:
        for measurement in run.measurements:
            if metric not in measurement.metrics and not run.is_teacher:
                raise SpecError(
                    f"{metric!r} must be a metric of {str(run.path)!r}; "
                    + near_names(metric, measurement.metrics)
                )


def write_summary(summary: Summary, path: Path) -> None:
    """Write a summary as JSON."""
    text = json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _method_summary(
    runs: Sequence[Run],
    aim: _Aim,
    *,
    is_source: bool,
    warnings: Sequence[str],
    gap: GapClosed | None,
) -> MethodSummary:
    seeds = tuple(_seed_summary(run, aim) for run in runs)
    num_reached = sum(seed.to_goal is not None for seed in seeds)
    counted = replicates(runs)
    counted_seeds = {run.seed for run in counted}
    points = [seed.to_goal for seed in seeds if seed.seed in counted_seeds]
    costs = [point for point in points if point is not None] if num_reached == len(seeds) else []
    if is_source and aim.goal is not None and not costs:
        costs = [_costs(run.usage) for run in counted if run.is_complete]
    return MethodSummary(
        final=_final(counted, aim.metric),
        to_goal=_over_seeds(costs, mean) if costs else Costs(),
        to_goal_ci95=_over_seeds(costs, half_width) if costs else Costs(),
        reached=f"{num_reached}/{len(seeds)}",
        seeds=seeds,
        notes=(
            *dict.fromkeys(text for run in runs for text in run.opening.notes),
            *replicates_note(runs),
            *warnings,
        ),
        gap_closed=gap,
        are_replicates=len(counted) == len(runs),
    )


def _final(runs: Sequence[Run], metric: str) -> Final:
    finals = [run.end.metrics[metric] for run in runs if run.end is not None]
    return Final(metric=metric, mean=mean(finals) if finals else None, ci95=half_width(finals))


def _over_seeds(costs: Sequence[Costs], reduce: Callable[[Sequence[float]], float | None]) -> Costs:
    return Costs(
        **{
            name: reduce([getattr(costs_of_seed, name) for costs_of_seed in costs])
            for name in COSTS
        }
    )


def _seed_summary(run: Run, aim: _Aim) -> SeedSummary:
    measured = run.measurements
    first = next(filter(aim.is_reached_by, measured), None)
    return SeedSummary(
        seed=run.seed,
        final=measured[-1].metrics if measured else {},
        to_goal=None if first is None else _costs(first.usage),
        usage=plain(run.usage) | {"total_flops": run.usage.total_flops},
        complete=run.is_complete,
        is_bound=first is not None and len(measured) == 1,
    )


def _costs(usage: Usage) -> Costs:
    return Costs(**{name: getattr(usage, name) for name in COSTS})
