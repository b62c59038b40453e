from collections.abc import Mapping
from pathlib import Path

import pytest

from curricle.reports.headline import headline
from curricle.reports.replicates import replicates
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import Summary, summarize
from tests.unit.reports.conftest import WriteRun

EQUAL = {10: 0.5, 40: 0.92}


@pytest.fixture
def summary(tmp_path: Path, write_run: WriteRun) -> Summary:
    """Return a comparison of a strategy whose three seeds are one run with one of two seeds."""
    for seed in range(3):
        write_run(tmp_path / f"students/same/seed-{seed}", EQUAL, method="same", seed=seed)
    for seed, measured in enumerate([{10: 0.5, 40: 0.6}, {10: 0.5, 40: 0.61}]):
        write_run(tmp_path / f"students/drawn/seed-{seed}", measured, method="drawn", seed=seed)
    return summarize(load_runs([tmp_path]), goal=0.5, better="higher")


def test_seeds_that_repeat_one_run_have_no_interval(summary: Summary) -> None:
    same = summary.methods["same"]
    assert (same.final.mean, same.final.ci95, same.finals) == (0.92, None, {0: 0.92})
    assert same.to_goal_ci95.examples is None
    assert (same.to_goal.examples, same.reached, len(same.seeds)) == (100, "3/3", 3)


def test_a_note_says_that_the_seeds_are_no_replicates(summary: Summary) -> None:
    (note,) = summary.notes
    assert note == (
        "same: all 3 seeds recorded the same losses and metrics and are no replicates, since "
        "nothing in the run depends on its seed; they count as one, without an interval"
    )


def test_a_difference_from_seeds_that_repeat_one_run_is_not_called_measurable(
    summary: Summary,
) -> None:
    line = headline(summary)
    assert "measurable" not in line
    assert line.endswith("those of same repeat one run and measure no noise.")


@pytest.mark.parametrize("second", [{10: 0.51, 40: 0.92}, {10: 0.5, 80: 0.92}])
def test_seeds_that_differ_somewhere_are_replicates(
    second: Mapping[int, float], tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, measured in enumerate([EQUAL, second]):
        write_run(tmp_path / f"students/drawn/seed-{seed}", measured, seed=seed)
    runs = load_runs([tmp_path])
    assert replicates(runs) == runs


def test_an_unfinished_seed_proves_no_repetition(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/drawn/seed-0", EQUAL)
    write_run(tmp_path / "students/drawn/seed-1", EQUAL, seed=1, finished=False)
    runs = load_runs([tmp_path])
    assert replicates(runs) == runs
