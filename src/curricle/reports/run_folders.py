"""Runs in a folder, and the records of each.

A comparison folder holds `students/<strategy>/seed-<n>/records.jsonl` and, if the teacher was
trained there, `teacher/records.jsonl`; any other folder must hold the `records.jsonl` of one run.
A `Run` groups the records of one file by kind.

Design: nothing is skipped silently. A seed without records is an error, and a run without its end
is kept with `is_complete` false, so that every report can flag it. Records are read one by one, and
of very many training losses the extremes are kept, so that a run of a million needs no more memory
than one of `MOST_STEPS`. Names are made safe to show here, once for all reports.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, final

from curricle.errors import CheckpointError, visible
from curricle.figure_points import where_runs_are
from curricle.records import (
    RECORDS,
    EndReason,
    EndRecord,
    EvaluationRecord,
    Record,
    RunRecord,
    StageEndRecord,
    StagePlan,
    StageRecord,
    StepRecord,
    Usage,
    read_records,
)
from curricle.reports.thinning import extremes

MOST_STEPS = 10_000
"""Training losses of one run that are kept for figures."""
InStage = TypeVar("InStage", StageRecord, StageEndRecord, StepRecord, EvaluationRecord)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The metrics of a student and its cost until then."""

    usage: Usage
    """Consumed before the evaluation."""
    metrics: dict[str, float]
    """Metrics on held-out data."""
    is_taught: bool = True
    """Whether the stage reads the student's logits; elsewhere no goal counts as reached."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """Steps that a stage has taken, and the reason of its end."""

    done: int
    """Number of steps."""
    why: EndReason | None
    """Reason of the end; None for a stage that has not ended."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The records of one run, by kind."""

    path: Path
    """Folder of the run."""
    method: str
    """Name under which runs with different seeds belong together."""
    opening: RunRecord
    """First record: curriculum, models, seed."""
    stages: tuple[StageRecord, ...] = ()
    """Where the stages began."""
    stage_ends: tuple[StageEndRecord, ...] = ()
    """Ends of stages whose duration is a rule."""
    steps: tuple[StepRecord, ...] = ()
    """Training losses."""
    evaluations: tuple[EvaluationRecord, ...] = ()
    """Metrics while training."""
    end: EndRecord | None = None
    """Metrics of the finished student; None while incomplete."""
    is_teacher: bool = False
    """Whether this is the training of a comparison's teacher."""

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        return self.opening.seed

    @property
    def is_complete(self) -> bool:
        """Return whether the run reached its end."""
        return self.end is not None

    @property
    def has_ended_early(self) -> bool:
        """Return whether the run ended before its planned length, because it reached its goal."""
        return any(outcome.why == "goal" for outcome in self.outcomes.values())

    @property
    def outcomes(self) -> dict[str, StageOutcome]:
        """Return the outcome of each stage that has begun, by its name.

        A stage of a fixed length has no record of its end: only the goal can have ended it before
        its planned steps, or the stages after it.
        """
        reasons = {end.stage: end.why for end in self.stage_ends}
        planned = {plan.name: plan.steps for plan in self.opening.stages}
        starts = [record.usage.steps for record in self.stages]
        outcomes: dict[str, StageOutcome] = {}
        for number, record in enumerate(self.stages):
            is_last = number + 1 == len(self.stages)
            done = (self.usage.steps if is_last else starts[number + 1]) - starts[number]
            why = reasons.get(record.stage)
            if why is None and (not is_last or self.is_complete):
                is_cut = is_last and record.stage != self.opening.stages[-1].name
                why = "goal" if is_cut or done < planned[record.stage] else "length"
            outcomes[record.stage] = StageOutcome(done=done, why=why)
        return outcomes

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Return all evaluations in order; the end counts as one unless it repeats the last."""
        taught = {plan.name: plan.reads_logits for plan in self.opening.stages}
        measurements = [
            Measurement(
                usage=evaluation.usage,
                metrics=evaluation.metrics,
                is_taught=taught.get(evaluation.stage, True),
            )
            for evaluation in self.evaluations
        ]
        if self.end is not None:
            if measurements and measurements[-1].usage.steps == self.end.usage.steps:
                measurements.pop()
            measurements.append(Measurement(usage=self.end.usage, metrics=self.end.metrics))
        return tuple(measurements)

    @property
    def usage(self) -> Usage:
        """Return the cost of the run as far as it is recorded."""
        if self.end is not None:
            return self.end.usage
        usages = [record.usage for record in self.stages]
        usages += [record.usage for record in self.steps]
        usages += [record.usage for record in self.evaluations]
        return max(usages, key=lambda usage: usage.steps, default=Usage())


def load_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Return the runs in comparison folders and folders of single runs, in order.

    Runs with the same method belong together, wherever they lie. If two of them also share the
    seed, their folder's name is put before the method, since they must differ in something else.

    Args:
        folders: At least one folder; one given twice is read once.

    Raises:
        CheckpointError: If no folder is given, or one holds no records or damaged ones.
    """
    if not folders:
        raise CheckpointError("a report must be given at least one run folder; got none")
    loaded = {
        run.path.resolve(): (folder, run) for folder in folders for run in _load_folder(folder)
    }
    return _told_apart(list(loaded.values()))


def _load_folder(folder: Path) -> list[Run]:
    students = folder / "students"
    if not students.is_dir():
        if not (folder / RECORDS).is_file():
            raise CheckpointError(
                f"{str(folder)!r} must hold {RECORDS!r} or 'students'; it holds neither"
                f"{where_runs_are(folder)}"
            )
        return [_load(folder, method=_method(folder))]
    seeds = sorted(students.glob("*/seed-*"), key=_order)
    if not seeds:
        raise CheckpointError(
            f"{str(students)!r} must hold '<strategy>/seed-<n>/{RECORDS}'; there is none"
        )
    runs = [_load(path, method=path.parent.name) for path in seeds]
    teacher = folder / "teacher"
    if (teacher / RECORDS).is_file():
        runs.append(_load(teacher, method="teacher", is_teacher=True))
    return runs


def _order(path: Path) -> tuple[str, int, str]:
    """Return the strategy and the seed as a number, so that seed 10 follows seed 9."""
    number = path.name.removeprefix("seed-")
    return path.parent.name, int(number) if number.isdecimal() else 0, path.name


def _method(folder: Path) -> str | None:
    """Return the strategy's name of a run inside a comparison, else None."""
    parents = folder.resolve().parents
    return parents[0].name if len(parents) > 1 and parents[1].name == "students" else None


def _load(folder: Path, *, method: str | None, is_teacher: bool = False) -> Run:
    path = folder / RECORDS
    records = read_records(path)
    first = next(records, None)
    if not isinstance(first, RunRecord):
        raise CheckpointError(f"{str(path)!r} must begin with a record of kind 'run'; it does not")
    opening = _shown_opening(first)
    stages: list[StageRecord] = []
    stage_ends: list[StageEndRecord] = []
    steps: list[StepRecord] = []
    evaluations: list[EvaluationRecord] = []
    end: EndRecord | None = None
    for record in records:
        _check_stage(path, first, record)
        match record:
            case StageRecord():
                stages.append(_shown_stage(record))
            case StageEndRecord():
                stage_ends.append(_shown_stage(record))
            case StepRecord():
                _add_step(steps, _shown_stage(record))
            case EvaluationRecord():
                metrics = _shown_names(record.metrics)
                evaluations.append(replace(_shown_stage(record), metrics=metrics))
            case EndRecord():
                end = replace(record, metrics=_shown_names(record.metrics))
    return Run(
        path=folder,
        method=opening.method if method is None else visible(method),
        opening=opening,
        stages=tuple(stages),
        stage_ends=tuple(stage_ends),
        steps=tuple(steps),
        evaluations=tuple(evaluations),
        end=end,
        is_teacher=is_teacher,
    )


def _check_stage(path: Path, opening: RunRecord, record: Record) -> None:
    stage, names = getattr(record, "stage", None), [plan.name for plan in opening.stages]
    if stage is not None and stage not in names:
        raise CheckpointError(
            f"{str(path)!r} must name the stages of its first record, "
            f"{', '.join(map(repr, map(visible, names)))}; got a record of kind {record.kind!r} "
            f"with stage {visible(stage)!r}"
        )


def _add_step(steps: list[StepRecord], step: StepRecord) -> None:
    """Append a training loss, and halve the list where it has grown too long."""
    steps.append(step)
    if len(steps) >= 2 * MOST_STEPS:
        steps[:] = _thinned(steps)


def _thinned(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """Return about half of many training losses, each stage with its ends and extremes."""
    stages: dict[str, list[StepRecord]] = {}
    for step in steps:
        stages.setdefault(step.stage, []).append(step)
    return [
        inside[at]
        for inside in stages.values()
        for at in extremes([step.loss for step in inside], max(4, len(inside) // 2))
    ]


def _shown_opening(record: RunRecord) -> RunRecord:
    """Return the first record with names that can be shown."""
    return replace(
        record,
        method=visible(record.method),
        task=visible(record.task),
        metric=visible(record.metric),
        device=visible(record.device),
        versions={visible(name): visible(text) for name, text in record.versions.items()},
        notes=tuple(map(visible, record.notes)),
        stages=tuple(map(_shown_plan, record.stages)),
    )


def _shown_plan(stage: StagePlan) -> StagePlan:
    return replace(
        stage,
        name=visible(stage.name),
        teacher=visible(stage.teacher),
        taps=visible(stage.taps),
        objective=visible(stage.objective),
        projection=visible(stage.projection),
        widths=visible(stage.widths),
        until=visible(stage.until),
    )


def _shown_stage(record: InStage) -> InStage:
    """Return a record with a stage's name that can be shown; nearly always the very same."""
    stage = visible(record.stage)
    return record if stage == record.stage else replace(record, stage=stage)


def _shown_names(metrics: dict[str, float]) -> dict[str, float]:
    return {visible(name): number for name, number in metrics.items()}


def _told_apart(loaded: Sequence[tuple[Path, Run]]) -> tuple[Run, ...]:
    """Return the runs, with the folder before every method that has one seed more than once."""
    students = [(run.method, run.seed) for _, run in loaded if not run.is_teacher]
    doubled = {method for (method, _), count in Counter(students).items() if count > 1}
    names = Counter({folder.resolve(): folder.name for folder, _ in loaded}.values())
    return tuple(
        replace(run, method=f"{_name(folder, names)}/{run.method}")
        if run.method in doubled and not run.is_teacher
        else run
        for folder, run in loaded
    )


def _name(folder: Path, names: Counter[str]) -> str:
    """Return the name of a folder, or its whole path if another one is called the same."""
    is_clear = folder.name and names[folder.name] == 1
    return visible(folder.name if is_clear else str(folder))


def grouped(runs: Sequence[Run]) -> dict[str, tuple[Run, ...]]:
    """Return the students' runs by method, in the order of their first appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not run.is_teacher:
            groups.setdefault(run.method, []).append(run)
    return {method: tuple(group) for method, group in groups.items()}
