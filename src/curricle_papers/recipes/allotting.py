"""Choice of the seeds and panels of a recipe that fit into a limit of time.

A pilot times the teacher and every strategy of each panel with one seed (`curricle.runs.pilot`).
The rule knows costs alone and no result: all panels get the same number of leading seeds, as many
as fit; if one seed each does not fit, panels are left out, the last of the figure first. A seed has
runs of all strategies or of none.

Units: seconds.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from curricle.errors import SpecError
from curricle.figure_points import Allotment, read_recipe, write_recipe
from curricle.runs.pilot import student_seconds, teacher_seconds
from curricle.runs.spec import SEEDS, RunSpec
from curricle.runs.train import first_runs
from curricle_papers.recipes.recipe import FirstPass, Recipe, Scale
from curricle_papers.recipes.running import teacher_key

UNITS = {"s": 1, "m": 60, "h": 3600}
MARGIN = 0.9
"""Share of the limit that estimates may fill; the rest is for start-up, checkpoints and reports."""


RULE = (
    "Seeds are dropped before panels: the last seeds, as many of each panel, then the last panels, "
    "whatever the results."
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PanelTimes:
    """Times of a panel."""

    teacher: float
    """Time of its teacher."""
    strategies: Mapping[str, float]
    """Time of one student of each strategy."""


def seconds(text: str) -> float:
    """Return the seconds of a time such as `90s`, `8m` or `1.5h`.

    Raises:
        SpecError: If it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise SpecError(f"'--within' must be a time such as 90s, 8m or 1.5h; got {text!r}")
    return float(match[1]) * UNITS[match[2]]


def timed(spec: RunSpec) -> PanelTimes:
    """Return the times of a panel by a pilot.

    Args:
        spec: Spec of the panel.
    """
    return PanelTimes(
        teacher=teacher_seconds(spec),
        strategies={run.name: student_seconds(spec, run) for run in first_runs(spec)},
    )


def allotment(
    specs: Mapping[str, RunSpec],
    times: Mapping[str, PanelTimes],
    *,
    limit: float,
    spent: float = 0.0,
    parallel: int = 1,
    passes: Mapping[str, FirstPass] | None = None,
) -> Allotment:
    """Return the seeds and panels that fit.

    Args:
        specs: Panels in the order of the figure.
        times: Their times.
        limit: For everything.
        spent: Time of the pilot.
        parallel: Runs at once, at the speed of the pilot each.
        passes: First passes over rates, of the panels that have one.

    Raises:
        SpecError: If the first panel with one seed does not fit.
    """
    usable = (limit - spent) * MARGIN
    names = list(specs)
    for number in range(len(names), 0, -1):
        leading = {name: specs[name] for name in names[:number]}
        largest = max(len(spec.seeds or SEEDS) for spec in leading.values())
        for count in range(largest, 0, -1):
            seeds = {name: min(count, len(spec.seeds or SEEDS)) for name, spec in leading.items()}
            estimate = _total(leading, times, seeds, passes or {}, parallel=parallel)
            if estimate <= usable:
                return Allotment(
                    limit=limit,
                    estimate=estimate,
                    seeds=dict.fromkeys(names, 0) | seeds,
                    note=(
                        f"Within {limit:,.0f} s, the pilot ({spent:,.0f} s) estimates "
                        f"{estimate:,.0f} s for {_choice(specs, seeds)}. {RULE}"
                    ),
                )
    raise SpecError(
        f"'--within' must leave time for the first panel with one seed; the pilot says "
        f"{estimate:,.0f} s beside its own {spent:,.0f} s; got {limit:,.0f} s"
    )


def _total(
    specs: Mapping[str, RunSpec],
    times: Mapping[str, PanelTimes],
    seeds: Mapping[str, int],
    passes: Mapping[str, FirstPass],
    *,
    parallel: int,
) -> float:
    """Return the time of all runs; equal teachers are trained once.

    Students of a panel start after its teacher, which is one run: a panel takes the time of the
    teacher, then that of its students on all processors, the longest student at least.
    """
    teachers = {teacher_key(spec): times[name].teacher for name, spec in specs.items()}
    students = 0.0
    for name in specs:
        costs = times[name].strategies.values()
        # A first pass has a run with each rate, and ends before the panel's own runs start.
        rates = len(passes[name].rates) if name in passes else 0
        students += sum(
            max(number * sum(costs) / parallel, max(costs, default=0.0))
            for number in (rates, seeds[name])
            if number
        )
    return sum(teachers.values()) + students


def _choice(specs: Mapping[str, RunSpec], seeds: Mapping[str, int]) -> str:
    """Return seeds and panels in words."""
    cuts = [
        f"{name} with {seeds[name]} of {len(spec.seeds or SEEDS)} seeds"
        for name, spec in specs.items()
        if name in seeds and seeds[name] < len(spec.seeds or SEEDS)
    ]
    left_out_panels = [name for name in specs if name not in seeds]
    clauses = [*cuts, *([f"without {', '.join(left_out_panels)}"] if left_out_panels else [])]
    return "; ".join(clauses) or "all seeds and panels"


def allotted(  # noqa: PLR0913 - the call of the recipe, and a clock
    recipe: Recipe,
    scale: Scale,
    folder: Path,
    specs: Mapping[str, RunSpec],
    *,
    limit: float,
    jobs: int,
    pilot: Callable[[RunSpec], PanelTimes] = timed,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, RunSpec], str]:
    """Return the panels and seeds that fit, and the sentence about them; records both.

    A second call takes those of the first, without a pilot.

    Args:
        recipe: The recipe.
        scale: At which size.
        folder: The recipe's folder, claimed.
        specs: Panels in the order of the figure.
        limit: Seconds for everything.
        jobs: Processes at once.
        pilot: Times a panel.
        clock: Time in seconds.

    Raises:
        SpecError: If there is nothing to choose from, or other panels than in the first call.
    """
    if not specs:
        raise SpecError(f"'--within' must be left out for {recipe.name!r}, which has no panels")
    record = read_recipe(folder)
    decision = record.allotment
    if decision is None:
        started = clock()
        times = {name: pilot(_alone(spec, jobs)) for name, spec in specs.items()}
        decision = allotment(
            specs,
            times,
            limit=limit,
            spent=clock() - started,
            parallel=_parallel(specs, jobs),
            passes=_passes(recipe, scale),
        )
    unknown = [name for name in specs if name not in decision.seeds]
    if unknown:
        raise SpecError(
            f"'--panels' must name those of the first call with '--within', among which the time "
            f"is divided; got {unknown[0]!r}; '--output-dir' makes another folder"
        )
    left_out_panels = {
        name: f"beyond the {limit:,.0f} s of '--within'"
        for name in specs
        if not decision.seeds[name]
    }
    panels = tuple(panel for panel in record.panels if panel.name not in left_out_panels)
    left_out = record.left_out | left_out_panels
    write_recipe(folder, replace(record, allotment=decision, panels=panels, left_out=left_out))
    specs_in_time = {
        name: replace(spec, seeds=(spec.seeds or SEEDS)[: decision.seeds[name]])
        for name, spec in specs.items()
        if name not in left_out_panels
    }
    return specs_in_time, decision.note


def _alone(spec: RunSpec, jobs: int) -> RunSpec:
    """Return a spec as a run beside others has it, with one thread."""
    return replace(spec, engine=replace(spec.engine, threads=1)) if jobs > 1 else spec


def _passes(recipe: Recipe, scale: Scale) -> dict[str, FirstPass]:
    comparisons = recipe.panels(scale).items()
    return {name: item.first_pass for name, item in comparisons if item.first_pass is not None}


def _parallel(specs: Mapping[str, RunSpec], jobs: int) -> int:
    """Return how many runs have a processor of their own; runs on one GPU share it."""
    on_gpu = any(spec.engine.placement.kind == "cuda" for spec in specs.values())
    return 1 if on_gpu else min(jobs, os.cpu_count() or 1)
