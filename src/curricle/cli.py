"""How is curricle used from a shell?

One verb a job: `demo`, `plan`, `teach`, `distill`, `compare`, `resume`, `report`. Every verb that
takes a spec also takes `--set path=value`. A mistake of the user's is told in one line and exits
with 2; a traceback means that the mistake is ours.

Design: the command line only connects experiments, which write records, with reports, which read
them; neither knows the other. Modules that need torch are imported by the command that needs
them, so that help appears at once.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from curricle.errors import CurricleError

if TYPE_CHECKING:
    from curricle.experiments.spec import RunSpec
    from curricle.records import Record

WIDE = 140
"""Columns of tables that do not go to a terminal."""

app = typer.Typer(
    name="curricle",
    help="Make a small network learn from a large one by giving it a curriculum.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
if not console.is_terminal:
    # Tables in a file or a pipe need not fit a terminal.
    console = Console(width=WIDE)

Spec = Annotated[Path, typer.Argument(help="YAML file that says what to run.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the spec; repeatable."),
]
Jobs = Annotated[
    int, typer.Option(min=1, help="Students trained at the same time, one CPU thread each.")
]
Folder = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    try:
        app()
    except CurricleError as error:
        print(f"curricle: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("curricle: stopped; 'curricle resume FOLDER' goes on", file=sys.stderr)
        sys.exit(130)


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="parity or text.")] = "parity",
    output_dir: Annotated[
        Path | None, typer.Option(help="Run folder; a new one below runs/ by default.")
    ] = None,
    sets: Sets = None,
    jobs: Jobs = 2,
) -> None:
    """Train a small teacher and compare four ways to teach a student, in minutes."""
    from curricle.errors import SpecError, near_names
    from curricle.experiments.demos import DEMOS
    from curricle.experiments.spec import changed

    if name not in DEMOS:
        raise SpecError(f"{name!r} is not a demo; {near_names(name, DEMOS)}")
    folder = output_dir or _unused(Path("runs") / ("demo" if name == "parity" else f"demo-{name}"))
    spec = changed(DEMOS[name](str(folder)), sets or [])
    _compare(spec, jobs, title=f"curricle demo: {name}", command=f"curricle demo {name}")


@app.command()
def plan(spec: Spec, sets: Sets = None) -> None:
    """Print what each stage reads, trains and costs, without training."""
    from curricle.experiments.runner import planned_student, single_run, student_runs
    from curricle.experiments.spec import load_spec
    from curricle.reports.tables import plan_table

    chosen = load_spec(spec, sets)
    runs = student_runs(chosen) if chosen.strategies else [single_run(chosen)]
    for run in [run for run in runs if run.seed == runs[0].seed]:
        bound = planned_student(chosen, run)
        console.print(plan_table([stage.plan for stage in bound.stages], title=run.name))


@app.command()
def teach(spec: Spec, sets: Sets = None) -> None:
    """Train the spec's teacher from labels and keep its checkpoints."""
    from curricle.experiments.runner import start
    from curricle.experiments.spec import given, load_spec

    chosen = load_spec(spec, sets)
    given(chosen.teacher.total, "teacher.total", "teach")
    start(chosen, "teach")
    _teach(chosen)
    console.print(f"teacher in {chosen.folder / 'teacher'}")


@app.command()
def distill(spec: Spec, sets: Sets = None) -> None:
    """Train one student by the spec's curriculum, after its teacher if need be."""
    from curricle.experiments.runner import planned_student, single_run, start
    from curricle.experiments.spec import load_spec

    chosen = load_spec(spec, sets)
    if chosen.budget is None or chosen.budget.is_length:
        # Everything that can be checked is checked before the teacher costs time.
        planned_student(chosen, single_run(chosen))
    start(chosen, "distill")
    _distill(chosen)


@app.command()
def compare(spec: Spec, sets: Sets = None, jobs: Jobs = 1) -> None:
    """Train students by several strategies on equal budgets and report."""
    from curricle.experiments.spec import load_spec

    command = " ".join(["curricle compare", str(spec), *(f"--set {one}" for one in sets or [])])
    _compare(load_spec(spec, sets), jobs, title=spec.stem, command=command)


@app.command()
def resume(run: Folder, jobs: Jobs = 1) -> None:
    """Go on with an interrupted run, from its newest checkpoints."""
    from curricle.experiments.runner import read_command, stored_spec

    command, spec = read_command(run), stored_spec(run)
    if command == "compare":
        _finish_comparison(spec, jobs, title=run.name, command=f"curricle compare {run}/spec.yaml")
    elif command == "distill":
        _distill(spec)
    else:
        _teach(spec)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="HTML file; report.html in the first folder by default.")
    ] = None,
) -> None:
    """Make tables, figures and the HTML page again from the records of runs."""
    from curricle.experiments.runner import has_spec, stored_spec

    spec = stored_spec(runs[0]) if has_spec(runs[0]) else None
    page = output or runs[0] / "report.html"
    _report(runs, page, spec, title=runs[0].name, command=f"curricle report {runs[0]}")


def _compare(spec: "RunSpec", jobs: int, *, title: str, command: str) -> None:
    from curricle.experiments.runner import planned_student, start, student_runs

    for run in student_runs(spec)[: len(spec.strategies)]:
        if spec.budget is None or spec.budget.is_length:
            planned_student(spec, run)
    start(spec, "compare")
    _finish_comparison(spec, jobs, title=title, command=command)


def _finish_comparison(spec: "RunSpec", jobs: int, *, title: str, command: str) -> None:
    from curricle.experiments.comparison import compare as run_all

    _teach(spec)
    with _bars() as new_bar:
        bars: dict[str, Callable[[Record], None]] = {}

        def watch(run: object, record: "Record") -> None:
            name = str(run)
            if name not in bars:
                bars[name] = new_bar(name)
            bars[name](record)

        run_all(spec, jobs=jobs, watch=watch)
    _report([spec.folder], spec.folder / "report.html", spec, title=title, command=command)


def _teach(spec: "RunSpec") -> None:
    from curricle.experiments.runner import teach as train_teacher

    with _bars() as new_bar:
        train_teacher(spec, [new_bar("teacher")])


def _distill(spec: "RunSpec") -> None:
    from curricle.experiments.runner import single_run, train_student

    run = single_run(spec)
    _teach(spec)
    with _bars() as new_bar:
        end = train_student(spec, run, [new_bar(run.name)])
    metrics = ", ".join(f"{name} {number:.4f}" for name, number in end.metrics.items())
    console.print(f"{run.name}: {metrics} after {end.spent.steps} steps, in {spec.folder}")


def _report(
    folders: list[Path], page: Path, spec: "RunSpec | None", *, title: str, command: str
) -> None:
    from curricle.reports.page import write_page
    from curricle.reports.printed import save_learning_curves
    from curricle.reports.runs import load_runs
    from curricle.reports.summary import headline, write_summary
    from curricle.reports.tables import summary_table
    from curricle.specs import plain

    runs = load_runs(folders)
    budget = {} if spec is None or spec.budget is None else dict(plain(spec.budget))
    metric = None if spec is None else spec.target.metric
    target = None if spec is None else _target(spec, folders)
    summary = write_page(
        runs, page, title=title, target=target, metric=metric, budget=budget, command=command
    )
    write_summary(summary, page.with_name("summary.json"))
    save_learning_curves(
        runs, page.with_name("learning-curves"), metric=summary.metric, target=target
    )
    console.print(summary_table(summary))
    console.print(headline(summary), soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)


def _target(spec: "RunSpec", folders: list[Path]) -> float | None:
    """Return the value to be reached, which may be the mean final value of one strategy."""
    from curricle.reports.runs import load_runs
    from curricle.reports.summary import summarize

    if spec.target.final_of is None:
        return spec.target.number
    summary = summarize(
        load_runs(folders), task="", metric=spec.target.metric, target=None, budget={}
    )
    return summary.methods[spec.target.final_of].final.mean


@contextmanager
def _bars() -> "Iterator[Callable[[str], Callable[[Record], None]]]":
    from curricle.training.observers import ProgressBar, new_progress

    with new_progress(console) as progress:
        yield lambda name: ProgressBar(progress, name)


def _unused(folder: Path) -> Path:
    """Return the folder, numbered if it is taken: a demo never overwrites a run."""
    number, candidate = 2, folder
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate
