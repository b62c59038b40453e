"""Comparison of strategies for models and data of the caller: strategies x seeds, equal budgets.

`compare` is the Python counterpart of `curricle compare`. It binds every strategy before the
first step, trains each student from the same data and seed within the same budget, and returns
students, numbers and, with a folder, the report. Strategies are functions of the length of training
because a budget of FLOPs or seconds pays for more steps of cheap stages.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast, final
from weakref import WeakSet

from torch import nn
from torch.utils.data import DataLoader

from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.stages import Curriculum
from curricle.curriculum.strategies import build
from curricle.data.batch import Batch
from curricle.data.streams import Stream
from curricle.errors import BindError, SpecError
from curricle.files import usable_folder
from curricle.metrics import ACCURACY, Metric
from curricle.models.tapped import TappedModel
from curricle.models.wrapping import tapped
from curricle.protocols import conforms
from curricle.records import Record
from curricle.reports.headline import headline
from curricle.reports.summary import Summary
from curricle.reports.tables import summary_markdown
from curricle.runs.budget import Budget, bind_within, budget_of
from curricle.runs.folder import recorded_steps, run_folder
from curricle.runs.pool import work_off
from curricle.runs.ray_cluster import RayCluster, RayWorkers, check_device, require_cluster
from curricle.runs.report import summarized, write_report
from curricle.runs.request import Request, write_request
from curricle.runs.teacher_file import write_teacher_metrics
from curricle.runs.workers import RecordWatcher
from curricle.teachers.live import LiveTeacher
from curricle.teachers.stored import StoredTeacher
from curricle.teachers.trajectory import Trajectory
from curricle.trackers import TrackerName, check_trackers, tracker_names, tracking
from curricle.training.binding.bound_run import BoundRun, bind
from curricle.training.distill import evaluator_of, execute, teacher_metrics, teacher_notes
from curricle.training.loop.evaluation import Evaluator
from curricle.training.loop.run_outputs import Observer, Outputs
from curricle.training.setup.arguments import (
    AnyModel,
    as_evaluation,
    as_stream,
    as_teacher,
    judged_by,
    named_arguments,
    require_kind,
    require_model,
    require_parts,
    require_resumable,
    wrapping_hint,
)
from curricle.training.setup.interrupts import noted_interrupts
from curricle.training.setup.observers import NewObserver, shown_progress
from curricle.training.setup.optimizers import AdamW, Optimizer
from curricle.training.setup.settings import TrainingSettings
from curricle.training.setup.torch_state import standard_state
from curricle.training.sharing.shared_runs import SharedRun, execute_shared

Strategy = Mapping[str, object] | Callable[..., Curriculum]
"""A strategy's `kind` with its arguments, or a function that takes `total=` and, if it has that
argument, `trajectory=`."""
Watcher = Callable[[str, int, Record], None]
"""Receives the name of a strategy, a seed, and a record of that run."""
REPORT = "report.html"
NAME = re.compile(r"[\w+-][\w.+-]*")
DEFAULT_STRATEGIES = ("from_labels", "one_shot", "extraction")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Students and numbers of a comparison."""

    students: Mapping[tuple[str, int], nn.Module]
    """Trained students by strategy and seed."""
    summary: Summary
    """Final metrics, shares of the gap between labels and teacher, costs to the goal, and intervals
    over seeds."""
    report: Path | None = None
    """HTML page; None if nothing was written."""

    def __str__(self) -> str:
        """Return the table of strategies and the verdict."""
        summary = self.summary
        notes = (summary.gap, summary.gap_note, summary.source_note, *summary.notes)
        lines = "\n".join(filter(None, notes))
        return "\n\n".join(filter(None, (summary_markdown(summary), lines, headline(summary))))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Arguments of a comparison that all its runs share."""

    student: AnyModel | Callable[[int], AnyModel]
    teacher: LiveTeacher | StoredTeacher | None
    data: Stream | Callable[[int], Stream]
    strategies: Mapping[str, Strategy]
    budget: Budget
    trajectory: Trajectory | None
    optimizer: Optimizer
    settings: TrainingSettings
    shares_teacher: bool
    evaluate: Evaluator
    metric: str
    better: Literal["higher", "lower"] | None
    watch: Watcher | None
    trackers: tuple[TrackerName, ...]
    has_folder: bool
    has_goal: bool
    built: WeakSet[AnyModel] = field(default_factory=WeakSet)
    """Students that the function has returned and that are in memory."""

    def build_student(self, seed: int) -> AnyModel:
        """Return the student of a seed, always of the same weights.

        Raises:
            BindError: If the function returns a module again, which another run has trained.
        """
        # Models are callable, too.
        if isinstance(self.student, nn.Module) or conforms(self.student, TappedModel):
            return deepcopy(self.student)
        build_model = cast("Callable[[int], AnyModel]", self.student)
        # The caller's constructor draws from torch's global generator.
        with seeding.scoped(seed, "model"):
            model = build_model(seed)
        if model in self.built:
            raise BindError(
                "'student' must return a new module at each call, since every run trains its own; "
                "got the same twice; return copy.deepcopy(...) of it, or pass the module itself"
            )
        self.built.add(model)
        return model

    def stream(self, seed: int) -> Stream:
        """Return the training data of a seed."""
        return self.data(seed) if callable(self.data) else self.data

    def curriculum(self, name: str, total: Duration) -> Curriculum:
        """Return the curriculum of a strategy at a length."""
        strategy = self.strategies[name]
        if isinstance(strategy, Mapping):
            return build(strategy, total=total, trajectory=self.trajectory)
        takes_trajectory = "trajectory" in inspect.signature(strategy).parameters
        arguments = {"trajectory": self.trajectory} if takes_trajectory and self.trajectory else {}
        return strategy(total=total, **arguments)

    def groups(self, runs: Sequence[tuple[str, int]]) -> list[list[tuple[str, int]]]:
        """Return the runs that are trained in turns: each alone, or all that read the same data."""
        if not self.shares_teacher:
            return [[run] for run in runs]
        if not callable(self.data):
            return [list(runs)]
        seeds = dict.fromkeys(seed for _, seed in runs)
        return [[run for run in runs if run[1] == seed] for seed in seeds]

    def train(
        self,
        runs: Sequence[tuple[str, int]],
        folder: Path,
        *,
        new_observer: NewObserver,
        resume: bool,
    ) -> dict[tuple[str, int], nn.Module]:
        """Return the students of runs, trained.

        Args:
            runs: Strategies and seeds.
            folder: Folder of the comparison.
            new_observer: Returns the observer that shows a run.
            resume: Whether each run continues from its newest checkpoint.
        """
        students: dict[tuple[str, int], nn.Module] = {}
        for group in self.groups(runs):
            with ExitStack() as stack:
                members = [
                    self.member(*run, folder, new_observer=new_observer, stack=stack)
                    for run in group
                ]
                if len(members) > 1:
                    execute_shared(members, metric=self.metric, resume=resume)
                else:
                    execute(
                        members[0].run,
                        self.evaluate,
                        metric=self.metric,
                        outputs=members[0].outputs,
                        resume=resume,
                    )
            students |= {
                run: member.run.student.module for run, member in zip(group, members, strict=True)
            }
        return students

    def train_on(
        self,
        cluster: RayCluster,
        runs: Sequence[tuple[str, int]],
        folder: Path,
    ) -> None:
        """Train the students of runs as tasks of a Ray cluster, each from its newest checkpoint.

        Args:
            cluster: The cluster, and the resources of a task.
            runs: Strategies and seeds.
            folder: Folder of the comparison.

        Raises:
            BindError: If the device here is another than that of a task, or no node has room.
        """
        check_device(self.settings, cluster)
        workers = RayWorkers(cluster)
        settings = replace(self.settings, threads=workers.threads)
        # A function of the caller may hold what cannot be sent.
        sent = replace(self, watch=None, settings=settings, built=WeakSet())
        titles = {f"{name} seed {seed}": (name, seed) for name, seed in runs}

        def watch(title: str, record: Record) -> None:
            if self.watch is not None:
                self.watch(*titles[title], record)

        work_off(
            self.groups(runs),
            partial(_train_group, sent, folder.absolute()),
            workers=workers,
            watch=watch,
            again="curricle.compare(..., resume=True)",
        )

    def member(
        self,
        name: str,
        seed: int,
        folder: Path,
        *,
        new_observer: NewObserver,
        stack: ExitStack,
    ) -> SharedRun:
        """Return a bound run with its evaluation and outputs.

        Args:
            name: Name of the strategy.
            seed: Seed of the run.
            folder: Folder of the comparison.
            new_observer: Returns the observer that shows a run.
            stack: Ends the reports to trackers when it closes.
        """
        place, title = run_folder(folder, name, seed), f"{name} seed {seed}"
        # Without a folder of the caller the place is temporary.
        reports = tracking(self.trackers, place if self.has_folder else None, title)
        observers: tuple[Observer, ...] = (*stack.enter_context(reports), new_observer(title))
        if self.watch is not None:
            observers = (*observers, partial(self.watch, name, seed))
        return SharedRun(
            run=self.bound(name, seed, place),
            evaluate=self.evaluate,
            outputs=Outputs(folder=place, observers=observers, better=self.better),
        )

    def rehearse(self, seed: int, folder: Path) -> dict[str, float]:
        """Return the metrics of the teacher after binding each strategy once.

        A teacher at chance is warned of.

        Args:
            seed: Seed of the runs.
            folder: Folder of the comparison.
        """
        check_trackers(self.trackers)
        is_judged, metrics = False, dict[str, float]()
        for name in self.strategies:
            run = self.bound(name, seed, run_folder(folder, name, seed))
            if run.teachers and not is_judged:
                teacher_notes(self.evaluate, self.teacher, run)
                metrics = teacher_metrics(self.evaluate, run)
                is_judged = True
        return metrics

    def bound(self, name: str, seed: int, folder: Path) -> BoundRun:
        """Return the run of a strategy and a seed at the length that the budget pays for."""
        model, stream = tapped(self.build_student(seed)), self.stream(seed)

        def bind_curriculum(curriculum: Curriculum) -> BoundRun:
            return bind(
                curriculum,
                student=model,
                teacher=self.teacher,
                stream=stream,
                optimizer=self.optimizer,
                settings=self.settings,
                seed=seed,
            )

        # Seconds are measured once: a resumed run keeps the length that it began with.
        steps = recorded_steps(folder) if self.budget.unit == "seconds" else None
        return bind_within(
            self.budget,
            partial(self.curriculum, name),
            bind_curriculum,
            name=name,
            length=None if steps is None else Duration(number=steps),
            has_goal=self.has_goal,
        )


@standard_state()
def _train_group(
    plan: _Plan, folder: Path, group: list[tuple[str, int]], watch: RecordWatcher
) -> None:
    """Train the students of a group in a worker, also after another was lost before its end."""
    plan.train(group, folder, new_observer=lambda title: partial(watch, title), resume=True)


def _cluster(
    on: RayCluster | Literal["ray"] | None, output_dir: str | Path | None
) -> RayCluster | None:
    """Return the cluster that trains the students.

    Raises:
        BindError: If it is something else, or the students would have no folder.
    """
    if on is None:
        return None
    cluster = require_cluster(on)
    if output_dir is None:
        raise BindError(
            "'output_dir' must be a folder on storage that all nodes share, with 'on'; got None"
        )
    return cluster


def _resumption_note(arguments: Mapping[str, object]) -> str:
    """Return the effect of a second call after an interruption."""
    folder = arguments.get("output_dir")
    if folder is None:
        return "nothing was written, since 'output_dir' is None"
    return (
        f"curricle.compare(..., output_dir={str(folder)!r}, resume=True) keeps the students that "
        f"are trained and resumes the others from their newest checkpoints"
    )


@named_arguments
@noted_interrupts(_resumption_note)
@standard_state()
def compare(  # noqa: PLR0913 - the public call; everything but the models, data and budget has a default
    student: AnyModel | Callable[[int], AnyModel],
    teacher: AnyModel | StoredTeacher | None,
    data: Stream | DataLoader[object] | Callable[[int], Stream],
    *,
    evaluation: Sequence[Batch] | Stream | DataLoader[object] | Evaluator,
    budget: Budget | str,
    strategies: Sequence[str] | Mapping[str, Strategy] = DEFAULT_STRATEGIES,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str | Metric = ACCURACY,
    better: Literal["higher", "lower"] | None = None,
    goal: float | str | None = None,
    optimizer: Optimizer = AdamW(learning_rate=1e-3),
    trajectory: Trajectory | None = None,
    settings: TrainingSettings = TrainingSettings(),
    output_dir: str | Path | None = None,
    share_teacher: bool = False,
    watch: Watcher | None = None,
    report_to: str | Sequence[str] = (),
    progress: bool = True,
    resume: bool = False,
    on: RayCluster | Literal["ray"] | None = None,
) -> Comparison:
    """Train a student by each strategy with each seed, within equal budgets, and compare them.

    Args:
        student: Function from a seed to a new student; it runs with torch's generators seeded. A
            module is copied for each run, so that its seeds differ in data and projections only.
        teacher: The finished teacher, stored targets, or None if no strategy needs one.
        data: Training batches, or a function from a seed to them; a `DataLoader` is read in an
            order of each seed.
        evaluation: Held-out batches with labels, a `DataLoader` or a stream of them, of which an
            epoch is read once, or a function from the model to metrics.
        budget: Limit for each student, as `'2000 steps'`, `'1M examples'`, `'4T flops'` or
            `'60 seconds'`. FLOPs count student and teacher; seconds count training only.
        strategies: Names of strategies, or strategies by name: a `kind` with arguments such as
            `{"kind": "extraction", "pairs": 3}`, or a function of `total`.
        seeds: Seeds of the runs; intervals need two or more.
        metric: Metric by which the runs are judged, or its name.
        better: Direction of the metric; None takes its own, or derives it from the name.
        goal: Value of the metric that counts as learned, or a strategy with that final value.
        optimizer: Optimizer of every student.
        trajectory: Checkpoints of the teacher, for `progressive`.
        settings: Device, precision, intervals.
        output_dir: Folder for runs and report; None keeps nothing on disk.
        share_teacher: Whether students that read the same data are trained in turns, with one pass
            of the teacher for all. Results are the same; memory holds all these students.
        watch: Receives strategy, seed and record of everything that happens.
        report_to: Trackers that receive each run; see `distill`.
        progress: Whether a progress bar of each run is shown on stderr, if that is a terminal.
        resume: Whether to continue an interrupted comparison in `output_dir`.
        on: Ray cluster on which the runs are tasks, with the resources of each; `'ray'` takes a CPU
            core for each, None trains here. Models, data and functions are sent to its nodes, and
            `output_dir` lies on storage that all of them share.

    Returns:
        Trained students, their numbers and the report.

    Raises:
        BindError: If models, strategies and data do not fit.
        CheckpointError: If `output_dir` already holds runs and `resume` is off.
        DivergenceError: If a loss or the metric is not finite.
        SpecError: If a strategy or the budget does not exist or does not pay for its stages.
    """
    # Labels of held-out items have the meaning of those of training items.
    reader = as_stream(data, 0) if isinstance(data, DataLoader) else data
    held_out = as_evaluation(evaluation, reader)
    require_parts(optimizer, held_out)
    require_kind("settings", settings, TrainingSettings, "prefetch='batch'")
    if not callable(student):
        require_model("student", student)
    _check_constructor(student)
    if teacher is not None and not isinstance(teacher, StoredTeacher):
        require_model("teacher", teacher)
    name, better = judged_by(metric, better)
    source = as_teacher(teacher, trajectory)
    plan = _Plan(
        student=student,
        teacher=source,
        data=_streams(data),
        strategies=_named(strategies),
        budget=budget_of(budget),
        trajectory=trajectory,
        optimizer=optimizer,
        settings=settings,
        shares_teacher=share_teacher,
        evaluate=evaluator_of(held_out, settings, metric, source),
        metric=name,
        better=better,
        watch=watch,
        trackers=tracker_names(report_to),
        has_folder=output_dir is not None,
        has_goal=goal is not None,
    )
    _check_seeds(seeds)
    cluster = _cluster(on, output_dir)
    request = Request(
        metric=name,
        better=better,
        budget=plan.budget,
        goal=goal if isinstance(goal, float | int) else None,
        goal_of=goal if isinstance(goal, str) else None,
    )
    if request.goal_of not in (None, *plan.strategies):
        raise SpecError(
            f"'goal' must be a number or one of the strategies {list(plan.strategies)}; "
            f"got {goal!r}"
        )
    with _opened(output_dir, resume=resume) as folder:
        # A mistake in the last strategy shows before the first student has cost its time.
        levels = plan.rehearse(seeds[0], folder)
        write_request(folder, request, resume=resume)
        write_teacher_metrics(folder, levels)
        runs = [(name, seed) for seed in seeds for name in plan.strategies]
        if cluster is not None:
            plan.train_on(cluster, runs, folder)
            # All have ended: what follows reads the students.
            plan, resume = replace(plan, watch=None, trackers=()), True
        with shown_progress(is_wanted=progress, is_comparison=True) as new_observer:
            students = plan.train(runs, folder, new_observer=new_observer, resume=resume)
        page = None if output_dir is None else folder / REPORT
        summary = summarized([folder])[1] if page is None else write_report([folder], page)
    return Comparison(students=students, summary=summary, report=page)


def _streams(data: object) -> Stream | Callable[[int], Stream]:
    """Return training data, or a function from a seed to them.

    Raises:
        BindError: If they are something else.
    """
    if isinstance(data, DataLoader):
        return partial(as_stream, data)
    if not conforms(data, Stream) and not callable(data):
        raise BindError(
            "'data' must be a DataLoader, a stream or a function from a seed to a stream; "
            f"got {type(data).__name__!r}{wrapping_hint(data)}"
        )
    return cast("Stream | Callable[[int], Stream]", data)


def _check_seeds(seeds: object) -> None:
    """Check that seeds are different numbers.

    Raises:
        SpecError: If they are not, or no sequence.
    """
    if not isinstance(seeds, Sequence):
        raise SpecError(
            f"'seeds' must be a sequence of different numbers, such as seeds=(0,) for one run or "
            f"range(3) for three of each strategy; got {seeds!r}"
        )
    if not seeds or len(set(seeds)) != len(seeds):
        raise SpecError(f"'seeds' must be different numbers, at least one; got {list(seeds)}")


def _check_constructor(student: object) -> None:
    """Check that a function that builds students takes the seed.

    Raises:
        BindError: If it does not.
    """
    if not inspect.isfunction(student):
        return
    try:
        inspect.signature(student).bind(0)
    except TypeError as error:
        raise BindError(
            f"'student' must be a module or a function from a seed to one, such as "
            f"lambda seed: network(32); got one that cannot be called with a seed: {error}"
        ) from None


def _named(strategies: Sequence[str] | Mapping[str, object]) -> dict[str, Strategy]:
    """Return strategies by name.

    Raises:
        SpecError: If there is none, or a name stands for no strategy.
    """
    if isinstance(strategies, str) or not strategies:
        raise SpecError(
            "'strategies' must be names such as ['one_shot', 'extraction'] or a mapping from names "
            f"to strategies; got {strategies!r}"
        )
    by_name = (
        strategies
        if isinstance(strategies, Mapping)
        else {name: {"kind": name} for name in strategies}
    )
    checked: dict[str, Strategy] = {}
    for name, strategy in by_name.items():
        if not isinstance(strategy, Mapping) and not callable(strategy):
            raise SpecError(
                f"'strategies' must map {name!r} to {{'kind': ..., arguments}} or to a function of "
                f"'total'; got {type(strategy).__name__!r}, whose length no budget can set"
            )
        if isinstance(strategy, Mapping) and "kind" not in strategy and "curriculum" in strategy:
            raise SpecError(
                f"'strategies' must map {name!r} to {{'kind': ..., arguments}}; got "
                f"{{'curriculum': ...}}, the form of a spec for 'curricle compare'; write "
                f"{{{name!r}: {strategy['curriculum']!r}}}"
            )
        if not NAME.fullmatch(name):
            raise SpecError(
                f"'strategies' must have names of letters, digits and '+', '-', '.', '_', since "
                f"they are names of folders; got {name!r}"
            )
        checked[name] = strategy
    return checked


@contextmanager
def _opened(output_dir: str | Path | None, *, resume: bool) -> Iterator[Path]:
    """Yield the folder of the comparison, which goes at the end if none is given."""
    require_resumable(resume, output_dir)
    if output_dir is not None:
        yield usable_folder(output_dir, "output_dir")
        return
    with TemporaryDirectory(prefix="curricle-") as folder:
        yield Path(folder)
