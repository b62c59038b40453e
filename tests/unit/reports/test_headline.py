import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from curricle.reports.headline import MOST_NAMED, headline
from curricle.reports.run_folders import load_runs
from curricle.reports.summary import Summary, summarize
from curricle.reports.tables import seed_grid, summary_grid
from curricle.runs.compare import Comparison
from tests.parts import edit_records

WriteRun = Callable[..., Path]


def _summary(folder: Path, *, goal: float | None = 0.9, metric: str = "accuracy") -> Summary:
    return summarize(load_runs([folder]), metric=metric, goal=goal)


def test_the_headline_bounds_what_was_not_reached(comparison: Path) -> None:
    # 3000 examples against 600.
    assert headline(_summary(comparison)) == (
        "extraction reached 90 % accuracy after 600 ± 497 examples; "
        "one_shot did not reach it in 3k examples, at least 5 times as many; no measurable "
        "difference in final accuracy: extraction 96.00 ± 2.48 %, one_shot 65.00 % (2 seeds: "
        "60.00, 70.00 %); 2 to 3 seeds each."
    )


def test_the_headline_counts_how_many_times_fewer(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 1040: 0.95})
    assert headline(_summary(tmp_path)) == (
        "extraction reached 90 % accuracy after 400 examples; "
        "one_shot needed 10.4k examples, 26 times as many; extraction and one_shot have the same "
        "final accuracy, 95.00 %; 1 seed each, too few to measure noise."
    )


def test_a_bound_is_rounded_down(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 30: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 59: 0.6})
    # 590 / 300 = 1.97, and 2 times would claim too much.
    assert "one_shot did not reach it in 590 examples, at least 1.9 times as many" in headline(
        _summary(tmp_path)
    )


def test_the_headline_begins_with_the_strategy_that_needed_the_fewest_examples(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 80: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 40: 0.95})
    assert headline(_summary(tmp_path)) == (
        "one_shot reached 90 % accuracy after 400 examples; "
        "extraction needed 800 examples, 2 times as many; extraction and one_shot have the same "
        "final accuracy, 95.00 %; 1 seed each, too few to measure noise."
    )


def test_a_rival_that_stopped_early_proves_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 80: 0.95})
    write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 40: 0.6}, finished=False)
    assert headline(_summary(tmp_path)) == (
        "extraction reached 90 % accuracy after 800 examples; one_shot did not reach it in 400 "
        "examples so far, too few to compare; 1 seed each, too few to measure noise, 1 of 2 runs "
        "incomplete."
    )


def test_the_headline_tells_of_overlapping_seeds_and_partial_success(
    comparison: Path, write_run: WriteRun
) -> None:
    students = comparison / "students"
    for seed, step in enumerate((70, 90)):
        write_run(students / f"progressive/seed-{seed}", {20: 0.5, step: 0.95}, seed=seed)
    write_run(students / "one_shot/seed-2", {20: 0.5, 300: 0.95}, seed=2)
    line = headline(_summary(comparison))
    # Logarithms of 400, 600, 800 and of 700, 900: far inside the interval of two and three seeds.
    assert (
        "progressive needed 800 ± 1.27k against 600 ± 497 examples, no measurable difference"
        in line
    )
    assert "one_shot reached it with 1 of 3 seeds, 3k examples on average" in line


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (("extraction", "one_shot"), "extraction and one_shot"),
        (("b", "a"), "a and b"),
        (("c", "extraction", "a"), "extraction, a and c"),
        ("hgfedcba", "a, b, c, d, e, f and 2 more in the table"),
    ],
)
def test_equal_costs_are_told_together(
    tmp_path: Path, write_run: WriteRun, methods: Sequence[str], told: str
) -> None:
    for method in methods:
        write_run(tmp_path / f"students/{method}/seed-0", {20: 0.5, 40: 0.95})
    write_run(tmp_path / "students/slow/seed-0", {20: 0.5, 80: 0.95})
    *first, last = sorted([*methods, "slow"])
    many = "a, b, c, d, e, f and 3 more in the table"
    ends = many if len(first) > MOST_NAMED else f"{', '.join(first)} and {last}"
    assert headline(_summary(tmp_path)) == (
        f"{told} reached 90 % accuracy after 400 examples each; slow needed 800 examples, 2 times "
        f"as many; {ends} have the same final accuracy, 95.00 %; 1 seed each, too few to "
        "measure noise."
    )


def test_equal_means_over_seeds_are_told_together(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, (step, other) in enumerate(((40, 60), (60, 40), (50, 50))):
        write_run(tmp_path / f"students/extraction/seed-{seed}", {5: 0.5, step: 0.95}, seed=seed)
        other_measured = {5: 0.5, other: 0.95}
        write_run(tmp_path / f"students/one_shot/seed-{seed}", other_measured, seed=seed)
    line = headline(_summary(tmp_path))
    assert line == (
        "extraction and one_shot reached 90 % accuracy after 500 ± 248 examples each; "
        "extraction and one_shot have the same final accuracy, 95.00 ± 0.00 %; 3 seeds each."
    )


@pytest.mark.parametrize("cheap", ["extraction", "from_labels", "a"])
def test_of_equal_costs_the_one_that_is_cheaper_otherwise_is_named(
    tmp_path: Path, write_run: WriteRun, cheap: str
) -> None:
    for method in {"extraction", "from_labels", cheap}:
        path = write_run(tmp_path / f"students/{method}/seed-0", {20: 0.5, 40: 0.95})
        if method == cheap:
            records = path / "records.jsonl"
            text = records.read_text().replace('"teacher_flops": 12000,', '"teacher_flops": 0,')
            edit_records(records, text)
    line = headline(_summary(tmp_path))
    assert f"after 400 examples each; {cheap} needed fewer total FLOPs, 4k against 16k" in line


def test_two_that_are_equally_cheap_otherwise_are_both_named(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    for method in ("b", "a"):
        path = write_run(tmp_path / f"students/{method}/seed-0", {20: 0.5, 50: 0.95})
        records = path / "records.jsonl"
        free = records.read_text().replace('"teacher_flops": 15000,', '"teacher_flops": 0,')
        edit_records(records, free)
    line = headline(_summary(tmp_path))
    assert "; a and b needed fewer total FLOPs, 5k against 16k" in line


def test_a_tie_with_the_strategy_that_set_the_target_keeps_its_shares(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for method, step in (("extraction", 40), ("progressive", 40), ("one_shot", 80)):
        write_run(tmp_path / f"students/{method}/seed-0", {20: 0.5, step: 0.95})
    assert headline(summarize(load_runs([tmp_path]), goal_of="one_shot")).startswith(
        "extraction reached one_shot's final accuracy (95.00 %) after 400 examples, with 0.5 of "
        "the seconds and 0.5 of the total FLOPs of one_shot; progressive needed as many; one_shot "
        "needed 800 examples, 2 times as many; "
    )


def test_the_headline_names_who_was_cheaper_otherwise(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    path = write_run(tmp_path / "students/from_labels/seed-0", {20: 0.5, 50: 0.95})
    records = path / "records.jsonl"
    # Without a teacher: 50 steps take 5k FLOPs in all, and 40 with one took 16k.
    free = records.read_text().replace('"teacher_flops": 15000,', '"teacher_flops": 0,')
    edit_records(records, free)
    assert "; from_labels needed fewer total FLOPs, 5k against 16k" in headline(_summary(tmp_path))


def test_the_headline_says_when_nobody_got_there(comparison: Path) -> None:
    assert headline(_summary(comparison, goal=0.999)) == (
        "no strategy reached 99.9 % accuracy on every seed; no measurable difference in final "
        "accuracy: extraction 96.00 ± 2.48 %, one_shot 65.00 % (2 seeds: 60.00, 70.00 %); "
        "2 to 3 seeds each."
    )


def test_the_headline_says_when_no_target_was_set(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5, 20: 0.95})
    assert headline(_summary(tmp_path, goal=None)) == (
        "extraction has a final accuracy of 95.00 %; no goal was set, so costs are not compared; "
        "1 seed each."
    )


def test_the_headline_says_when_no_run_is_complete(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path, {10: 0.5}, finished=False)
    assert headline(_summary(tmp_path)) == (
        "no strategy reached 90 % accuracy on every seed; no run is complete; "
        "1 seed each, 1 of 1 runs incomplete."
    )


LOWER = ("nll", "error_rate", "wer", "eval_loss", "rmse", "ppl", "ece", "brier_score", "kl", "fid")


@pytest.mark.parametrize("metric", LOWER)
def test_the_best_error_is_the_lowest(tmp_path: Path, write_run: WriteRun, metric: str) -> None:
    for method, final in (("a", 0.1), ("b", 0.9)):
        write_run(tmp_path / f"students/{method}/seed-0", {10: 1.5, 20: final}, metric=metric)
    summary = _summary(tmp_path, goal=None, metric=metric)
    assert f"a has the best final {metric.replace('_', ' ')}, 0.1" in headline(summary)


@pytest.mark.parametrize("metric", ["xyz", "neg_mse", "score", "f1_drop"])
def test_a_metric_without_a_known_direction_has_no_best(
    tmp_path: Path, write_run: WriteRun, metric: str
) -> None:
    for method, final in (("a", 0.1), ("b", 0.9)):
        write_run(tmp_path / f"students/{method}/seed-0", {20: final}, metric=metric)
    line = headline(_summary(tmp_path, goal=None, metric=metric))
    assert "no strategy is called best: it is not known whether lower or higher values" in line
    assert f"{metric!r} are better; pass better='lower' or better='higher' to 'distill'" in line
    assert "0.1" not in line


@pytest.mark.parametrize(("better", "best"), [("lower", ("a", "0.1")), ("higher", ("b", "0.9"))])
def test_a_declared_direction_decides_over_the_name(
    tmp_path: Path, write_run: WriteRun, better: str, best: tuple[str, str]
) -> None:
    for metric in ("xyz", "loss"):
        for method, final in (("a", 0.1), ("b", 0.9)):
            folder = tmp_path / f"{metric}/students/{method}/seed-0"
            write_run(folder, {20: final}, metric=metric, better=better)
        line = headline(_summary(tmp_path / metric, goal=None, metric=metric))
        assert f"{best[0]} has the best final {metric}, {best[1]}" in line


def test_a_tie_is_equal_and_not_best(tmp_path: Path, write_run: WriteRun) -> None:
    for method in ("b", "a"):
        write_run(tmp_path / f"students/{method}/seed-0", {20: 0.5}, method=method)
    line = headline(_summary(tmp_path, goal=None))
    assert line.startswith("a and b have the same final accuracy, 50.00 %; ")
    assert "best" not in line


def test_seconds_inside_the_noise_are_no_verdict(tmp_path: Path, write_run: WriteRun) -> None:
    for method, scales in (("extraction", (1.4, 0.7)), ("one_shot", (0.9, 1.1))):
        for seed, scale in enumerate(scales):
            measured = {20: 0.1 * seed, 40: 0.95}
            path = write_run(tmp_path / f"students/{method}/seed-{seed}", measured, seed=seed)
            records = path / "records.jsonl"
            text = records.read_text().replace('"seconds": 20.0', f'"seconds": {20 * scale}')
            edit_records(records, text)
    line = headline(_summary(tmp_path))
    # 28 and 14 against 18 and 22 seconds.
    sentence = "; no measurable difference in seconds between extraction and one_shot, 21 ± 88.9 "
    assert sentence + "against 20" in line
    assert "fewer" not in line


def test_the_cost_to_a_goal_is_a_bound_where_runs_are_evaluated_once(
    tmp_path: Path, write_run: WriteRun
) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {40: 0.95})
    summary = _summary(tmp_path)
    assert headline(summary).startswith("extraction reached 90 % accuracy after at most 400 ex")
    assert summary_grid(summary).rows[0][2:5] == ("≤ 400", "≤ 4k", "≤ 16k")
    assert seed_grid(summary).rows[0][3:5] == ("≤ 400", "≤ 16k")


def test_a_loss_inside_the_noise_is_no_defeat(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, (step, other) in enumerate(((90, 60), (40, 50))):
        measured, other_measured = {5: 0.5, step: 0.95}, {5: 0.5, other: 0.95}
        write_run(tmp_path / f"students/extraction/seed-{seed}", measured, seed=seed)
        write_run(tmp_path / f"students/one_shot/seed-{seed}", other_measured, seed=seed)
    line = headline(_summary(tmp_path))
    assert line.startswith("one_shot reached 90 % accuracy after 550 ± 635 examples; extraction")
    assert "± 635 examples, no measurable difference; extraction and one_shot have the same" in line
    assert "as many" not in line


def test_a_bound_inside_the_noise_is_undecided(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, step in enumerate((10, 90)):
        write_run(tmp_path / f"students/extraction/seed-{seed}", {step: 0.95}, seed=seed)
        write_run(tmp_path / f"students/one_shot/seed-{seed}", {60: 0.5 + 0.1 * seed}, seed=seed)
    # 500 on average against 600, but 100 and 900 alone.
    sentence = "one_shot did not reach it in 600 examples, no measurable difference"
    assert sentence in headline(_summary(tmp_path))


def test_of_many_strategies_the_first_are_named(tmp_path: Path, write_run: WriteRun) -> None:
    for number in range(MOST_NAMED + 4):
        write_run(tmp_path / f"students/s{number:02}/seed-0", {40 + number: 0.95})
    line = headline(_summary(tmp_path))
    assert "s06" in line
    assert "s07" not in line
    assert "; and 3 more in the table; s00, s01, s02, s03, s04, s05 and 4 more in the" in line


def test_the_headline_tells_the_share_of_the_cost_of_the_strategy_that_set_the_target(
    comparison: Path,
) -> None:
    # 30 of 150 seconds, 24k of 120k FLOPs, 600 of 3,000 examples.
    assert headline(summarize(load_runs([comparison]), goal_of="one_shot")) == (
        "extraction reached one_shot's final accuracy (65.00 %) after 600 ± 497 examples, with 0.2 "
        "of the seconds and 0.2 of the total FLOPs of one_shot; one_shot ended there after 3k ± 0 "
        "examples (whole runs), 5 times as many; no measurable difference in final accuracy: "
        "extraction 96.00 ± 2.48 %, one_shot 65.00 % (2 seeds: 60.00, 70.00 %); 2 to 3 seeds each."
    )


def test_a_share_above_one_is_told_in_times(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    path = write_run(tmp_path / "students/one_shot/seed-0", {20: 0.5, 50: 0.9})
    records = path / "records.jsonl"
    edit_records(records, records.read_text().replace('"seconds": 25.0', '"seconds": 8.0'))
    line = headline(summarize(load_runs([tmp_path]), goal_of="one_shot"))
    # 20 seconds against 8; 16k FLOPs against 20k.
    sentence = (
        "after 400 examples, with 2.5 times the seconds and 0.8 of the total FLOPs of one_shot"
    )
    assert sentence in line


def test_a_strategy_that_sets_the_target_and_leads_has_no_share_of_itself(
    comparison: Path,
) -> None:
    # The mean final value of extraction is 0.96, which one_shot never reached.
    assert headline(summarize(load_runs([comparison]), goal_of="extraction")) == (
        "extraction ended at 96.00 % accuracy after 1k ± 0 examples (whole runs; 2 of 3 seeds "
        "reached it); one_shot did not reach it in 3k examples, at least 3 times as many; no "
        "measurable difference in final accuracy: extraction 96.00 ± 2.48 %, one_shot 65.00 % "
        "(2 seeds: 60.00, 70.00 %); 2 to 3 seeds each."
    )


def test_the_cost_of_whole_runs_is_explained(comparison: Path) -> None:
    note = "its cost is that of its whole runs, though 2/3 seeds reached it themselves"
    summary = summarize(load_runs([comparison]), goal_of="extraction")
    assert note in summary.source_note
    assert note in str(Comparison(students={}, summary=summary))
    assert not summarize(load_runs([comparison]), goal=0.9).source_note


@pytest.mark.parametrize(("unit", "words"), [("flops", "total FLOPs"), ("seconds", "seconds")])
def test_the_unit_of_the_budget_leads(
    tmp_path: Path, write_run: WriteRun, unit: str, words: str
) -> None:
    write_run(tmp_path / "students/extraction/seed-0", {20: 0.5, 40: 0.95})
    path = write_run(tmp_path / "students/from_labels/seed-0", {20: 0.5, 50: 0.96})
    records = path / "records.jsonl"
    free = records.read_text().replace('"teacher_flops": 15000,', '"teacher_flops": 0,')
    edit_records(records, free.replace('"seconds": 25.0', '"seconds": 5.0'))
    budget = {"number": 1e6, "unit": unit}
    line = headline(summarize(load_runs([tmp_path]), goal=0.9, budget=budget))
    assert re.match(
        rf"from_labels reached 90 % accuracy after 5k? {words}; extraction needed", line
    )
    assert "; extraction needed fewer examples, 400 against 500; " in line
    assert "; from_labels has the best final accuracy, 96.00 %; 1 seed each" in line


def test_a_measurable_difference_of_final_values_is_stated(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for method, final in (("extraction", 0.95), ("one_shot", 0.91)):
        for seed in range(2):
            path = tmp_path / f"students/{method}/seed-{seed}"
            write_run(path, {40: final + seed / 1000}, seed=seed)
    line = headline(_summary(tmp_path))
    assert "; extraction has the best final accuracy, 95.05 ± 0.64 %, a measurable diff" in line


def test_the_headline_counts_missing_runs(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]), goal=0.9, missing=["one_shot seed 2"])
    assert headline(summary).endswith("; 2 to 3 seeds each, 1 of 6 runs missing.")


def test_no_verdict_is_given_where_the_numbers_say_nothing(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]), goal=0.9, caution="too short to tell")
    assert headline(summary) == "too short to tell."


def test_students_at_chance_are_not_ranked(tmp_path: Path, write_run: WriteRun) -> None:
    for method, final in (("extraction", 0.1), ("one_shot", 0.09)):
        write_run(tmp_path / f"students/{method}/seed-0", {20: final}, method=method, chance=0.12)
    line = headline(summarize(load_runs([tmp_path]), goal_of="one_shot"))
    assert line.startswith("all students end at chance or below, so no strategy is ranked; ")
    write_run(tmp_path / "students/labels/seed-0", {20: 0.5}, method="labels", chance=0.12)
    assert "at chance" not in headline(summarize(load_runs([tmp_path]), goal_of="one_shot"))


def test_an_equal_cost_is_no_share_of_one(tmp_path: Path, write_run: WriteRun) -> None:
    for method in ("extraction", "one_shot"):
        write_run(tmp_path / f"students/{method}/seed-0", {20: 0.5}, method=method)
    line = headline(summarize(load_runs([tmp_path]), goal_of="one_shot"))
    assert "with 1 of the" not in line
    assert ", with the same seconds and the same total FLOPs of one_shot; " in line
