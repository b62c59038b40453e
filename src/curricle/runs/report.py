"""Reports of run folders.

A run folder holds the spec or request of its comparison beside the records. Goal and budget of a
report are those of the first folder.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from curricle.errors import CheckpointError, visible
from curricle.figure_points import PANELS, caution, read_recipe
from curricle.files import remove_leftovers_of
from curricle.metrics import Direction
from curricle.records import PROBES, RECORDS, ProbeRecord, read_probes
from curricle.reports.page import write_page
from curricle.reports.printed import save_learning_curves
from curricle.reports.rates import best_rates
from curricle.reports.reproduction import SUMMARY, write_recipe_report
from curricle.reports.run_folders import Run, load_runs
from curricle.reports.summary import Summary, summarize, write_summary
from curricle.runs.folder import STUDENTS, has_spec, read_origin, run_folder, stored_fields
from curricle.runs.request import Request, read_request
from curricle.runs.spec import SEEDS
from curricle.runs.teacher_file import read_teacher_metrics
from curricle.values import plain

CURVES = "learning-curves"
"""Name of the figure of a comparison, without its ending."""
MOST_NAMED = 6
"""Folders that a title names."""


def write_report(
    folders: Sequence[Path], page: Path, *, better: Direction | None = None
) -> Summary:
    """Write page, summary and learning curves of run folders.

    Args:
        folders: Run folders, at least one; goal and budget are those of the first.
        page: The HTML file; the others are put beside it.
        better: Direction of the metric; None takes that declared by the runs, else derives it
            from the name.

    Returns:
        The comparison in numbers.

    Raises:
        CheckpointError: If it cannot be written.
    """
    runs, summary = summarized(folders, better=better)
    heading = _heading(folders, page)
    probes = [record for folder in folders for record in read_probes(folder / PROBES)]
    try:
        _write(runs, summary, page, heading=heading, probes=probes)
    except OSError as error:
        raise CheckpointError(
            f"{str(page)!r} must be a file that can be written; got {error}"
        ) from None
    return summary


def summarized(
    folders: Sequence[Path], *, better: Direction | None = None
) -> tuple[tuple[Run, ...], Summary]:
    """Return the runs in folders and their summary.

    Args:
        folders: Run folders, at least one; goal and budget are those of the first.
        better: Which values of the metric are better, if that is to be declared here.
    """
    runs = load_runs(folders)
    request = read_request(folders[0])
    judged = request.metric or next(run for run in runs if not run.is_teacher).opening.metric
    summary = summarize(
        runs,
        metric=request.metric,
        goal=request.goal,
        goal_of=_source(request, folders[0], runs),
        budget={} if request.budget is None else dict(plain(request.budget)),
        missing=_missing(folders, runs),
        caution=next(filter(None, map(caution, folders)), ""),
        better=better or request.better,
        teacher_final=read_teacher_metrics(folders[0]).get(judged),
    )
    return runs, summary


def write_figure(folder: Path) -> tuple[str, ...]:
    """Write figure, summary and page of a recipe from the records in its folder.

    Args:
        folder: The recipe's folder.

    Returns:
        Results, a line each.

    Raises:
        CheckpointError: If a panel holds no records yet, or something cannot be written.
    """
    panels = read_recipe(folder).panels
    folders = [folder / PANELS / panel.name for panel in panels]
    # An interrupted recipe is reported as far as it has come; without any run there is no report.
    begun = [place for place in folders if _has_students(place)] or folders
    summaries = [summarized([place])[1] if place in begun else None for place in folders]
    passes = {panel.name: folder / PANELS / panel.rates for panel in panels if panel.rates}
    rates = {
        name: best_rates(summarized([place])[1])
        for name, place in passes.items()
        if _has_students(place)
    }
    try:
        return write_recipe_report(folder, summaries, rates)
    except OSError as error:
        raise CheckpointError(
            f"{str(folder)!r} must be a folder that can be written; got {error}"
        ) from None


def _has_students(folder: Path) -> bool:
    """Return whether a comparison holds records of a student."""
    return any((folder / STUDENTS).glob(f"*/*/{RECORDS}"))


def _write(
    runs: Sequence[Run],
    summary: Summary,
    page: Path,
    *,
    heading: tuple[str, str],
    probes: Sequence[ProbeRecord],
) -> None:
    title, line = heading
    # Temporary files of a process that was killed while it wrote a report.
    curves = (f"{CURVES}.png", f"{CURVES}.svg")
    remove_leftovers_of(page.parent, page.name, SUMMARY, *curves)
    write_page(runs, summary, page, title=title, command=line, probes=probes)
    write_summary(summary, page.with_name(SUMMARY))
    save_learning_curves(
        runs,
        page.with_name(CURVES),
        metric=summary.metric,
        goal=summary.goal,
        log_x=summary.is_wide,
    )


def usual_page(folders: Sequence[Path]) -> Path:
    """Return the page of a report that is given none."""
    return (folders[0] if len(folders) == 1 else Path("joint-report")) / "report.html"


def _heading(folders: Sequence[Path], page: Path) -> tuple[str, str]:
    """Return the title of a report, and the command that makes its runs or itself again."""
    is_usual = page.resolve() == usual_page(folders).resolve()
    place = [] if is_usual else ["--output", str(page)]
    again = shlex.join(["curricle", "report", *map(str, folders), *place])
    if len(folders) == 1 and has_spec(folders[0]):
        origin = read_origin(folders[0])
        return origin.title, origin.line if is_usual else f"{origin.line}\n{again}"
    names = [visible(folder.name or str(folder)) for folder in folders]
    title = " and ".join(names) if len(names) <= 2 else f"{len(names)} folders: {_listed(names)}"  # noqa: PLR2004 - a pair
    return title, again


def _listed(names: Sequence[str]) -> str:
    """Return the names that fit into a title, and how many more there are."""
    num_hidden = len(names) - MOST_NAMED
    return ", ".join([*names[:MOST_NAMED], *([f"and {num_hidden} more"] if num_hidden > 0 else [])])


def _source(request: Request, folder: Path, runs: Sequence[Run]) -> str | None:
    """Return the name among the runs of the strategy that sets the goal."""
    source = (folder / STUDENTS / str(request.goal_of)).resolve()
    return next((run.method for run in runs if run.path.resolve().parent == source), None)


def _missing(folders: Sequence[Path], runs: Sequence[Run]) -> list[str]:
    """Return the runs of comparisons that are not among those found, in words."""
    paths = {run.path.resolve() for run in runs}
    comparisons = [
        folder_ for folder_ in folders if (folder_ / STUDENTS).is_dir() and has_spec(folder_)
    ]
    missing = [
        (f"{name} seed {seed}", folder)
        for folder in comparisons
        for name, seed in _planned(folder)
        if run_folder(folder, name, seed).resolve() not in paths
    ]
    return [run if len(folders) == 1 else f"{run} in {folder}" for run, folder in missing]


def _planned(folder: Path) -> list[tuple[str, int]]:
    """Return strategy and seed of each run of a comparison; the whole spec is not read."""
    fields = stored_fields(folder)
    seeds = fields.get("seeds") or SEEDS
    return [(name, seed) for seed in seeds for name in fields.get("strategies") or {}]
