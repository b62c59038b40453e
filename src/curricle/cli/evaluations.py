"""Command for the judgment of finished models: evaluate.

Design: as in `cli`, modules that need torch are imported when the command runs.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from curricle.errors import SpecError, visible
from curricle.values import Plain

if TYPE_CHECKING:
    from curricle.reports.tables import Grid
    from curricle.runs.fine_tuning import FineTuned, FineTuning
    from curricle.runs.scoring import Scoring

OWNERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "--on": ("",),
        "--metric": ("",),
        "--repetitions": ("",),
        "--limit": ("--blimp", "--lm-eval"),
        "--test": ("--fine-tune",),
        "--seeds": ("--fine-tune",),
        "--epochs": ("--fine-tune",),
        "--learning-rate": ("--fine-tune",),
        "--all-students": ("--blimp", "--fine-tune"),
    }
)
"""Evaluations that read an option; the one without a name measures the task of the run."""
WIDE = 140
"""Columns of tables that do not go to a terminal."""


def evaluate(  # noqa: PLR0913 - each option is one of the command
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
        typer.Option(help="Metric beside those of the run; repeatable.", show_default=False),
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="Timed passes of each model; 20 by default.")
    ] = None,
    blimp: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Score pairs of sentences instead: JSON lines as BLiMP, or their folder.",
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS", help="Run tasks of the package lm_eval instead: names or YAML files."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "--pairs",
            min=1,
            help="With --blimp: pairs of each kind, the first ones. With --lm-eval: examples of "
            "each task.",
        ),
    ] = None,
    fine_tune: Annotated[
        Path | None,
        typer.Option(
            metavar="TRAIN",
            help="Fine-tune on texts with labels instead: a table, or a folder with train and "
            "test.",
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="With --fine-tune: texts to be judged by, a table.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With --fine-tune: number of seeds; 3 by default.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="With --fine-tune: passes over TRAIN; 3 by default.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="With --fine-tune: peak of the learning rate; 0.0001 by default."),
    ] = None,
    all_students: Annotated[
        bool,
        typer.Option(
            "--all-students",
            help="With --blimp or --fine-tune: score every finished model of a comparison or a "
            "recipe, and keep the scores with them for reports; kept ones are not measured again.",
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --all-students: models that are scored at once; 1 by default."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Compare a finished student with its teacher: metrics, size and speed on this machine.

    With --blimp, --lm-eval or --fine-tune RUN may also be a Hugging Face folder.
    """
    from curricle.runs.fine_tuning import FineTuning
    from curricle.runs.run_evaluation import evaluate_run, fine_tune_run, harness_run, score_run

    modes = {"--blimp": blimp, "--lm-eval": lm_eval, "--fine-tune": fine_tune}
    options = {
        "--on": on,
        "--metric": metric,
        "--repetitions": repetitions,
        "--limit": limit,
        "--test": test,
        "--seeds": seeds,
        "--epochs": epochs,
        "--learning-rate": learning_rate,
        "--all-students": all_students or None,
    }
    _check_options(*(_given(arguments) for arguments in (modes, options)))
    selection = {"--strategy": strategy, "--seed": seed}
    _check_models(selection if all_students else {"--jobs": jobs}, all_students=all_students)
    tuning = FineTuning(
        epochs=epochs or 3, learning_rate=1e-4 if learning_rate is None else learning_rate
    )
    texts = None if fine_tune is None else _texts(fine_tune, test)
    notes: tuple[str, ...]
    if all_students:
        scoring = _scoring(blimp or fine_tune, texts, limit=limit, seeds=seeds or 3, tuning=tuning)
        _score_all(run, scoring, jobs=jobs or 1, as_json=as_json)
    elif blimp is not None:
        with _progress("scoring pairs") as watch:
            accuracy = score_run(run, blimp, limit=limit, strategy=strategy, seed=seed, watch=watch)
        notes = (f"{accuracy.pairs:,} pairs, {accuracy.ties} ties, which count as wrong",)
        _show(accuracy.grid(blimp.name), notes, accuracy.plain(), as_json=as_json)
    elif lm_eval is not None:
        scores = harness_run(run, _tasks(lm_eval), limit=limit, strategy=strategy, seed=seed)
        cut = "" if limit is None else f", of each task the first {limit:,} examples"
        notes = (f"lm_eval {scores.version}{cut}",)
        _show(scores.grid(), notes, scores.plain(), as_json=as_json)
    elif fine_tune is not None and texts is not None:
        tuned = fine_tune_run(
            run, *texts, strategy=strategy, seed=seed, seeds=range(seeds or 3), tuning=tuning
        )
        _show(tuned.grid(fine_tune.name), _notes(tuned), tuned.plain(), as_json=as_json)
    else:
        evaluation = evaluate_run(
            run,
            changes=on,
            strategy=strategy,
            seed=seed,
            metrics=metric,
            repetitions=repetitions or 20,
        )
        _show(evaluation.grid(), evaluation.notes, evaluation.plain(), as_json=as_json)


def _notes(tuned: "FineTuned") -> tuple[str, ...]:
    """Return the sizes of a fine-tuning in words."""
    counts = f"{tuned.train_texts:,} training texts and {tuned.test_texts:,} test texts"
    return (
        f"{counts} of {len(tuned.classes)} classes; {tuned.steps:,} steps a seed",
        f"new weights: {', '.join(tuned.new_weights) or 'none'}",
    )


def _texts(train: Path, test: Path | None) -> tuple[Path, Path]:
    """Return the files of training and test texts.

    Raises:
        SpecError: If the first is no folder and the second is not given.
    """
    from curricle.runs.fine_tuning import split_files

    if test is not None:
        return train, test
    if train.is_dir():
        return split_files(train)
    raise SpecError("'--fine-tune' must come with '--test', the texts to be judged by")


def _scoring(
    data: Path | None,
    texts: tuple[Path, Path] | None,
    *,
    limit: int | None,
    seeds: int,
    tuning: "FineTuning",
) -> "Scoring":
    """Return the evaluation of all models: fine-tuning if there are texts, else pairs."""
    from curricle.runs.scoring import PairScoring, TextScoring

    assert data is not None  # noqa: S101 - options were checked
    if texts is None:
        return PairScoring(pairs=data, limit=limit)
    train, test = texts
    name = data.name.partition(".")[0]
    return TextScoring(name=name, train=train, test=test, seeds=tuple(range(seeds)), tuning=tuning)


def _score_all(run: Path, scoring: "Scoring", *, jobs: int, as_json: bool) -> None:
    """Score all models of a folder and print the means over seeds."""
    from curricle.runs.scoring import score_models, scores_grid

    with _progress("scoring models") as watch:
        scores = score_models(run, scoring, jobs=jobs, watch=watch)
    facts = {
        str(folder): {"name": score.name, "accuracy": score.accuracy} for folder, score in scores
    }
    notes = (f"kept beside the records of {len(scores)} models",)
    _show(scores_grid(scores), notes, facts, as_json=as_json)


def _check_models(options: Mapping[str, object], *, all_students: bool) -> None:
    """Check that options suit the number of models.

    Args:
        options: Options that must not be given.
        all_students: Whether all models are scored.

    Raises:
        SpecError: If one is given.
    """
    for option in _given(options):
        rule = "be left out with" if all_students else "come with"
        raise SpecError(f"{option!r} must {rule} '--all-students', which scores every model")


def _tasks(names: str) -> list[str]:
    """Return the tasks in a list with commas.

    Raises:
        SpecError: If it is empty.
    """
    tasks = [task.strip() for task in names.split(",") if task.strip()]
    if not tasks:
        raise SpecError(f"'--lm-eval' must name a task; got {names!r}")
    return tasks


def _given(arguments: Mapping[str, object]) -> list[str]:
    """Return the names of options that are given."""
    return [name for name, argument in arguments.items() if argument is not None]


def _check_options(modes: Sequence[str], options: Sequence[str]) -> None:
    """Check that every option has an effect on the evaluation.

    Args:
        modes: Given options that choose an evaluation.
        options: Other given options.

    Raises:
        SpecError: If several evaluations are chosen, or an option belongs to another one.
    """
    if len(modes) > 1:
        raise SpecError(f"{modes[1]!r} must be left out with {modes[0]!r}; run them one by one")
    mode = modes[0] if modes else ""
    for option in options:
        owners = OWNERS[option]
        if mode and mode not in owners:
            raise SpecError(f"{option!r} must be left out with {mode!r}, which does not read it")
        if mode not in owners:
            raise SpecError(f"{option!r} must come with {' or '.join(map(repr, owners))}")


@contextmanager
def _progress(words: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error.

    Yields:
        A function of the number that is done and of all.
    """
    console = Console(stderr=True, markup=False, emoji=False)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(words)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show(grid: "Grid", notes: tuple[str, ...], facts: Plain, *, as_json: bool) -> None:
    """Print a table with notes, or JSON."""
    from curricle.reports.tables import to_rich

    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = Console(markup=False, emoji=False)
    console = console if console.is_terminal else Console(width=WIDE, markup=False, emoji=False)
    console.print(to_rich(grid))
    for note in notes:
        console.print(visible(note), soft_wrap=True)
