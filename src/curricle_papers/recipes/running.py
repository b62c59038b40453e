"""Running of recipes, also after an interruption.

A recipe's folder holds `recipe.json`, one comparison below `panels/` for each panel, and
`points.jsonl` if the recipe measures something besides. Finished runs are left alone. Panels
with the same teacher share it: it is trained in the first and copied to the others.

Design: all panels share one pool of processes. A panel is opened by one job, which binds its runs
and trains its teacher; its students follow, each a job. A first pass over learning rates is a
comparison of its own beside the panel, which is opened when the last of its runs has ended.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from curricle.errors import CheckpointError, DivergenceError, SpecError, near_names
from curricle.example_tasks import ExamplesTask
from curricle.figure_points import PANELS, POINTS, RECIPE, read_recipe, write_points, write_recipe
from curricle.files import new_folder
from curricle.reports.rates import affordable_seeds, arm, best_rates
from curricle.reports.summary import Summary
from curricle.runs.folder import TEACHER, Origin, has_spec, refuse_taken, start, working
from curricle.runs.pool import work_off
from curricle.runs.report import summarized
from curricle.runs.spec import SEEDS, RunSpec, StrategySpec, changed
from curricle.runs.train import classes, rehearse, student_runs, teach, train_class
from curricle.runs.workers import RecordWatcher, local_workers
from curricle.values import plain
from curricle_papers.recipes.recipe import FirstPass, Recipe, Scale, placed, rates_name

LOGGER = logging.getLogger(__name__)
HUB = "datasets:"
"""Beginning of the names of data sets of the Hub."""


def claim(
    recipe: Recipe,
    scale: Scale,
    folder: Path,
    line: str,
    *,
    assignments: Sequence[str] = (),
    selected: Sequence[str] = (),
) -> dict[str, RunSpec]:
    """Write the recipe's record into a folder and return the specs of the panels to run.

    Panels that an earlier call has selected stay in the record.

    Args:
        recipe: The recipe.
        scale: At which size.
        folder: Where; new, or that of the same command.
        line: Command that runs it again, without its panels.
        assignments: `path=value` overrides of every panel's spec.
        selected: Panels to run; empty for all.

    Returns:
        Spec by panel, of the selected ones with data.

    Raises:
        CheckpointError: If the folder holds something else.
        SpecError: If a selected panel does not exist.
    """
    specs = panels(recipe, scale, folder, assignments)
    names = _checked_panels(recipe, specs, selected)
    runnable = {name: spec for name, spec in specs.items() if name not in _left_out(specs, names)}
    if (folder / RECIPE).exists():
        stored = read_recipe(folder)
        if stored.line != line:
            raise CheckpointError(
                f"'output_dir' {str(folder)!r} must be new or hold what {line!r} makes; it holds "
                f"what {stored.line!r} made"
            )
        earlier = stored.selected or specs
        names = names and tuple(name for name in specs if name in {*names, *earlier})
    elif folder.exists() and any(folder.iterdir()):
        raise CheckpointError(
            f"'output_dir' {str(folder)!r} must be new or hold {recipe.name!r}; it holds "
            f"something else"
        )
    names = () if len(names) == len(specs) else names
    left_out = _left_out(specs, names)
    allotment = read_recipe(folder).allotment if (folder / RECIPE).exists() else None
    record = recipe.record(scale, line, left_out=left_out, selected=names)
    write_recipe(folder, replace(record, allotment=allotment))
    return runnable


def _checked_panels(
    recipe: Recipe, specs: Mapping[str, RunSpec], selected: Sequence[str]
) -> tuple[str, ...]:
    """Return the selected panels in the order of the figure.

    Raises:
        SpecError: If one does not exist.
    """
    if selected and not specs:
        raise SpecError(
            f"'--panels' must be left out for {recipe.name!r}, which has no panels; "
            f"got {selected[0]!r}"
        )
    for name in selected:
        if name not in specs:
            raise SpecError(
                f"'--panels' must name panels of {recipe.name!r}; got {name!r}; "
                f"{near_names(name, specs)}"
            )
    return tuple(name for name in specs if name in selected)


def panels(
    recipe: Recipe, scale: Scale, folder: Path, assignments: Sequence[str] = ()
) -> dict[str, RunSpec]:
    """Return each panel's spec by its name.

    Args:
        recipe: The recipe.
        scale: At which size.
        folder: The recipe's folder.
        assignments: `path=value` overrides of every panel that has the field, or `PANEL:path=value`
            of one.

    Raises:
        SpecError: If there is no spec that overrides could change, or one would leave its folder.
    """
    places = {
        name: placed(comparison, folder / PANELS / name)
        for name, comparison in recipe.panels(scale).items()
    }
    if assignments and not places:
        raise SpecError(
            f"'--set' must be left out for {recipe.name!r}, which has no spec; "
            f"got {assignments[0]!r}"
        )
    overrides = _by_panel(places, assignments)
    specs = {name: changed(spec, overrides[name]) for name, spec in places.items()}
    for name, spec in specs.items():
        if spec.folder != places[name].folder:
            raise SpecError(
                f"'output_dir' of a recipe must be given by '--output-dir', below which its "
                f"panels lie; got {spec.output_dir!r}"
            )
    return specs


def _by_panel(specs: Mapping[str, RunSpec], assignments: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of each panel.

    An override without a panel is of all panels that have its field, and of all if none has, whose
    errors then name it.

    Raises:
        SpecError: If an override names a panel that does not exist.
    """
    overrides: dict[str, list[str]] = {name: [] for name in specs}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        panel, colon, field = path.rpartition(":")
        if colon and panel not in specs:
            raise SpecError(f"{panel!r} is not a panel; {near_names(panel, specs)}")
        owners = [name for name, spec in specs.items() if _has_field(spec, path)]
        for name in [panel] if colon else owners or specs:
            overrides[name].append(f"{field}{equals}{text}")
    return overrides


def _has_field(spec: RunSpec, path: str) -> bool:
    """Return whether a spec as plain data has a field."""
    data: object = plain(spec)
    for name in path.split("."):
        if not isinstance(data, Mapping) or name not in data:
            return False
        data = data[name]
    return True


def _left_out(specs: Mapping[str, RunSpec], selected: Sequence[str]) -> dict[str, str]:
    """Return by panel why it is left out: it is not selected, or has no files of rows."""
    absent = {
        name: (
            f"no data at {spec.task.data!r}; '--set {name}:task.data=FOLDER' names a folder with "
            f"them"
        )
        for name, spec in specs.items()
        if isinstance(spec.task, ExamplesTask)
        and not spec.task.data.startswith(HUB)
        and not Path(spec.task.data).exists()
    }
    return absent | {
        name: "not among the panels of '--panels'"
        for name in specs
        if selected and name not in selected
    }


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Opening of a comparison, or the training of some of its students."""

    panel: str
    """Name in front of its runs."""
    spec: RunSpec
    """Spec of the comparison."""
    origin: Origin
    """How the folder came to be."""
    number: int | None = None
    """Number of the class of students; None opens the comparison and trains its teacher."""
    taught: Path | None = None
    """Folder of the same teacher, trained by another panel."""
    tolerates: bool = False
    """Whether a student that diverges is left without an end, as at a rate that is too high."""


def _work(job: _Job, watch: RecordWatcher) -> None:
    """Do a job.

    Raises:
        DivergenceError: If a student diverges and the panel has no first pass.
    """
    if job.number is None:
        _open(job, watch)
        return
    try:
        train_class(
            job.spec,
            classes(job.spec)[job.number],
            lambda run, record: watch(f"{job.panel}: {run}", record),
        )
    except DivergenceError as error:
        if not job.tolerates:
            raise
        LOGGER.warning("curricle: %s: %s", job.panel, error)


def _open(job: _Job, watch: RecordWatcher) -> None:
    """Bind all strategies, claim the folder and train the teacher, as far as that is not done."""
    spec = job.spec
    if not has_spec(spec.folder):
        teacher = spec.folder / TEACHER
        if job.taught is not None and not teacher.exists():
            with new_folder(teacher) as copy:
                shutil.copytree(job.taught, copy, dirs_exist_ok=True)
        refuse_taken(spec, job.origin.command)
        # Runs that differ in rate and seed alone bind alike.
        distinct = {json.dumps(plain(run.curriculum)): run for run in student_runs(spec)}
        rehearse(spec, list(distinct.values()))
        start(spec, job.origin)
    with working(spec.folder):
        teach(spec, [partial(watch, f"{job.panel}: teacher")])


@final
class _Schedule:
    """Order of the jobs of a recipe: which follow from one that is done."""

    def __init__(self, jobs: Mapping[str, _Job], passes: Mapping[str, FirstPass]) -> None:
        """Take the opening of each panel.

        Args:
            jobs: Openings by panel.
            passes: First passes of the panels that have one.
        """
        self._passes = passes
        self._panels = jobs
        self._followers: dict[Path, list[_Job]] = {}
        self._pending: dict[Path, int] = {}
        self._locks = ExitStack()
        leaders: dict[str, _Job] = {}
        for name, panel in jobs.items():
            job = self._rates(panel, passes[name]) if name in passes else panel
            leader = leaders.setdefault(teacher_key(job.spec), job)
            if leader is not job:
                taught = leader.spec.folder / TEACHER
                self._followers.setdefault(leader.spec.folder, []).append(
                    replace(job, taught=taught)
                )
        self.first = list(leaders.values())

    @staticmethod
    def _rates(panel: _Job, first_pass: FirstPass) -> _Job:
        spec = rates_spec(panel.spec, first_pass)
        return replace(panel, panel=rates_name(panel.panel), spec=spec, tolerates=True)

    def __enter__(self) -> "_Schedule":
        """Return itself; folders that are worked in are locked until the end."""
        return self

    def __exit__(self, *error: object) -> None:
        """Release the folders."""
        self._locks.close()

    def following(self, job: _Job) -> list[_Job]:
        """Return the jobs that a finished one makes possible."""
        folder = job.spec.folder
        if job.number is None:
            self._locks.enter_context(working(folder))
            numbers = range(len(classes(job.spec)))
            self._pending[folder] = len(numbers)
            students = [replace(job, number=number) for number in numbers]
            return [*students, *self._followers.pop(folder, [])]
        self._pending[folder] -= 1
        panel = next((name for name in self._passes if rates_name(name) == job.panel), None)
        if panel is None or self._pending[folder]:
            return []
        _, summary = summarized([folder])
        opening = self._panels[panel]
        spec = tuned_spec(opening.spec, self._passes[panel], summary)
        return [replace(opening, spec=spec, taught=folder / TEACHER, tolerates=True)]


def rates_spec(spec: RunSpec, first_pass: FirstPass) -> RunSpec:
    """Return the first pass of a panel: every strategy with every rate, of one seed."""
    strategies = {
        arm(name, rate): StrategySpec(
            curriculum=strategy.curriculum,
            optimizer=replace(strategy.optimizer or spec.optimizer, learning_rate=rate),
        )
        for name, strategy in spec.strategies.items()
        for rate in first_pass.rates
    }
    return replace(
        spec,
        output_dir=str(spec.folder.with_name(rates_name(spec.folder.name))),
        strategies=strategies,
        seeds=(first_pass.seed,),
        goal=replace(spec.goal, final_of=None),
    )


def tuned_spec(spec: RunSpec, first_pass: FirstPass, summary: Summary) -> RunSpec:
    """Return a panel with the rates and seeds that follow from its first pass.

    Args:
        spec: The panel without them.
        first_pass: How they are chosen.
        summary: The first pass in numbers.

    Raises:
        SpecError: If no strategy has ended with any rate.
    """
    rates = best_rates(summary)
    strategies = {
        name: replace(
            strategy,
            optimizer=replace(strategy.optimizer or spec.optimizer, learning_rate=rates[name]),
        )
        for name, strategy in spec.strategies.items()
        if name in rates
    }
    if not strategies:
        raise SpecError(
            f"one of the rates {list(first_pass.rates)} must let a strategy end; all have diverged"
        )
    seeds = affordable_seeds(summary, rates, spec.seeds or SEEDS, first_pass.seconds)
    goal = spec.goal if spec.goal.final_of in (None, *rates) else replace(spec.goal, final_of=None)
    return replace(spec, strategies=strategies, seeds=seeds, goal=goal)


def teacher_key(spec: RunSpec) -> str:
    """Return everything in a spec on which its teacher depends, as text.

    Args:
        spec: Spec of a comparison.
    """
    engine = spec.engine
    return json.dumps(
        [
            plain(spec.task),
            plain(spec.teacher),
            plain(spec.teacher.optimizer or spec.optimizer),
            [engine.precision, engine.gradient_accumulation_steps, engine.max_grad_norm],
            spec.seed,
        ],
        sort_keys=True,
    )


def run(
    recipe: Recipe,
    scale: Scale,
    specs: Mapping[str, RunSpec],
    *,
    jobs: int,
    line: str,
    watch: RecordWatcher,
) -> list[Path]:
    """Train the teachers and students of all panels, as far as that is not done.

    Args:
        recipe: The recipe.
        scale: At which size.
        specs: Specs of the panels to run, from `claim`.
        jobs: Processes at once.
        line: Command that runs it again.
        watch: Receives panel and run as one name, and a record.

    Returns:
        The folders of the panels.
    """
    if jobs > 1:
        specs = {
            name: replace(spec, engine=replace(spec.engine, threads=1))
            for name, spec in specs.items()
        }
    openings = {
        name: _Job(
            panel=name,
            spec=spec,
            origin=Origin(command="compare", title=f"{recipe.name}: {name}", line=line),
        )
        for name, spec in specs.items()
    }
    passes = {
        name: comparison.first_pass
        for name, comparison in recipe.panels(scale).items()
        if comparison.first_pass is not None and name in openings
    }
    with _Schedule(openings, passes) as schedule:
        work_off(
            schedule.first,
            _work,
            workers=local_workers(jobs),
            watch=watch,
            again=line,
            following=schedule.following,
        )
    return [job.spec.folder for job in openings.values()]


def measure(recipe: Recipe, scale: Scale, folder: Path) -> None:
    """Write the points that a recipe measures besides its panels, unless they are there."""
    if recipe.measure is not None and not (folder / POINTS).is_file():
        write_points(folder, recipe.measure(scale, folder))
