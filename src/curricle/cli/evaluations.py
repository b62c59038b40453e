"""Command for the judgement of finished models: evaluate.

Design: as in `cli`, modules that need torch are imported when the command runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from curricle.errors import visible
from curricle.values import Plain

if TYPE_CHECKING:
    from curricle.reports.tables import Grid

WIDE = 140
"""Columns of tables that do not go to a terminal."""


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    *,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Change a field of the task; repeatable."),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Of a comparison: the student's strategy.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of a comparison: the student's seed; by default the first.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Metric; repeatable; those of the run by default.", show_default=False),
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Timed passes of each model.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Compare a finished student with its teacher: metrics, size and speed on this machine."""
    from curricle.runs.run_evaluation import evaluate_run

    evaluation = evaluate_run(
        run,
        changes=on,
        strategy=strategy,
        seed=seed,
        metrics=metric,
        repetitions=repetitions,
    )
    _show([evaluation.grid()], evaluation.notes, evaluation.plain(), as_json=as_json)


def _show(grids: "list[Grid]", notes: tuple[str, ...], facts: Plain, *, as_json: bool) -> None:
    """Print tables with notes, or JSON."""
    from curricle.reports.tables import to_rich

    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = Console(markup=False, emoji=False)
    console = console if console.is_terminal else Console(width=WIDE, markup=False, emoji=False)
    for grid in grids:
        console.print(to_rich(grid))
    for note in notes:
        console.print(visible(note), soft_wrap=True)
