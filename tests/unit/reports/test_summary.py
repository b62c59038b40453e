import json
from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.errors import SpecError
from curricle.reports.runs import load_runs
from curricle.reports.summary import Costs, Summary, headline, summarize, write_summary
from curricle.specs import parse

WriteRun = Callable[..., Path]


def _summary(folder: Path, *, target: float | None = 0.9, metric: str = "accuracy") -> Summary:
    return summarize(
        load_runs([folder]), task="parity", metric=metric, target=target, budget={"steps": 300}
    )


def test_final_accuracy_is_a_mean_with_its_t_interval(comparison: Path) -> None:
    final = _summary(comparison).methods["extraction"].final
    # 0.95, 0.96, 0.97: s = 0.01, so 4.3027 * 0.01 / sqrt(3) = 0.024842.
    assert final.mean == pytest.approx(0.96)
    assert final.ci95 == pytest.approx(0.024842, abs=1e-6)


def test_cost_to_target_is_that_of_the_first_evaluation_there(comparison: Path) -> None:
    method = _summary(comparison).methods["extraction"]
    # 40, 60 and 80 steps of 10 examples, 100 and 300 FLOPs and half a second.
    assert method.to_target == Costs(
        examples=600.0, student_flops=6_000.0, total_flops=24_000.0, seconds=30.0
    )
    # 400, 600, 800 examples: s = 200, so 4.3027 * 200 / sqrt(3) = 496.83.
    assert method.to_target_ci95.examples == pytest.approx(496.83, abs=0.01)
    assert method.reached == "3/3"
    assert method.seeds[0].to_target == Costs(
        examples=400, student_flops=4_000, total_flops=16_000, seconds=20.0
    )


def test_a_target_met_exactly_is_reached(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5, 20: 0.9, 30: 0.95})
    assert _summary(tmp_path).methods["extraction"].to_target.examples == 200


def test_nobody_reaching_the_target_leaves_no_costs(comparison: Path) -> None:
    method = _summary(comparison).methods["one_shot"]
    assert method.to_target == Costs()
    assert method.reached == "0/2"
    assert [seed.to_target for seed in method.seeds] == [None, None]


def test_one_seed_short_of_the_target_takes_the_mean_away(
    comparison: Path, write_run: WriteRun
) -> None:
    write_run(comparison / "students/extraction/seed-3", {20: 0.5, 100: 0.8}, seed=3)
    method = _summary(comparison).methods["extraction"]
    assert method.to_target == Costs()
    assert method.to_target_ci95 == Costs()
    assert method.reached == "3/4"


def test_one_seed_has_no_interval(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5, 20: 0.95})
    method = _summary(tmp_path).methods["extraction"]
    assert (method.final.mean, method.final.ci95) == (0.95, None)
    assert method.to_target.examples == 200
    assert method.to_target_ci95 == Costs()


def test_an_incomplete_run_counts_for_the_target_but_not_for_the_final(
    comparison: Path, write_run: WriteRun
) -> None:
    path = comparison / "students/extraction/seed-3"
    write_run(path, {20: 0.5, 50: 0.91}, seed=3, finished=False)
    method = _summary(comparison).methods["extraction"]
    assert method.final.mean == pytest.approx(0.96)
    # The mean of 400, 600, 800 and 500.
    assert method.to_target.examples == 575
    assert not method.seeds[3].complete
    assert method.seeds[3].final == {"accuracy": 0.91}


def test_no_complete_run_leaves_no_final(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5}, finished=False)
    final = _summary(tmp_path).methods["extraction"].final
    assert (final.mean, final.ci95) == (None, None)


def test_lower_is_better_for_likelihoods(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 1.5, 20: 0.4, 30: 0.2}, metric="nll")
    summary = _summary(tmp_path, target=0.5, metric="nll")
    assert summary.methods["extraction"].to_target.examples == 200


def test_without_a_target_there_are_no_costs(comparison: Path) -> None:
    method = _summary(comparison, target=None).methods["extraction"]
    assert method.to_target == Costs()
    assert method.reached == "0/3"


def test_the_teacher_stands_apart_from_the_strategies(comparison: Path) -> None:
    summary = _summary(comparison)
    assert list(summary.methods) == ["extraction", "one_shot"]
    assert summary.teacher is not None
    assert summary.teacher.spent["examples"] == 2_000


def test_a_metric_that_was_not_recorded_is_an_error(comparison: Path) -> None:
    match = r"'acuracy' must be a metric of '.*seed-0'; did you mean 'accuracy'\?"
    with pytest.raises(SpecError, match=match):
        _summary(comparison, metric="acuracy")


def test_written_json_has_the_promised_form(comparison: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep/summary.json"
    write_summary(_summary(comparison), path)
    data = json.loads(path.read_text())
    assert (data["task"], data["target"], data["budget"]) == ("parity", 0.9, {"steps": 300})
    shot = data["methods"]["one_shot"]
    assert shot["final"] == {
        "metric": "accuracy",
        "mean": pytest.approx(0.65),
        "ci95": pytest.approx(0.6353, abs=1e-4),
    }
    none = {"examples": None, "student_flops": None, "total_flops": None, "seconds": None}
    assert shot["to_target"] == none
    assert shot["seeds"][0] == {
        "seed": 0,
        "final": {"accuracy": 0.6},
        "to_target": None,
        "spent": {
            "steps": 300,
            "examples": 3_000,
            "tokens": 3_000,
            "student_flops": 30_000,
            "teacher_flops": 90_000,
            "seconds": 150.0,
            "total_flops": 120_000,
        },
        "complete": True,
    }


def test_written_json_reads_back_as_the_same_summary(comparison: Path, tmp_path: Path) -> None:
    summary = _summary(comparison)
    write_summary(summary, tmp_path / "summary.json")
    assert parse(Summary, json.loads((tmp_path / "summary.json").read_text())) == summary


def test_the_headline_bounds_what_was_not_reached(comparison: Path) -> None:
    # 3000 examples against 600.
    assert headline(_summary(comparison)) == (
        "extraction reached 90 % accuracy with 600 examples, "
        "at least 5 times fewer than one_shot (not reached in 3k); 2 to 3 seeds each."
    )


def test_the_headline_counts_how_many_times_fewer(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 1040: 0.95})
    assert headline(_summary(tmp_path)) == (
        "extraction reached 90 % accuracy with 400 examples, "
        "26 times fewer than one_shot (10.4k); 1 seed each."
    )


def test_a_bound_is_rounded_down(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 30: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 59: 0.6})
    # 590 / 300 = 1.97, and 2 times would claim too much.
    assert "at least 1.9 times fewer than one_shot" in headline(_summary(tmp_path))


def test_the_headline_says_when_the_subject_did_not_win(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 80: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 40: 0.95})
    assert headline(_summary(tmp_path)) == (
        "extraction did not win: one_shot reached 90 % accuracy with 400 examples, "
        "2 times fewer than extraction (800); 1 seed each."
    )


def test_a_rival_that_stopped_early_proves_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 80: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 40: 0.6}, finished=False)
    assert headline(_summary(tmp_path)) == (
        "extraction reached 90 % accuracy with 800 examples, undecided against "
        "one_shot (not reached in 400 so far); 1 seed each, 1 of 2 runs incomplete."
    )


def test_the_headline_tells_of_overlapping_seeds_and_partial_success(
    comparison: Path, write_run: WriteRun
) -> None:
    students = comparison / "students"
    for seed, step in enumerate((70, 90)):
        write_run(students / f"progressive/seed-{seed}", {20: 0.5, step: 0.95}, seed=seed)
    write_run(students / "one_shot/seed-2", {20: 0.5, 300: 0.95}, seed=2)
    line = headline(_summary(comparison))
    assert "1.3 times fewer than progressive (800; seeds overlap)" in line
    assert "one_shot (reached by 1/3 seeds, 3k on average)" in line


def test_equal_costs_are_called_about_equal(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 40: 0.95})
    assert "about as many as one_shot (400; seeds overlap)" in headline(_summary(tmp_path))


def test_the_headline_names_who_was_cheaper_otherwise(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    path = write_run(tmp_path / "students/from_labels/seed-0", {20: 0.5, 50: 0.95})
    records = path / "records.jsonl"
    # Without a teacher: 50 steps take 5k FLOPs in all, and 40 with one took 16k.
    free = records.read_text().replace('"teacher_flops": 15000,', '"teacher_flops": 0,')
    records.write_text(free)
    assert "; but fewer total FLOPs by from_labels (5k against 16k)" in headline(_summary(tmp_path))


def test_the_headline_says_when_nobody_got_there(comparison: Path) -> None:
    assert headline(_summary(comparison, target=0.999)) == (
        "no strategy reached 99.9 % accuracy on every seed; best final accuracy "
        "96.00 ± 2.48 % (extraction); 2 to 3 seeds each."
    )


def test_the_headline_says_when_no_target_was_set(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5, 20: 0.95})
    assert headline(_summary(tmp_path, target=None)) == (
        "no target was set; best final accuracy 95.00 % (extraction); 1 seed each."
    )


def test_the_headline_says_when_no_run_is_complete(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5}, finished=False)
    assert headline(_summary(tmp_path)) == (
        "no strategy reached 90 % accuracy on every seed, and no run is complete; "
        "1 seed each, 1 of 1 runs incomplete."
    )


def test_the_best_likelihood_is_the_lowest(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/a/seed-0", {10: 1.5, 20: 0.4}, metric="nll")
    write_run(tmp_path / "students/b/seed-0", {10: 1.5, 20: 0.6}, metric="nll")
    summary = _summary(tmp_path, target=None, metric="nll")
    assert "best final nll 0.4 (a)" in headline(summary)
