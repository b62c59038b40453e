"""Warnings about students that end at chance, or below training without a teacher."""

from pathlib import Path

import pytest

from curricle.reports.run_folders import load_runs
from curricle.reports.summary import summarize
from tests.unit.reports.conftest import WriteRun

STRATEGY, LABELS = "extraction", "from_labels"


def warnings(
    write_run: WriteRun,
    folder: Path,
    finals: dict[str, list[float]],
    *,
    metric: str = "accuracy",
    chance: float | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the notes of each strategy, whose seeds end at given values."""
    for method, numbers in finals.items():
        for seed, number in enumerate(numbers):
            write_run(
                folder / "students" / method / f"seed-{seed}",
                {10: number},
                method=method,
                seed=seed,
                metric=metric,
                teacher_parameters=0 if method == LABELS else 1024,
                chance=chance,
            )
    methods = summarize(load_runs([folder])).methods
    return {name: method.notes for name, method in methods.items()}


def test_a_strategy_below_training_without_a_teacher_is_named_with_both_numbers(
    tmp_path: Path, write_run: WriteRun
) -> None:
    told = warnings(write_run, tmp_path, {STRATEGY: [0.5, 0.51, 0.52], LABELS: [0.6, 0.61, 0.62]})
    assert told[LABELS] == ()
    (sentence,) = told[STRATEGY]
    assert sentence.startswith(
        "ends below 'from_labels', which has no teacher: accuracy 51.00 ± 2.48 % against 61.00"
    )


@pytest.mark.parametrize(
    ("strategy", "labels"),
    [
        ([0.6, 0.61, 0.62], [0.5, 0.51, 0.52]),  # above
        ([0.5, 0.7, 0.61], [0.6, 0.5, 0.75]),  # below on average, inside the noise
        ([0.6, 0.7], [0.6, 0.7]),  # equal
    ],
)
def test_a_strategy_that_is_not_measurably_below_gets_no_warning(
    tmp_path: Path, write_run: WriteRun, strategy: list[float], labels: list[float]
) -> None:
    told = warnings(write_run, tmp_path, {STRATEGY: strategy, LABELS: labels})
    assert told == {STRATEGY: (), LABELS: ()}


def test_of_a_single_seed_the_difference_itself_counts_and_is_told_as_such(
    tmp_path: Path, write_run: WriteRun
) -> None:
    told = warnings(write_run, tmp_path, {STRATEGY: [0.5], LABELS: [0.6]})
    assert told[STRATEGY] == (
        (
            "ends below 'from_labels', which has no teacher: accuracy 50.00 % against 60.00 % "
            "(one seed)"
        ),
    )


@pytest.mark.parametrize(("metric", "is_warned"), [("perplexity", True), ("bleu", False)])
def test_the_direction_of_the_metric_decides_what_is_below(
    tmp_path: Path, write_run: WriteRun, metric: str, is_warned: bool
) -> None:
    finals = {STRATEGY: [30.0, 31.0, 32.0], LABELS: [20.0, 21.0, 22.0]}
    told = warnings(write_run, tmp_path, finals, metric=metric)
    assert bool(told[STRATEGY]) == is_warned


def test_a_metric_without_a_direction_warns_of_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    finals = {STRATEGY: [30.0, 31.0], LABELS: [20.0, 21.0]}
    assert warnings(write_run, tmp_path, finals, metric="quux") == {STRATEGY: (), LABELS: ()}


def test_without_a_strategy_without_teacher_nothing_is_below(
    tmp_path: Path, write_run: WriteRun
) -> None:
    told = warnings(write_run, tmp_path, {STRATEGY: [0.5, 0.51], "one_shot": [0.6, 0.61]})
    assert told == {STRATEGY: (), "one_shot": ()}


def test_students_at_chance_are_counted(tmp_path: Path, write_run: WriteRun) -> None:
    told = warnings(write_run, tmp_path, {STRATEGY: [0.51, 0.49, 0.9]}, chance=0.52)
    sentence = "their accuracy is not measurably above that of the most frequent label"
    assert told[STRATEGY] == (f"2 of 3 students end at chance or below: {sentence}",)


def test_failed_steps_are_counted_over_the_seeds_with_the_place_of_their_batches(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, (skipped, roll_backs) in enumerate([(0, 0), (3, 0), (1, 2)]):
        folder = tmp_path / "students" / STRATEGY / f"seed-{seed}"
        write_run(
            folder, {10: 0.9 + 0.01 * seed}, seed=seed, skipped_steps=skipped, roll_backs=roll_backs
        )
    (strategy,) = summarize(load_runs([tmp_path])).methods.values()
    assert strategy.notes == (
        (
            "failed steps in 2 of 3 students: 4 skipped, 2 rolled back to a checkpoint; their "
            "batches are in 'failed-steps' of the run folders"
        ),
    )
