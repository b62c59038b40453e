"""Runs that are killed and go on, compared with undisturbed ones.

    OMP_NUM_THREADS=1 python -m tests.soak.kills --count 60 --seed 0

A trial begins a tiny run, kills its process group at a random or aimed moment, goes on with
`curricle resume` (or with the same command, where that is what goes on), perhaps kills again, and
lets the run come to its end. All weights, trajectories, targets and records must then be equal bit
by bit, but for seconds, to those of the run that nobody disturbed.
"""

import re
import shutil
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from curricle.seeding import numpy_generator
from tests.soak.contents import Contents, contents, differences
from tests.soak.jobs import JOBS, Job
from tests.soak.moments import MOMENTS, Activity, draw_aim, interrupted_stage, kill_at, observe
from tests.soak.processes import HUNG, Ending, run, start, wait, warm_up
from tests.soak.trials import Plan, Result, defects, markdown, outcome_table, run_trials

OUTCOMES = ("equal", "leftover", "different", "lost", "refused", "unclean", "hang", "no kill")
CLEAN = ("equal", "no kill")
MOST_KILLS = 3
ANOTHER_KILL = 0.35
"""Chance that what goes on is killed too."""
LOG = "log.txt"


class Bench:
    """Folder of a series of trials, with the undisturbed run of each job."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; undisturbed runs are made when a trial needs them."""
        self.folder = folder
        self._references: dict[str, tuple[Contents, Activity]] = {}

    def reference(self, job: Job) -> tuple[Contents, Activity]:
        """Return what the undisturbed run leaves, and what happens meanwhile.

        Raises:
            RuntimeError: If it fails without having been disturbed.
        """
        if job.name not in self._references:
            folder = self.prepared(job, "reference")
            log = folder / LOG
            pid = start(job.arguments, folder=folder, log=log)
            code, activity = observe(pid, folder)
            if code != 0:
                raise RuntimeError(f"{job.name!r} must run; got code {code}, see {log}")
            self._references[job.name] = _left(job, folder), activity
            shutil.rmtree(folder)
        return self._references[job.name]

    def prepared(self, job: Job, name: str) -> Path:
        """Return a new folder in which a job can begin.

        Raises:
            RuntimeError: If a command of the preparation fails.
        """
        base = self.folder / "prepared" / job.name.replace(", ", "-").replace(" ", "-")
        if not base.is_dir():
            base.mkdir(parents=True)
            job.write_spec(base)
            for arguments in job.preparation:
                ending = run(arguments, folder=base, log=base / LOG)
                if ending.code != 0:
                    raise RuntimeError(f"{arguments} must run; see {base / LOG}")
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        return folder


def kill_trial(
    bench: Bench, seed: int, number: int, *, quick: bool = False, name: str | None = None
) -> Result:
    """Return the outcome of one disturbed run; its folder stays if it failed.

    Args:
        bench: Folder of the trials.
        seed: Of the series.
        number: Of the trial.
        quick: Whether only short runs are taken, in turn, each killed once.
        name: Name of the only kind of run; None takes all.
    """
    generator = numpy_generator(seed, "soak kills", number)
    jobs = [job for job in JOBS if name in {None, job.name}]
    shares = np.array([job.share for job in jobs], dtype=float)
    short = [job for job in JOBS if job.is_short]
    job = (
        short[number % len(short)]
        if quick
        else jobs[generator.choice(len(jobs), p=shares / shares.sum())]
    )
    expected, activity = bench.reference(job)
    folder, started = bench.prepared(job, f"trial-{number:06d}"), time.monotonic()
    most = 1 if quick else MOST_KILLS
    kills, ending = _disturb(job, folder, activity, generator, most=most)
    outcome, detail = _judged(job, folder, ending, expected)
    if not kills and outcome == "equal":
        outcome = "no kill"
    if outcome in CLEAN:
        shutil.rmtree(folder)
    return Result(
        seed=seed,
        trial=number,
        group=job.name,
        outcome=outcome,
        detail=detail,
        weight=len(kills),
        seconds=round(time.monotonic() - started, 2),
        facts={"kills": kills},
    )


def _disturb(
    job: Job, folder: Path, activity: Activity, generator: np.random.Generator, *, most: int
) -> tuple[list[dict[str, Any]], Ending]:
    """Run a job to its end with kills between; return these and how it ended."""
    kills: list[dict[str, Any]] = []
    while True:
        log = folder / LOG
        pid = start(job.next_arguments(folder), folder=folder, log=log)
        is_last = len(kills) >= most or (kills and generator.random() > ANOTHER_KILL)
        if is_last:
            return kills, wait(pid, log)
        aim = draw_aim(generator, activity)
        code = kill_at(pid, folder, aim)
        if code is not None:
            text = log.read_text(encoding="utf-8", errors="replace")
            return kills, Ending(code=code, text=text)
        kills.append(asdict(aim) | {"stage": interrupted_stage(folder)})


def _judged(job: Job, folder: Path, ending: Ending, expected: Contents) -> tuple[str, str]:
    if ending.code == HUNG:
        return "hang", ending.last_line
    if ending.code != 0:
        return ("refused" if ending.is_clean_refusal else "unclean"), ending.last_line
    found = differences(_left(job, folder), expected)
    for kind in ("lost", "different", "leftover"):
        if kind in found:
            return kind, ", ".join(sorted({_generic(path) for path in found[kind]})[:3])
    return "equal", ""


def _left(job: Job, folder: Path) -> Contents:
    found = contents(folder, divides_targets=job.divides_targets)
    return {path: digest for path, digest in found.items() if path != LOG}


def _generic(path: str) -> str:
    """Return a path without steps and the random parts of temporary names."""
    parts = Path(path).parts
    shown = [re.sub(r"\d{2,}", "N", part) for part in parts]
    hidden = next((number for number, part in enumerate(parts) if part.startswith(".")), None)
    return "/".join(shown if hidden is None else (*shown[:hidden], f"{parts[hidden][:6]}..."))


def kill_table(results: list[Result]) -> str:
    """Return the kills by kind of stage and moment as a Markdown table."""
    kills = [kill for result in results for kill in result.facts["kills"]]
    counts = Counter((kill["stage"], kill["moment"]) for kill in kills)
    stages = sorted({stage for stage, _ in counts})
    rows = [[stage, *(counts[stage, moment] for moment in MOMENTS)] for stage in stages]
    sums = [sum(counts[stage, moment] for stage in stages) for moment in MOMENTS]
    return markdown(["killed in", *MOMENTS], [*rows, ["all", *sums]])


def main(
    count: Annotated[int, typer.Option(help="SIGKILLs.")] = 60,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first trial.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Time after which no trial begins.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of results and failed runs.")] = Path(
        "runs/soak/kills"
    ),
    quick: Annotated[bool, typer.Option(help="Kill each run once, and only short runs.")] = False,
    job: Annotated[str | None, typer.Option(help="Name of the only kind of run.")] = None,
) -> None:
    """Kill runs and compare what they come to."""
    warm_up()
    output = output.resolve()
    # What was prepared by another state of the code must not be taken for this one's.
    shutil.rmtree(output / "prepared", ignore_errors=True)
    bench = Bench(output)

    def watch(result: Result) -> None:
        if result.outcome not in CLEAN:
            typer.echo(f"trial {result.trial}: {result.outcome}: {result.group}: {result.detail}")

    results = run_trials(
        lambda number: kill_trial(bench, seed, number, quick=quick, name=job),
        Plan(seed=seed, count=count, first=first, minutes=minutes),
        output / "results.jsonl",
        watch,
    )
    kills = sum(result.weight for result in results)
    seconds = sum(result.seconds for result in results)
    typer.echo(f"\n{kills} kills in {len(results)} runs, {seconds:.0f} seconds, seed {seed}\n")
    typer.echo(outcome_table(results, OUTCOMES, rows="run") + "\n")
    typer.echo(kill_table(results) + "\n")
    typer.echo("\n".join(defects(results, CLEAN)))
    raise typer.Exit(any(result.outcome not in CLEAN for result in results))


if __name__ == "__main__":
    typer.run(main)
