import json
from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, SpecError
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import Costs, Summary, summarize, write_summary
from curricle.values import parse

WriteRun = Callable[..., Path]


def _summary(folder: Path, *, goal: float | None = 0.9, metric: str = "accuracy") -> Summary:
    return summarize(load_runs([folder]), metric=metric, goal=goal, budget={"steps": 300})


def test_final_accuracy_is_a_mean_with_its_t_interval(comparison: Path) -> None:
    final = _summary(comparison).methods["extraction"].final
    # 0.95, 0.96, 0.97: s = 0.01, so 4.3027 * 0.01 / sqrt(3) = 0.024842.
    assert final.mean == pytest.approx(0.96)
    assert final.ci95 == pytest.approx(0.024842, abs=1e-6)


def test_cost_to_goal_is_that_of_the_first_evaluation_there(comparison: Path) -> None:
    method = _summary(comparison).methods["extraction"]
    # 40, 60 and 80 steps of 10 examples, 100 and 300 FLOPs and half a second.
    assert method.to_goal == Costs(
        examples=600.0, student_flops=6_000.0, total_flops=24_000.0, seconds=30.0
    )
    # 400, 600, 800 examples: s = 200, so 4.3027 * 200 / sqrt(3) = 496.83.
    assert method.to_goal_ci95.examples == pytest.approx(496.83, abs=0.01)
    assert method.reached == "3/3"
    assert method.seeds[0].to_goal == Costs(
        examples=400, student_flops=4_000, total_flops=16_000, seconds=20.0
    )


def test_a_target_met_exactly_is_reached(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5, 20: 0.9, 30: 0.95})
    assert _summary(tmp_path).methods["extraction"].to_goal.examples == 200


def test_a_target_met_before_the_output_is_taught_does_not_count(
    tmp_path: Path, write_run: WriteRun
) -> None:
    # Two stages of 20 steps; the first leaves the logits alone.
    measured = {10: 0.95, 20: 0.97, 25: 0.5, 30: 0.92, 40: 0.99}
    write_run(tmp_path, measured, begins_with_layers=True)
    assert _summary(tmp_path).methods["extraction"].to_goal.examples == 300


def test_nobody_reaching_the_target_leaves_no_costs(comparison: Path) -> None:
    method = _summary(comparison).methods["one_shot"]
    assert method.to_goal == Costs()
    assert method.reached == "0/2"
    assert [seed.to_goal for seed in method.seeds] == [None, None]


def test_one_seed_short_of_the_target_takes_the_mean_away(
    comparison: Path, write_run: WriteRun
) -> None:
    write_run(comparison / "students/extraction/seed-3", {20: 0.5, 100: 0.8}, seed=3)
    method = _summary(comparison).methods["extraction"]
    assert method.to_goal == Costs()
    assert method.to_goal_ci95 == Costs()
    assert method.reached == "3/4"


def test_one_seed_has_no_interval(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5, 20: 0.95})
    method = _summary(tmp_path).methods["extraction"]
    assert (method.final.mean, method.final.ci95) == (0.95, None)
    assert method.to_goal.examples == 200
    assert method.to_goal_ci95 == Costs()


def test_an_incomplete_run_counts_for_the_target_but_not_for_the_final(
    comparison: Path, write_run: WriteRun
) -> None:
    path = comparison / "students/extraction/seed-3"
    write_run(path, {20: 0.5, 50: 0.91}, seed=3, finished=False)
    method = _summary(comparison).methods["extraction"]
    assert method.final.mean == pytest.approx(0.96)
    # The mean of 400, 600, 800 and 500.
    assert method.to_goal.examples == 575
    assert not method.seeds[3].complete
    assert method.seeds[3].final == {"accuracy": 0.91}


def test_no_complete_run_leaves_no_final(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5}, finished=False)
    final = _summary(tmp_path).methods["extraction"].final
    assert (final.mean, final.ci95) == (None, None)


def test_lower_is_better_for_likelihoods(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 1.5, 20: 0.4, 30: 0.2}, metric="nll")
    summary = _summary(tmp_path, goal=0.5, metric="nll")
    assert summary.methods["extraction"].to_goal.examples == 200


def test_without_a_target_there_are_no_costs(comparison: Path) -> None:
    method = _summary(comparison, goal=None).methods["extraction"]
    assert method.to_goal == Costs()
    assert method.reached == "0/3"


def test_the_teacher_stands_apart_from_the_strategies(comparison: Path) -> None:
    summary = _summary(comparison)
    assert list(summary.methods) == ["extraction", "one_shot"]
    assert summary.teacher is not None
    assert summary.teacher.usage["examples"] == 2_000


def test_a_metric_that_was_not_recorded_is_an_error(comparison: Path) -> None:
    match = r"'acuracy' must be a metric of '.*seed-0'; did you mean 'accuracy'\?"
    with pytest.raises(SpecError, match=match):
        _summary(comparison, metric="acuracy")


def test_written_json_has_the_promised_form(comparison: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep/summary.json"
    write_summary(_summary(comparison), path)
    data = json.loads(path.read_text())
    assert (data["task"], data["goal"], data["budget"]) == ("parity", 0.9, {"steps": 300})
    shot = data["methods"]["one_shot"]
    assert shot["final"] == {
        "metric": "accuracy",
        "mean": pytest.approx(0.65),
        "ci95": pytest.approx(0.6353, abs=1e-4),
    }
    none = {"examples": None, "student_flops": None, "total_flops": None, "seconds": None}
    assert shot["to_goal"] == none
    assert shot["seeds"][0] == {
        "seed": 0,
        "final": {"accuracy": 0.6},
        "to_goal": None,
        "usage": {
            "steps": 300,
            "examples": 3_000,
            "tokens": 3_000,
            "student_flops": 30_000,
            "teacher_flops": 90_000,
            "seconds": 150.0,
            "total_flops": 120_000,
        },
        "complete": True,
        "is_bound": False,
    }


def test_written_json_reads_back_as_the_same_summary(comparison: Path, tmp_path: Path) -> None:
    summary = _summary(comparison)
    write_summary(summary, tmp_path / "summary.json")
    assert parse(Summary, json.loads((tmp_path / "summary.json").read_text())) == summary


def test_the_strategy_that_sets_the_target_costs_its_whole_runs(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]), goal_of="one_shot")
    # The mean of 0.6 and 0.7, of which one seed falls short by definition; 300 steps each.
    source = summary.methods["one_shot"]
    assert summary.goal == pytest.approx(0.65)
    assert source.reached == "1/2"
    assert source.to_goal == Costs(
        examples=3_000.0, student_flops=30_000.0, total_flops=120_000.0, seconds=150.0
    )
    assert source.to_goal_ci95.examples == 0
    assert summary.methods["extraction"].to_goal.examples == 600


def test_the_strategy_that_sets_the_target_may_have_been_there_earlier(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed in range(2):
        path = tmp_path / f"students/one_shot/seed-{seed}"
        write_run(path, {20 + 20 * seed: 0.9, 100: 0.8}, method="one_shot", seed=seed)
    summary = summarize(load_runs([tmp_path]), goal_of="one_shot")
    assert summary.methods["one_shot"].to_goal.examples == 300


def test_an_incomplete_run_has_no_part_in_the_cost_of_setting_the_target(
    comparison: Path, write_run: WriteRun
) -> None:
    write_run(comparison / "students/one_shot/seed-2", {20: 0.5}, seed=2, finished=False)
    summary = summarize(load_runs([comparison]), goal_of="one_shot")
    assert summary.methods["one_shot"].to_goal.examples == 3_000


def test_a_target_that_no_complete_run_sets_is_none(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5}, finished=False)
    summary = summarize(load_runs([tmp_path]), goal_of="extraction")
    assert (summary.goal, summary.goal_of, summary.goal_words) == (None, None, "")


def test_the_goal_names_the_strategy_whose_final_value_it_is(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]), goal_of="one_shot")
    assert summary.goal_words == "one_shot's final accuracy (65.00 %)"
    assert _summary(comparison).goal_words == "90 % accuracy"


def test_missing_runs_are_told_in_a_sentence(comparison: Path) -> None:
    runs = load_runs([comparison])
    two = summarize(runs, missing=["one_shot seed 2", "progressive seed 0"])
    assert two.gap == "2 of 7 runs are missing: one_shot seed 2, progressive seed 0."
    assert summarize(runs, missing=["one_shot seed 2"]).gap.startswith("1 of 6 runs is missing: ")
    assert summarize(runs).gap == ""


def test_costs_more_than_eightfold_apart_are_wide(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {10: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {80: 0.95})
    assert not _summary(tmp_path).is_wide
    write_run(tmp_path / "students/never/seed-0", {81: 0.5})
    assert _summary(tmp_path).is_wide
    assert not _summary(tmp_path, goal=None).is_wide


def test_a_summary_without_students_is_an_error(comparison: Path) -> None:
    teacher = [run for run in load_runs([comparison]) if run.is_teacher]
    with pytest.raises(CheckpointError, match="must hold at least one run of a student; got none"):
        summarize(teacher)


def test_the_metric_is_that_of_the_runs_unless_another_is_named(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {10: 1.5, 20: 0.6}, metric="nll")])
    summary = summarize(runs, goal=0.7)
    assert (summary.metric, summary.methods["extraction"].to_goal.examples) == ("nll", 200)


def test_runs_of_two_tasks_are_refused_by_their_names(tmp_path: Path, write_run: WriteRun) -> None:
    tasks = ("(8,2)-parity", "(9,3)-parity")
    folders = [write_run(tmp_path / task, {10: 0.5}, task=task) for task in tasks]
    with pytest.raises(
        CheckpointError,
        match=r"^runs of one report must be of one task; got '\(8,2\)-parity' in '.*' and "
        r"'\(9,3\)-parity' in '.*'$",
    ):
        summarize(load_runs(folders))


def test_a_run_whose_task_has_no_name_may_be_beside_another(
    tmp_path: Path, write_run: WriteRun
) -> None:
    folders = [write_run(tmp_path / str(n), {10: 0.5}, task=t) for n, t in enumerate(("", "a"))]
    assert summarize(load_runs(folders)).methods


def test_notes_of_runs_are_kept_once(tmp_path: Path, write_run: WriteRun) -> None:
    for method in ("a", "b"):
        for seed in range(2):
            notes = (
                "logits are the first output",
                f"{method} alone",
                "data: examples",
                f"goal: of {method}",
            )
            folder = tmp_path / f"students/{method}/seed-{seed}"
            write_run(folder, {10: 0.5 + 0.1 * seed}, seed=seed, notes=notes)
    summary = summarize(load_runs([tmp_path]))
    assert summary.methods["a"].notes == (
        "logits are the first output",
        "a alone",
        "data: examples",
        "goal: of a",
    )
    assert summary.notes == (
        "all strategies: logits are the first output",
        "a: a alone",
        "data: examples",
        "a: goal: of a",
        "b: b alone",
        "b: goal: of b",
    )


@pytest.mark.parametrize("metric", ["error_rate", "wer", "eval_loss"])
def test_a_goal_of_an_error_is_reached_from_above(
    tmp_path: Path, write_run: WriteRun, metric: str
) -> None:
    write_run(tmp_path, {10: 0.9, 20: 0.1}, metric=metric)
    summary = summarize(load_runs([tmp_path]), goal=0.2)
    assert summary.methods["extraction"].to_goal.examples == 200


def test_a_goal_of_a_metric_of_unknown_direction_is_refused(
    tmp_path: Path, write_run: WriteRun
) -> None:
    runs = load_runs([write_run(tmp_path, {10: 0.9, 20: 0.1}, metric="xyz")])
    match = "^'goal' needs a metric with a direction; it is not known whether .* of 'xyz'"
    with pytest.raises(SpecError, match=match):
        summarize(runs, goal=0.2)
    summary = summarize(runs, goal=0.2, better="lower")
    assert summary.methods["extraction"].to_goal.examples == 200


def test_costs_by_seed_are_those_whose_mean_is_reported(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]), goal_of="one_shot")
    methods = summary.methods
    assert methods["extraction"].costs("examples") == {0: 400, 1: 600, 2: 800}
    # One of its two seeds falls short of their mean, so both count with their whole runs.
    assert methods["one_shot"].costs("seconds") == {0: 150.0, 1: 150.0}
    assert _summary(comparison).methods["one_shot"].costs("examples") == {}
