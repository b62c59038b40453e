"""A comparison on one page.

`write_page` writes a single HTML file with everything inside, the plotting library too; see
`document`.

Design: the text is made of grids and figures that have their own modules; here they are only
arranged. The same records give the same bytes.
"""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
from plotly.io import to_html

from curricle.files import write_text
from curricle.records import ProbeRecord, StagePlan, Usage
from curricle.reports.curves import (
    MOST_SEEDS,
    MOST_STRATEGIES,
    averaged,
    has_bands,
    stage_starts,
    stages_without_loss,
)
from curricle.reports.directions import remedy
from curricle.reports.document import again, document, note, section, table
from curricle.reports.figures import (
    MOST_LABELS,
    learning_figure,
    loss_figure,
    metrics_figure,
)
from curricle.reports.formatting import is_share, short
from curricle.reports.headline import headline
from curricle.reports.names import capitalized
from curricle.reports.probe_tables import probe_grids, rank_notes
from curricle.reports.run_folders import Run, grouped
from curricle.reports.summary import COSTS, Summary
from curricle.reports.tables import COST_WORDS, Grid, plan_grid, seed_grid, summary_grid

CONFIG = {
    "displaylogo": False,
    "responsive": True,
    # Only what works without a network and fits a phone.
    "modeBarButtons": [["toImage", "resetScale2d"]],
}
READING = (
    "± is half of the 95 % interval of the mean over seeds (Student's t); there is none for one "
    "seed. Total FLOPs are those of the student and of the teacher's forward passes; training the "
    "teacher and evaluating are not counted. Seconds are comparable only on one machine, and other "
    "kernels (processor, torch version, threads) give other numbers from the same seeds."
)
CLIPPED = (
    "An interval that would leave 0 to 100 % is cut off there; with two or three seeds their "
    "values stand in its place."
)
MEASURABLE = (
    "A difference of two strategies counts as measurable if its 95 % interval does not contain "
    "zero: of the differences seed by seed if both have the same seeds, else Welch's. Costs are "
    "compared by their logarithms. Intervals are not corrected for the number of comparisons."
)
CURVES = (
    "Thick lines are means over seeds ({seeds}). Bands are 95 % intervals of the mean (Student's "
    "t; with two seeds 12.7 standard errors to each side), drawn as far as the panel "
    "reaches{clipped}; one seed has none. Thin lines are single seeds{left_out}."
)
GAP_NOTE = (
    "{ends} It is a share of final metrics, negative below the base, and blank where the teacher "
    "is not better than the base beyond its interval. Its own interval counts the noise of "
    "strategy and base (delta method), not that of the single teacher."
)
GOAL_NOTE = (
    "A cost is that of the first evaluation at or past the goal, and is given only if every seed "
    "reached it."
)
SOURCE = (
    "The goal is the mean final value of {method!r}, of which some seeds fall short by "
    "definition: its cost is that of its whole runs, unless every seed reached it earlier."
)
ENDED = (
    "{ended} of {runs} runs ended when they reached the goal: their final values are those at "
    "the goal, not their best; in mean curves a run counts with its last value after its end; "
    "the tables of stages show planned steps, with the steps taken below."
)
STAGES = (
    "Tables show planned steps. A run that ends at its goal takes fewer; the cost also includes "
    "examples read before the first step, for example for the teacher's statistics."
)
LOSSES = (
    "Losses of different stages and strategies have different objectives and are not comparable; "
    "the panels show whether the loss still fell at the end of a stage. Bands are 95 % intervals "
    "of the mean over seeds, drawn no further than the lowest and the highest loss of any seed."
)
CROWD = (
    "Lines are means over seeds ({seeds}). With more than {most} strategies, intervals and single "
    "seeds are left out of the figures, where they would hide each other; the tables have them."
)
OTHERS = "Lines, bands and colors as in the learning curves."
MOST_METRICS = 8
"""Other metrics that are drawn."""


def write_page(
    runs: Sequence[Run],
    summary: Summary,
    path: Path,
    *,
    title: str,
    command: str = "",
    probes: Sequence[ProbeRecord] = (),
) -> None:
    """Write a comparison as one HTML file.

    Args:
        runs: Runs as `load_runs` gives them.
        summary: Their summary, from `summarize`.
        path: File to write.
        title: Heading of the page.
        command: How to make these runs again, to be shown as it is.
        probes: Measurements of `curricle probe` on these runs.
    """
    write_text(path, page_text(runs, summary, title=title, command=command, probes=probes))


def page_text(
    runs: Sequence[Run],
    summary: Summary,
    *,
    title: str,
    command: str = "",
    probes: Sequence[ProbeRecord] = (),
) -> str:
    """Return the page as text.

    Args:
        runs: Runs as `load_runs` gives them.
        summary: Their summary.
        title: Heading of the page.
        command: How to make these runs again; left out if empty.
        probes: Measurements of probes; without any there is no section of theirs.
    """
    log_x = summary.is_wide
    curves = learning_figure(runs, metric=summary.metric, goal=summary.goal, log_x=log_x)
    losses = loss_figure(runs, log_x=log_x)
    sections = [
        _header(summary, title),
        _missing(summary),
        _unfinished(runs),
        section("Result", table(summary_grid(summary)), *map(note, _reading(runs, summary))),
        section(
            "Learning curves",
            _toolbar(log_x=log_x),
            _figure(curves, "learning-curves"),
            note(_explanation(runs, summary.metric)),
        ),
        _other_metrics(runs, summary.metric, log_x=log_x),
        section("Training loss", note(LOSSES), _figure(losses, "losses"), *_stage_notes(runs)),
        _probes(probes),
        section("Stages", note(STAGES), *_plans(runs)),
        section("Runs", table(seed_grid(summary))),
        section("Made with", table(_circumstances(runs)), again(command)),
    ]
    return document(title, sections, plots=True)


def _header(summary: Summary, title: str) -> str:
    facts = [summary.task]
    if summary.goal is not None:
        facts.append(f"goal: {summary.goal_words}")
    if summary.budget:
        facts.append(f"budget: {_budget(summary.budget)}")
    facts_line = " · ".join(html.escape(fact) for fact in facts)
    line = headline(summary)
    return (
        f'<header><h1>{html.escape(title)}</h1><p class="facts">{facts_line}</p>'
        f'<p class="headline">{html.escape(capitalized(line, summary.methods))}</p></header>'
    )


def _budget(budget: Mapping[str, object]) -> str:
    """Return a budget in words, a number together with its unit."""
    number, unit = budget.get("number"), str(budget.get("unit"))
    if set(budget) == {"number", "unit"} and isinstance(number, (int, float)):
        return f"{short(number)} {unit.replace('flops', 'FLOPs')}"
    return ", ".join(f"{name.replace('_', ' ')} {amount}" for name, amount in budget.items())


def _reading(runs: Sequence[Run], summary: Summary) -> list[str]:
    """Return the notes needed to read the table."""
    notes = [READING] if summary.goal is None else [READING, GOAL_NOTE]
    if summary.gap_note:
        notes.append(GAP_NOTE.format(ends=summary.gap_note))
    if is_share(summary.metric) and len(runs) > 1:
        notes.append(CLIPPED)
    if len(summary.methods) > 1:
        notes.append(MEASURABLE)
        if summary.better is None:
            notes.append(f"No strategy is called best: {remedy(summary.metric)}.")
    if summary.goal_of is not None:
        notes.append(SOURCE.format(method=summary.goal_of))
    students = [run for run in runs if not run.is_teacher]
    ended = sum(run.has_ended_early for run in students)
    if ended:
        notes.append(ENDED.format(ended=ended, runs=len(students)))
    return notes


def _missing(summary: Summary) -> str:
    """Return a warning that names the missing runs, or nothing."""
    if not summary.gap:
        return ""
    sentence = html.escape(summary.gap)
    return f'<aside class="warning"><strong>Missing runs.</strong> {sentence}</aside>'


def _unfinished(runs: Sequence[Run]) -> str:
    """Return a warning that names the incomplete runs, or nothing."""
    names = [
        f"{run.method}, seed {run.seed}, stopped at step {run.usage.steps:,}"
        for run in runs
        if not run.is_complete
    ]
    if not names:
        return ""
    items = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    return (
        '<aside class="warning"><strong>Incomplete runs.</strong> They count against reaching the '
        "goal and are left out of final means, and out of mean curves where a strategy has a "
        f"complete run.<ul>{items}</ul></aside>"
    )


def _toolbar(*, log_x: bool) -> str:
    """Return the buttons that switch all figures of the page."""
    axes = "".join(
        f'<button type="button" data-axis="{name}" aria-pressed="{str(name == COSTS[0]).lower()}">'
        f"{COST_WORDS[name]}</button>"
        for name in COSTS
    )
    scale = "log" if log_x else "linear"
    scales = "".join(
        f'<button type="button" data-scale="{name}" aria-pressed="{str(name == scale).lower()}">'
        f"{name}</button>"
        for name in ("linear", "log")
    )
    return (
        f'<div class="toolbar"><span role="group" aria-label="horizontal axis">{axes}</span>'
        f'<span role="group" aria-label="scale">{scales}</span></div>'
    )


def _figure(figure: go.Figure, name: str) -> str:
    return str(
        to_html(
            figure,
            config=CONFIG,
            include_plotlyjs=False,
            full_html=False,
            div_id=name,
            default_height=f"{figure.layout.height}px",
        )
    )


def _explanation(runs: Sequence[Run], metric: str) -> str:
    """Return the meaning of lines and bands of the learning curves."""
    counts = {method: len(averaged(group)) for method, group in grouped(runs).items()}
    ends = sorted({min(counts.values()), max(counts.values())})
    seeds = (
        ", ".join(f"{method} {count}" for method, count in counts.items())
        if has_bands(runs)
        else f"{' to '.join(map(str, ends))} a strategy"
    )
    if not has_bands(runs):
        return CROWD.format(seeds=seeds, most=MOST_STRATEGIES)
    return CURVES.format(
        seeds=seeds,
        clipped=" and no further than 0 to 100 %" if is_share(metric) else "",
        left_out="" if ends[-1] <= MOST_SEEDS else f", of strategies with up to {MOST_SEEDS}",
    )


def _other_metrics(runs: Sequence[Run], judged: str, *, log_x: bool) -> str:
    """Return the section of all metrics but the one by which runs are judged."""
    students = [run for run in runs if not run.is_teacher]
    names = dict.fromkeys(
        name for run in students for measurement in run.measurements for name in measurement.metrics
    )
    names_of_others = [name for name in names if name != judged]
    if not names_of_others:
        return ""
    plotted, unplotted = names_of_others[:MOST_METRICS], names_of_others[MOST_METRICS:]
    figure = _figure(metrics_figure(runs, plotted, log_x=log_x), "metrics")
    left_out = [note(f"Not drawn: {', '.join(unplotted)}.")] if unplotted else []
    return section("Other metrics", figure, note(OTHERS), *left_out)


def _probes(records: Sequence[ProbeRecord]) -> str:
    """Return the section of probes: a table each, and the taps at which a rank has collapsed."""
    if not records:
        return ""
    tables = [f"<h3>{html.escape(grid.title)}</h3>{table(grid)}" for grid in probe_grids(records)]
    return section("Probes", *tables, *map(note, rank_notes(records)))


def _stage_notes(runs: Sequence[Run]) -> list[str]:
    """Return the stages behind the numbers in the panels of losses, and those without a loss."""
    notes = []
    for method, group in grouped(runs).items():
        inside = averaged(group)
        names = [name for name, _ in stage_starts(inside)]
        if 1 < len(names) <= MOST_LABELS:
            listed = ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
            notes.append(note(f"Stages of {method!r}: {listed}."))
        if missing := stages_without_loss(inside):
            notes.append(
                note(
                    f"Strategy {method!r} has no recorded loss in "
                    f"{', '.join(map(repr, missing))}: shorter than the interval between records "
                    f"('log_every')."
                )
            )
    return notes


def _plans(runs: Sequence[Run]) -> list[str]:
    """Return the stages of each strategy.

    Runs with equal plans have one table, independent of their names; costs may differ, since the
    first batch of a seed may be longer than that of another. Runs of a strategy that planned
    differently stand apart.
    """
    plans: dict[tuple[StagePlan, ...], list[Run]] = {}
    for run in runs:
        if not run.is_teacher:
            plans.setdefault(tuple(map(_without_costs, run.opening.stages)), []).append(run)
    counts = Counter(
        method for members in plans.values() for method in {run.method for run in members}
    )
    sections: list[str] = []
    for members in plans.values():
        names = [_with_seeds(method, group, counts) for method, group in grouped(members).items()]
        sections.append(f"<h3>{html.escape(', '.join(names))}</h3>")
        sections.append(table(plan_grid(members[0].opening.stages, outcomes=_outcomes(members))))
        if any(run.opening.stages != members[0].opening.stages for run in members):
            sections.append(
                note(f"FLOPs and memory are those of seed {members[0].seed}; others differ.")
            )
        sections.append(note(_planned_and_done(members)))
    all_names = {name for run in runs for name in (run.method, *_stage_names(run))}
    return sections + [
        note(f"{capitalized(text, all_names).rstrip('.')}.") for text in _notes(runs)
    ]


def _outcomes(runs: Sequence[Run]) -> dict[str, tuple[str, str]] | None:
    """Return course and reason for the end of each stage; None if all lengths were fixed."""
    outcomes = [run.outcomes for run in runs]
    reasons = {outcome.why for stages in outcomes for outcome in stages.values()}
    has_rule = any(stage.until for run in runs for stage in run.opening.stages)
    if not has_rule and "goal" not in reasons:
        return None
    found: dict[str, tuple[str, str]] = {}
    for name in _stage_names(runs[0]):
        stages = [run_stages[name] for run_stages in outcomes if name in run_stages]
        done = [stage.done for stage in stages]
        ends = dict.fromkeys(f"{end:,}" for end in (min(done, default=0), max(done, default=0)))
        counts = Counter(stage.why or "not ended" for stage in stages)
        words = [f"{why} {count}" if len(counts) > 1 else why for why, count in counts.items()]
        found[name] = " to ".join(ends), ", ".join(words) or "not begun"
    return found


def _stage_names(run: Run) -> list[str]:
    return [stage.name for stage in run.opening.stages]


def _without_costs(stage: StagePlan) -> StagePlan:
    return replace(stage, student_flops=0, teacher_flops=0, memory_bytes=0)


def _with_seeds(method: str, runs: Sequence[Run], counts: Mapping[str, int]) -> str:
    """Return a strategy, with its seeds if it has several plans."""
    seeds = ", ".join(str(run.seed) for run in runs)
    return method if counts[method] == 1 else f"{method} (seed {seeds})"


def _notes(runs: Sequence[Run]) -> dict[str, None]:
    """Return the decisions made at binding, each sentence once."""
    return dict.fromkeys(text for run in runs if not run.is_teacher for text in run.opening.notes)


def _planned_and_done(runs: Sequence[Run]) -> str:
    """Return planned and actual cost of runs in words."""
    planned = [
        Usage(
            steps=sum(stage.steps for stage in run.opening.stages),
            student_flops=sum(stage.steps * stage.student_flops for stage in run.opening.stages),
            teacher_flops=sum(stage.steps * stage.teacher_flops for stage in run.opening.stages),
        )
        for run in runs
    ]
    done = [run.usage for run in runs]
    return f"Planned for a run: {_amounts(planned)}. Done: {_amounts(done)}."


def _amounts(usages: Sequence[Usage]) -> str:
    """Return steps and FLOPs in words, from the least to the most where they differ."""
    amounts = []
    for name in ("steps", "student_flops", "teacher_flops"):
        numbers = [getattr(usage, name) for usage in usages]
        ends = dict.fromkeys(short(end) for end in (min(numbers), max(numbers)))
        amounts.append(f"{' to '.join(ends)} {name.replace('_flops', ' FLOPs')}")
    return ", ".join(amounts)


def _circumstances(runs: Sequence[Run]) -> Grid:
    """Return under which versions and on which device the runs were made."""
    values: dict[str, dict[str, dict[str, None]]] = {}
    for run in runs:
        facts = run.opening.versions | {"device": run.opening.device}
        if not run.is_teacher:
            facts |= {
                "student parameters": f"{run.opening.student_parameters:,}",
                "teacher parameters": f"{run.opening.teacher_parameters:,}",
                "batch size": f"{run.opening.batch_size:,}",
            }
        for name, fact in facts.items():
            values.setdefault(name, {}).setdefault(fact, {})[run.method] = None
    return Grid(
        title="Made with",
        columns=("what", "value"),
        rows=tuple((name, _by_strategy(facts)) for name, facts in values.items()),
        numeric=(False, False),
    )


def _by_strategy(facts: Mapping[str, Mapping[str, None]]) -> str:
    """Return the values of a fact, with the strategies of each if these differ."""
    if len(facts) == 1 or len({tuple(methods) for methods in facts.values()}) == 1:
        return " / ".join(facts)
    return " / ".join(f"{fact} ({', '.join(methods)})" for fact, methods in facts.items())
