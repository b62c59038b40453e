"""Command line: the verbs and their options.

The verbs are `demo`, `plan`, `teach`, `distill`, `compare`, `resume`, `report`, `probe`,
`evaluate`, `export`, `trajectory`, `reproduce`, and `targets` with its own verbs. Every verb that
takes a spec also takes `--set path=value`. A user's mistake is printed as one line and has exit
code 2; a traceback means a fault of curricle. A signal is printed as one line and has exit code 128
plus its number.

Design: the command line only connects runs, which write records, with reports, which read them;
neither imports the other. Modules that need torch are imported by the command that needs
them, so that help appears at once. Names and paths come from users: no console reads markup.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from curricle.cli import evaluations, exports, launching
from curricle.cli import targets as cli_targets
from curricle.cli import trajectory_listing as cli_trajectory
from curricle.cli.output import (
    console,
    exit_code,
    print_figure,
    print_line,
    print_report,
    progress_bars,
    signal_words,
)
from curricle.cli.placing import CPUs, GPUs, Jobs, Place, Placing
from curricle.errors import CurricleError, visible
from curricle.extras import package_version
from curricle.training.setup import launchers

if TYPE_CHECKING:
    from curricle.records import Record
    from curricle.runs.folder import Origin
    from curricle.runs.spec import RunSpec
    from curricle.runs.train import StudentRun
    from curricle_papers.recipes.recipe import Recipe, Scale


@final
class _Verbs(TyperGroup):
    """The verbs; each ends with 128 and the signal's number if a signal ends it."""

    def invoke(self, ctx: Any) -> object:  # noqa: ANN401 - Typer exports no type of it
        """Return the result of the verb.

        Raises:
            Exit: If a signal has ended it.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            print(
                f"curricle: stopped{signal_words(error)}; the same command starts again",
                file=sys.stderr,
            )
            raise typer.Exit(exit_code(error)) from None


app = typer.Typer(
    name="curricle",
    cls=_Verbs,
    help="Distill a large network into a small one with a curriculum.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_targets.app, name="targets")
Spec = Annotated[Path, typer.Argument(help="Run spec, a YAML file.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the spec; repeatable."),
]
HERE = Placing()
"""Training in this process."""
Folder = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]
Processes = Annotated[
    int, typer.Option("--nproc", min=1, help="Processes that divide every batch, by torchrun.")
]


def print_mistake(_: CurricleError, sentence: str) -> None:
    """Print the sentence of a user's mistake."""
    print(f"curricle: {sentence}", file=sys.stderr)


def main(report: Callable[[CurricleError, str], None] = print_mistake) -> None:
    """Run the command line; a user's mistake is one line and exit code 2.

    Args:
        report: Receives a user's mistake and its sentence.

    Raises:
        SystemExit: Always, with the exit code.
    """
    from curricle.data.text.progress import reported_progress
    from curricle.training.setup.interrupts import interruptible
    from curricle.training.setup.observers import PreparationBar

    # On standard error, so that piped output stays clean.
    bar = PreparationBar(Console(stderr=True))
    try:
        with interruptible(), reported_progress(bar):
            app()
    except CurricleError as error:
        bar.close()
        # Messages of other libraries inside a sentence may have several lines.
        report(error, visible(" ".join(str(error).split())))
        sys.exit(2)
    finally:
        bar.close()


def _show_version(is_requested: bool) -> bool:  # noqa: FBT001 - typer's own signature
    if is_requested:
        print(f"curricle {package_version()}")
        raise typer.Exit
    return is_requested


@app.callback()
def options(
    version: Annotated[  # noqa: FBT002 - a flag of the command line
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Parse the options before a verb."""


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="parity or text.")] = "parity",
    output_dir: Annotated[
        Path | None, typer.Option(help="Run folder; a new one below runs/ by default.")
    ] = None,
    sets: Sets = None,
    jobs: Jobs = 2,
) -> None:
    """Train a small teacher and compare strategies for students, in minutes."""
    from curricle.runs.demo import demo_spec
    from curricle.runs.folder import unused_folder
    from curricle.runs.spec import changed

    usual = Path("runs") / ("demo" if name == "parity" else f"demo-{name}")
    folder = output_dir or unused_folder(usual)
    spec = changed(demo_spec(name, str(folder)), sets or [])
    line = _line("demo", name, sets, output_dir)
    _compare(spec, Placing(jobs), title=f"curricle demo: {name}", line=line)


@app.command()
def plan(
    spec: Spec,
    sets: Sets = None,
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help="Print memory and bytes sent of one of so many processes."),
    ] = None,
) -> None:
    """Print inputs, trained parameters and cost of each stage, without training."""
    from curricle.reports.tables import plan_table
    from curricle.runs.label_costs import label_notes
    from curricle.runs.spec import load_spec
    from curricle.runs.train import first_runs, planned_student, single_run

    run_spec = load_spec(spec, sets)
    runs = first_runs(run_spec) if run_spec.strategies else []
    # A spec may serve both `distill` and `compare`.
    if run_spec.curriculum is not None or not runs:
        runs = [single_run(run_spec), *runs]
    if world_size is not None:
        _plan_ranks(run_spec, runs, world_size)
        return
    notes: dict[str, None] = {}
    for run in runs:
        bound = planned_student(run_spec, run)
        console.print(plan_table(bound.plans, title=run.name))
        # Students of a comparison share their teacher.
        trains_teacher = run_spec.teacher.total is not None and not run_spec.strategies
        lines = (*bound.notes, *label_notes(bound, trains_teacher=trains_teacher))
        for note in lines:
            if note not in notes:
                print_line(note)
        notes |= dict.fromkeys(lines)


def _plan_ranks(spec: "RunSpec", runs: "Sequence[StudentRun]", world_size: int) -> None:
    """Print the tables of one process of each run, and their notes."""
    from curricle.reports.tables import to_rich
    from curricle.runs.rank_plans import planned_ranks

    notes: dict[str, None] = {}
    for run in runs:
        ranks = planned_ranks(spec, run, world_size)
        console.print(to_rich(ranks.grid(), leading=1))
        notes |= dict.fromkeys(ranks.notes)
    for note in notes:
        print_line(note)


@app.command()
def teach(spec: Spec, sets: Sets = None, nproc: Processes = 1) -> None:
    """Train the spec's teacher from labels and keep its checkpoints."""
    from curricle.runs.folder import Origin
    from curricle.runs.spec import load_spec, require_field

    run_spec = launching.divided(load_spec(spec, sets))
    launching.launch(nproc, ["teach", str(spec), *_options(sets)])
    require_field(run_spec.teacher.total, "teacher.total", "teach")
    origin = Origin(command="teach", title=spec.stem, line=_line("teach", spec, sets))
    _start(run_spec, origin, [])
    _go_on("teach", run_spec)


@app.command()
def distill(spec: Spec, sets: Sets = None, nproc: Processes = 1) -> None:
    """Train one student by the spec's curriculum, after its teacher if need be."""
    from curricle.runs.folder import Origin
    from curricle.runs.spec import load_spec
    from curricle.runs.train import single_run

    run_spec = launching.divided(load_spec(spec, sets))
    launching.launch(nproc, ["distill", str(spec), *_options(sets)])
    origin = Origin(command="distill", title=spec.stem, line=_line("distill", spec, sets))
    _start(run_spec, origin, [single_run(run_spec)])
    _go_on("distill", run_spec)


@app.command()
def compare(  # noqa: PLR0917 - options of a command
    spec: Spec,
    sets: Sets = None,
    jobs: Jobs = 1,
    place: Place = "local",
    num_cpus: CPUs = 1.0,
    num_gpus: GPUs = 0.0,
) -> None:
    """Train students by several strategies on equal budgets and report."""
    from curricle.runs.spec import load_spec

    placing = Placing(jobs, place, num_cpus, num_gpus)
    _compare(load_spec(spec, sets), placing, title=spec.stem, line=_line("compare", spec, sets))


@app.command()
def resume(  # noqa: PLR0917 - options of a command
    run: Folder,
    jobs: Jobs = 1,
    nproc: Processes = 1,
    place: Place = "local",
    num_cpus: CPUs = 1.0,
    num_gpus: GPUs = 0.0,
    *,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Set damaged checkpoints aside for older ones.")
    ] = False,
) -> None:
    """Go on with an interrupted run, from its newest checkpoints."""
    from curricle.runs.folder import read_origin, stored_spec

    command, spec = read_origin(run).command, stored_spec(run)
    if fallback and launchers.rank() == 0:
        _set_damaged_aside(run)
    if command == "compare":
        launching.refuse(nproc, command)
        _go_on(command, spec, Placing(jobs, place, num_cpus, num_gpus))
    else:
        launching.launch(nproc, ["resume", str(run)])
        spec = launching.divided(spec)
        if fallback:
            # All processes look for the newest checkpoint after the first has set others aside.
            spec.engine.placement.wait()
        _go_on(command, spec)


@app.command()
def reproduce(  # noqa: PLR0913 - the options of the command
    name: Annotated[str, typer.Argument(help="Recipe; see --list.", show_default=False)] = "",
    *,
    scale: Annotated[str, typer.Option(help="smoke, small or paper.")] = "small",
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder; runs/reproduce/NAME-SCALE by default.")
    ] = None,
    sets: Sets = None,
    panels: Annotated[
        str | None,
        typer.Option(help="Panels to run, as text-masked,text-next; all by default."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="As of compare; by default 1 at smoke, otherwise 2.")
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(help="Time such as 8m: run the seeds and panels that a pilot says fit."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the recipes.")] = False,
) -> None:
    """Make a figure of a paper again; a second call goes on where the first was stopped.

    A call with other --panels adds them to the folder. With --within a pilot of some steps comes
    first; seeds and then panels that do not fit are left out, which is printed and recorded.
    """
    from curricle.figure_points import line_again, read_recipe, usual_folder
    from curricle.reports.reproduction import recipe_table
    from curricle_papers.recipes.allotting import allotted, seconds
    from curricle_papers.recipes.index import RECIPES, recipe_named
    from curricle_papers.recipes.recipe import checked_scale
    from curricle_papers.recipes.running import claim, measure

    if listed or not name:
        console.print(recipe_table([recipe.describe() for recipe in RECIPES.values()]))
        return
    recipe, size = recipe_named(name), checked_scale(scale)
    launching.refuse(1, "reproduce")
    folder = output_dir or usual_folder(name, scale)
    limit = None if within is None else seconds(within)
    # At smoke a process takes longer to start than to run.
    jobs = jobs or (1 if size == "smoke" else 2)
    line = f"{_line('reproduce', name, sets)} --scale {scale}"
    line += "" if within is None else f" {shlex.join(['--within', within])}"
    selected = [] if panels is None else [panel.strip() for panel in panels.split(",")]
    specs = claim(recipe, size, folder, line, assignments=sets or [], selected=selected)
    if limit is not None:
        specs, note = allotted(recipe, size, folder, specs, limit=limit, jobs=jobs)
        print_line(note)
    measure(recipe, size, folder)
    again = line_again(read_recipe(folder), folder)
    _run_recipe(recipe, size, specs, jobs, again)
    print_figure(folder)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            help="HTML file; by default report.html in the folder, of several in joint-report."
        ),
    ] = None,
) -> None:
    """Make tables, figures and the HTML page again from the records of runs.

    Goal and budget are those of the spec in the first folder, if it holds one. All runs must be
    of one task. Of a recipe's folder the recipe's figure is made again.
    """
    from curricle.figure_points import RECIPE

    if len(runs) == 1 and (runs[0] / RECIPE).is_file():
        print_figure(runs[0], output)
    else:
        print_report(runs, output)


@app.command()
def probe(
    run: Folder,
    examples: Annotated[
        int | None,
        typer.Option(min=4, help="Held-out examples to read; by default as many as suit the task."),
    ] = None,
    *,
    train_probes: Annotated[
        bool,
        typer.Option(
            "--train-probes",
            help="Also train probes that read labels, and symbols of a grammar, off hidden states.",
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Probe to use, as ranks; repeatable. All by default."),
    ] = None,
) -> None:
    """Look inside the teacher's checkpoints and the finished students of a run."""
    from curricle.records import PROBES
    from curricle.reports.probe_tables import probe_grids, rank_notes, save_probe_figure
    from curricle.reports.tables import to_rich
    from curricle.runs.probe import probe_run

    with console.status("reading the run") as status:
        records = probe_run(
            run,
            examples=examples,
            # A status reads texts as markup, and a strategy may have any name.
            watch=lambda name: status.update(Text(visible(name))),
            trains_probes=train_probes,
            only=only or (),
        )
    for grid in probe_grids(records):
        console.print(to_rich(grid))
    for note in rank_notes(records):
        print_line(note)
    probes = run / PROBES
    for path in (probes, *save_probe_figure(records, probes.with_suffix(""))):
        print_line(path)


app.command()(evaluations.evaluate)
app.command()(exports.export)
app.command()(cli_trajectory.trajectory)


def _line(verb: str, what: object, sets: list[str] | None, output_dir: Path | None = None) -> str:
    """Return the command that runs something again."""
    folder = [] if output_dir is None else ["--output-dir", str(output_dir)]
    return shlex.join(["curricle", verb, str(what), *_options(sets), *folder])


def _options(sets: list[str] | None) -> list[str]:
    return [argument for assignment in sets or [] for argument in ("--set", assignment)]


def _start(spec: "RunSpec", origin: "Origin", students: "Sequence[StudentRun]") -> None:
    """Claim the run folder after everything that can be checked beforehand has been."""
    from curricle.runs.assemble import open_task
    from curricle.runs.folder import is_begun, refuse_taken, start
    from curricle.runs.train import rehearse

    processes = spec.engine.placement
    if spec.engine.parallel == "none":
        launching.refuse(1, origin.command)
    if launchers.restarts() > 0 and is_begun(spec, origin.command):
        return
    refuse_taken(spec, origin.command)
    if processes.is_writer:
        # Data are prepared once.
        open_task(spec, spec.seed, "train")
    processes.wait()
    rehearse(spec, students)
    # All processes have looked before one of them writes.
    processes.wait()
    if processes.is_writer:
        start(spec, origin)
    processes.wait()


def _compare(spec: "RunSpec", placing: Placing, *, title: str, line: str) -> None:
    from curricle.runs.folder import Origin
    from curricle.runs.train import first_runs

    _start(spec, Origin(command="compare", title=title, line=line), first_runs(spec))
    _go_on("compare", spec, placing)


def _run_recipe(  # noqa: PLR0917 - private, called once
    recipe: "Recipe", scale: "Scale", specs: Mapping[str, "RunSpec"], jobs: int, line: str
) -> None:
    """Run the rest of a recipe's panels and report each.

    Raises:
        Exit: If interrupted, after printing the effect of resuming.
    """
    from curricle.training.setup.observers import NoteLine
    from curricle_papers.recipes.running import run

    tell = NoteLine(console, is_comparison=True)
    try:
        # A recipe may have hundreds of runs.
        with progress_bars(are_transient=True) as new_bar:
            bars: dict[str, Callable[[Record], None]] = {}

            def watch(name: str, record: "Record") -> None:
                # A first pass has each strategy many times; its notes are those of the panel.
                if name.partition(": ")[0] in specs:
                    tell(record, name.rpartition(" seed ")[0], student=name)
                bars.setdefault(name, new_bar(name))(record)

            finished = run(recipe, scale, specs, jobs=jobs, line=line, watch=watch)
    except KeyboardInterrupt as error:
        _say_stopped(error, next(iter(specs.values())), line)
        raise typer.Exit(exit_code(error)) from None
    for panel in finished:
        print_report([panel])


def _go_on(command: str, spec: "RunSpec", placing: Placing = HERE) -> None:
    """Run the unfinished part of the spec's folder.

    Raises:
        Exit: If interrupted, after printing the effect of resuming.
    """
    from curricle.runs.folder import working

    if spec.engine.parallel == "none":
        launching.refuse(1, command)
    placement = spec.engine.placement
    try:
        # Around binding too, where processes exchange weights.
        with (
            placement.lost_process_errors(),
            working(spec.folder) if placement.is_writer else nullcontext(),
        ):
            _run(command, spec, placing)
    except KeyboardInterrupt as error:
        _say_stopped(error, spec)
        raise typer.Exit(exit_code(error)) from None


def _set_damaged_aside(run: Path) -> None:
    """Set damaged checkpoints aside, and print which."""
    from curricle.runs.folder import working
    from curricle.training.loop.fallback import set_damaged_aside

    with working(run):
        fallbacks = set_damaged_aside(run)
    for fallback in fallbacks:
        print(visible(f"curricle: {fallback.action}: {fallback.fault}"), file=sys.stderr)


def _say_stopped(error: KeyboardInterrupt, spec: "RunSpec", again: str = "") -> None:
    """Print that a command was interrupted, and the effect of resuming."""
    has_saved = getattr(error, "checkpoint", None) is not None
    remedy = _remedy(spec, again, has_saved=has_saved)
    launching.report_stop(f"stopped{signal_words(error)}; {visible(remedy)}")


def _run(command: str, spec: "RunSpec", placing: Placing) -> None:
    _teach(spec)
    if command == "compare":
        _compare_students(spec, placing)
    elif command == "distill":
        _distill(spec)
    else:
        print_line(f"teacher in {spec.folder / 'teacher'}")


def _remedy(spec: "RunSpec", again: str, *, has_saved: bool) -> str:
    """Return the command that continues an interrupted run, and its starting point."""
    line = again or shlex.join(["curricle", "resume", str(spec.folder)])
    from curricle.runs.folder import has_checkpoint

    reason = ""
    if spec.engine.save_every is None:
        reason = "the spec sets no 'engine.save_every'"
    elif not again and not has_checkpoint(spec.folder):
        reason = "they have no checkpoint yet"
    if has_saved or not reason:
        return f"'{line}' resumes from the newest checkpoint"
    return f"'{line}' keeps finished runs and restarts the others, since {reason}"


def _compare_students(spec: "RunSpec", placing: Placing) -> None:
    from curricle.runs.pool import compare as run_all
    from curricle.runs.train import student_runs
    from curricle.training.setup.observers import NoteLine

    tell = NoteLine(console, is_comparison=True)
    with progress_bars() as new_bar:
        bars = {str(run): new_bar(str(run)) for run in student_runs(spec)}

        def watch(run: "StudentRun", record: "Record") -> None:
            tell(record, run.name, student=str(run))
            bars[str(run)](record)

        workers = None if placing.is_single else placing.workers()
        run_all(spec, workers=workers, watch=watch)
    print_report([spec.folder])


def _teach(spec: "RunSpec") -> None:
    from curricle.runs.train import teach as train_teacher

    with progress_bars() as new_bar:
        train_teacher(spec, [new_bar("teacher")])


def _distill(spec: "RunSpec") -> None:
    from curricle.runs.train import single_run, train_student
    from curricle.training.setup.observers import NoteLine

    run = single_run(spec)
    with progress_bars() as new_bar:
        end = train_student(spec, run, [NoteLine(console), new_bar(run.name)])
    metrics = ", ".join(f"{name} {number:.4f}" for name, number in end.metrics.items())
    best = f" (the best by {end.best_metric}, of step {end.best_step})" if end.best_metric else ""
    print_line(f"{run.name}: {metrics}{best} after {end.usage.steps} steps, in {spec.folder}")
