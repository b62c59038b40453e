import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from curricle.reports import curves
from curricle.reports.curves import (
    MOST_POINTS,
    averaged,
    band,
    colors,
    learning_curve,
    loss_curve,
    metric_panel,
    most_points,
    stage_borders,
    stage_names,
    stage_starts,
    stages_without_loss,
    value_range,
)
from curricle.reports.run_folders import Run, load_runs
from curricle.reports.summary import summarize
from tests.parts import edit_records

WriteRun = Callable[..., Path]


@pytest.fixture
def pair(tmp_path: Path, write_run: WriteRun) -> tuple[Run, ...]:
    for seed in range(2):
        measured = {5: 0.5 + 0.2 * seed, 10: 0.8 + 0.1 * seed}
        write_run(tmp_path / f"students/extraction/seed-{seed}", measured, seed=seed)
    return load_runs([tmp_path])


def test_a_curve_is_the_mean_over_seeds_with_its_interval(pair: tuple[Run, ...]) -> None:
    curve = learning_curve(pair, "accuracy")
    assert curve.usage["examples"] == (50.0, 100.0)
    assert curve.usage["total_flops"] == (2_000.0, 4_000.0)
    assert curve.middle == pytest.approx((0.6, 0.85))
    # Of two seeds: 12.7062 times half their distance of .2 and .1.
    assert curve.low == pytest.approx((0.6 - 1.27062, 0.85 - 0.63531))
    assert curve.high == pytest.approx((0.6 + 1.27062, 0.85 + 0.63531))
    assert curve.num_seeds == 2


def test_costs_beyond_any_float_are_drawn_at_the_largest_number(
    tmp_path: Path, write_run: WriteRun
) -> None:
    folder = write_run(tmp_path, {5: 0.5, 10: 0.8})
    path = folder / "records.jsonl"
    text = re.sub(r'"teacher_flops": \d+', f'"teacher_flops": {10**400}', path.read_text())
    edit_records(path, text)
    curve = learning_curve(load_runs([folder]), "accuracy")
    assert max(curve.usage["total_flops"]) == 1e300
    assert curve.middle == pytest.approx((0.5, 0.8))


def test_a_metric_that_was_not_recorded_has_no_points(pair: tuple[Run, ...]) -> None:
    assert learning_curve(pair, "nll").middle == ()


def test_losses_are_told_by_stage(pair: tuple[Run, ...]) -> None:
    assert stage_names(pair) == ("first", "second")
    curve = loss_curve(pair, "second")
    assert curve.usage["steps"] == (6, 7, 8, 9, 10)
    assert curve.middle == pytest.approx((1 / 6, 1 / 7, 1 / 8, 1 / 9, 1 / 10))


def test_long_losses_are_thinned_out_and_keep_their_ends(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {2 * 1_010: 0.5})])
    steps = loss_curve(runs, "first").usage["steps"]
    assert len(steps) <= MOST_POINTS
    assert (steps[0], steps[-1]) == (1, 1_010)
    assert max(late - early for early, late in pairwise(steps)) <= 2 * 1_010 / MOST_POINTS * 2


def test_a_spike_of_one_step_survives_thinning(tmp_path: Path, write_run: WriteRun) -> None:
    records = write_run(tmp_path, {2 * 1_010: 0.5}) / "records.jsonl"
    edit_records(records, records.read_text().replace(f'"loss": {1 / 777}', '"loss": 9.0'))
    curve = loss_curve(load_runs([tmp_path]), "first")
    assert dict(zip(curve.usage["steps"], curve.middle, strict=True))[777] == 9.0


def test_stages_start_where_the_one_before_ended(pair: tuple[Run, ...]) -> None:
    (first, before_first), (second, before_second) = stage_starts(pair)
    assert (first, before_first["examples"]) == ("first", 0)
    assert (second, before_second["examples"], before_second["seconds"]) == ("second", 50, 2.5)


@pytest.mark.parametrize(("number", "shown"), [(1, 0), (25, 24), (26, 0)])
def test_borders_are_shown_unless_they_would_cover_the_curves(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Run, ...], number: int, shown: int
) -> None:
    starts = tuple((f"stage {place}", {"examples": float(place)}) for place in range(number))
    monkeypatch.setattr(curves, "stage_starts", lambda _runs: starts)
    assert stage_borders(pair) == tuple(before for _, before in starts[1:])[:shown]


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
    # Intervals of two seeds fill all that a share can be.
    assert value_range(pair, "accuracy", 1.0) == pytest.approx((-0.04, 1.04))
    assert value_range(pair[:1], "accuracy", 1.0) == pytest.approx((0.48, 1.02))


def test_a_wide_interval_takes_no_more_than_a_third_of_the_axis_on_each_side(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, final in enumerate((1.0, 2.0)):
        write_run(tmp_path / f"students/a/seed-{seed}", {10: final}, seed=seed, metric="nll")
    # The interval reaches from -4.85 to 7.85, the curves from 1 to 2.
    runs = load_runs([tmp_path])
    ends, (strategy,) = metric_panel(runs, "nll", None)
    assert ends == value_range(runs, "nll") == pytest.approx((-0.12, 3.12))
    # A negative log-likelihood has no negative values, so the band ends at zero.
    assert strategy.band == ((0.0,), (ends[1],))


def test_bands_are_clipped_to_the_axis(pair: tuple[Run, ...]) -> None:
    curve = learning_curve(pair, "accuracy")
    low, high = band(curve, (0.0, 1.0))
    assert low == pytest.approx((0.0, 0.21469))
    assert high == (1.0, 1.0)


def test_the_band_is_the_interval_of_the_table(pair: tuple[Run, ...]) -> None:
    final = summarize(pair).methods["extraction"].final
    curve = learning_curve(pair, "accuracy")
    assert final.mean == pytest.approx(curve.middle[-1])
    assert final.ci95 == pytest.approx(curve.high[-1] - curve.middle[-1])


@pytest.mark.parametrize(("num_curves", "points"), [(0, 400), (1, 400), (100, 200), (10_000, 50)])
def test_many_curves_have_fewer_points_each(num_curves: int, points: int) -> None:
    assert most_points(num_curves) == points


def test_stages_shorter_than_the_interval_between_records_have_no_loss(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {30: 0.5}, first=4, every=5)])
    assert stages_without_loss(runs) == ("first",)


def test_a_constant_metric_has_a_range_with_height(tmp_path: Path, write_run: WriteRun) -> None:
    runs = load_runs([write_run(tmp_path, {10: 0.5})])
    assert value_range(runs, "accuracy") == (0.0, 1.0)


def test_a_run_that_ended_early_counts_with_its_last_value(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, measured in enumerate(({5: 0.5, 10: 0.9}, {5: 0.5, 10: 0.6, 15: 0.7, 20: 0.9})):
        write_run(tmp_path / f"students/one_shot/seed-{seed}", measured, seed=seed, planned=20)
    curve = learning_curve(load_runs([tmp_path]), "accuracy")
    assert curve.usage["steps"] == (5, 10, 15, 20)
    assert curve.middle == pytest.approx((0.5, 0.75, 0.8, 0.9))
    # The first counts with .9 from step 10 on, against .6, .7 and .9.
    halves = (0.0, 12.7062 * 0.15, 12.7062 * 0.1, 0.0)
    assert curve.high == pytest.approx([m + h for m, h in zip(curve.middle, halves, strict=True)])


def test_what_was_consumed_goes_on_as_in_the_runs_that_have_not_ended(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "students/one_shot/seed-0", {5: 0.5, 10: 0.9}, planned=15)
    slow = write_run(tmp_path / "students/one_shot/seed-1", {5: 0.5, 10: 0.6, 15: 0.9}, seed=1)
    records = slow / "records.jsonl"
    text = records.read_text()
    for step in (5, 10, 15):
        text = text.replace(f'"seconds": {0.5 * step}', f'"seconds": {3.0 * step}')
    edit_records(records, text)
    curve = learning_curve(load_runs([tmp_path]), "accuracy")
    # Half a second and three seconds a step, then three only.
    assert curve.usage["seconds"] == pytest.approx((8.75, 17.5, 32.5))
    assert curve.usage["examples"] == (50, 100, 150)


def test_a_last_point_off_the_others_does_not_make_the_mean_jump(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, measured in enumerate(({5: 0.4, 10: 0.6}, {5: 0.6, 8: 0.9})):
        write_run(tmp_path / f"students/one_shot/seed-{seed}", measured, seed=seed)
    curve = learning_curve(load_runs([tmp_path]), "accuracy")
    # At step 8 the first is on its way from 0.4 to 0.6.
    assert curve.usage["steps"] == (5, 8, 10)
    assert curve.middle == pytest.approx((0.5, (0.52 + 0.9) / 2, 0.75))


def test_a_mean_of_incomplete_runs_ends_with_the_shortest(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, measured in enumerate(({5: 0.5}, {5: 0.6, 10: 0.8})):
        folder = tmp_path / f"students/one_shot/seed-{seed}"
        write_run(folder, measured, seed=seed, finished=False)
    curve = learning_curve(load_runs([tmp_path]), "accuracy")
    assert curve.usage["steps"] == (5,)
    assert curve.middle == pytest.approx((0.55,))


def test_a_stage_is_averaged_from_where_every_run_has_begun_it(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed, last in enumerate((10, 14)):
        write_run(tmp_path / f"students/one_shot/seed-{seed}", {last: 0.5}, seed=seed)
    curve = loss_curve(load_runs([tmp_path]), "second")
    # Their second stages begin after 5 and after 7 steps; the first ends at 10.
    assert curve.usage["steps"] == (8, 9, 10, 11, 12, 13, 14)
    assert curve.middle[0] == pytest.approx(1 / 8)
    assert curve.middle[-1] == pytest.approx((1 / 10 + 1 / 14) / 2)
