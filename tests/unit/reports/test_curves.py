from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.reports.curves import (
    MOST_POINTS,
    averaged,
    colors,
    learning_curve,
    loss_curve,
    stage_names,
    stage_starts,
    value_range,
)
from curricle.reports.runs import Run, load_runs

WriteRun = Callable[..., Path]


@pytest.fixture
def pair(tmp_path: Path, write_run: WriteRun) -> tuple[Run, ...]:
    for seed in range(2):
        measured = {5: 0.5 + 0.2 * seed, 10: 0.8 + 0.1 * seed}
        write_run(tmp_path / f"students/extraction/seed-{seed}", measured, seed=seed)
    return load_runs([tmp_path])


def test_a_curve_is_the_mean_over_seeds_with_its_extremes(pair: tuple[Run, ...]) -> None:
    curve = learning_curve(pair, "accuracy")
    assert curve.spent["examples"] == (50.0, 100.0)
    assert curve.spent["total_flops"] == (2_000.0, 4_000.0)
    assert curve.middle == pytest.approx((0.6, 0.85))
    assert (curve.low, curve.high) == ((0.5, 0.8), (0.7, 0.9))
    assert curve.num_seeds == 2


def test_a_metric_that_was_not_recorded_has_no_points(pair: tuple[Run, ...]) -> None:
    assert learning_curve(pair, "nll").middle == ()


def test_losses_are_told_by_stage(pair: tuple[Run, ...]) -> None:
    assert stage_names(pair) == ("first", "second")
    curve = loss_curve(pair, "second")
    assert curve.spent["steps"] == (6, 7, 8, 9, 10)
    assert curve.middle == pytest.approx((1 / 6, 1 / 7, 1 / 8, 1 / 9, 1 / 10))


def test_long_losses_are_thinned_out_and_keep_their_ends(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {2 * 1_010: 0.5})])
    steps = loss_curve(runs, "first").spent["steps"]
    assert len(steps) <= MOST_POINTS + 1
    assert (steps[0], steps[1], steps[-1]) == (1, 4, 1_010)


def test_stages_start_where_the_one_before_ended(pair: tuple[Run, ...]) -> None:
    (first, before_first), (second, before_second) = stage_starts(pair)
    assert (first, before_first["examples"]) == ("first", 0)
    assert (second, before_second["examples"], before_second["seconds"]) == ("second", 50, 2.5)


def test_incomplete_runs_stay_out_of_the_mean(tmp_path: Path, write_run: WriteRun) -> None:
    whole = write_run(tmp_path / "a", {10: 0.5}, seed=0)
    part = write_run(tmp_path / "b", {10: 0.5}, seed=1, finished=False)
    runs = load_runs([whole, part])
    assert [run.seed for run in averaged(runs)] == [0]
    assert [run.seed for run in averaged(runs[1:])] == [1]


def test_neighboring_strategies_differ_in_color() -> None:
    found = colors(str(number) for number in range(8))
    assert len(set(found.values())) == 7
    assert found["0"] == found["7"]


def test_the_range_covers_values_and_target_with_a_margin(pair: tuple[Run, ...]) -> None:
    assert value_range(pair, "accuracy", 1.0) == pytest.approx((0.48, 1.02))


def test_a_constant_metric_has_a_range_with_height(tmp_path: Path, write_run: WriteRun) -> None:
    runs = load_runs([write_run(tmp_path, {10: 0.5})])
    assert value_range(runs, "accuracy") == (0.0, 1.0)
