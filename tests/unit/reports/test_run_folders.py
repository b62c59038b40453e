import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.errors import CheckpointError
from curricle.reports.run_folders import Run, grouped, load_runs
from tests.parts import edit_records

WriteRun = Callable[..., Path]


def test_a_comparison_is_read_with_its_teacher_apart(comparison: Path) -> None:
    runs = load_runs([comparison])
    assert [(run.method, run.seed, run.is_teacher) for run in runs] == [
        ("extraction", 0, False),
        ("extraction", 1, False),
        ("extraction", 2, False),
        ("one_shot", 0, False),
        ("one_shot", 1, False),
        ("teacher", 0, True),
    ]
    assert list(grouped(runs)) == ["extraction", "one_shot"]


def test_a_comparison_may_lack_its_teacher(comparison: Path) -> None:
    shutil.rmtree(comparison / "teacher")
    assert not any(run.is_teacher for run in load_runs([comparison]))


def test_a_single_run_is_named_after_its_curriculum(tmp_path: Path, write_run: WriteRun) -> None:
    (run,) = load_runs([write_run(tmp_path / "mine", {10: 0.5}, method="progressive", seed=4)])
    assert (run.method, run.seed, run.is_complete) == ("progressive", 4, True)


def test_a_single_run_inside_a_comparison_is_named_after_its_strategy(comparison: Path) -> None:
    seeds = [comparison / "students/one_shot/seed-0", comparison / "students/one_shot/seed-1"]
    assert [run.method for run in load_runs(seeds)] == ["one_shot", "one_shot"]


def test_seeds_are_in_numeric_order(tmp_path: Path, write_run: WriteRun) -> None:
    for seed in (10, 9):
        write_run(tmp_path / f"students/extraction/seed-{seed}", {10: 0.5}, seed=seed)
    assert [run.seed for run in load_runs([tmp_path])] == [9, 10]


def test_other_seeds_of_a_second_folder_join_the_first(tmp_path: Path, write_run: WriteRun) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        write_run(folder / f"students/extraction/seed-{seed}", {10: 0.5}, seed=seed)
    assert {run.method for run in load_runs(folders)} == {"extraction"}


def test_the_same_seed_in_two_folders_is_told_apart(tmp_path: Path, write_run: WriteRun) -> None:
    folders = [tmp_path / "wide", tmp_path / "narrow"]
    for folder in folders:
        write_run(folder / "students/extraction/seed-0", {10: 0.5})
    assert [run.method for run in load_runs(folders)] == ["wide/extraction", "narrow/extraction"]


def test_folders_of_one_name_are_told_apart_by_their_paths(
    tmp_path: Path, write_run: WriteRun
) -> None:
    folders = [tmp_path / "a/demo", tmp_path / "b/demo"]
    for folder in folders:
        write_run(folder / "students/extraction/seed-0", {10: 0.5})
    assert [run.method for run in load_runs(folders)] == [f"{each}/extraction" for each in folders]


def test_a_folder_given_twice_is_read_once(comparison: Path) -> None:
    assert load_runs([comparison, comparison / "."]) == load_runs([comparison])


def test_the_end_replaces_an_evaluation_of_the_same_step(
    tmp_path: Path, write_run: WriteRun
) -> None:
    (run,) = load_runs([write_run(tmp_path, {5: 0.5, 10: 0.7})])
    assert [each.usage.steps for each in run.measurements] == [5, 10]
    assert run.usage.examples == 100


def test_the_end_counts_as_an_evaluation_where_none_was_made(
    tmp_path: Path, write_run: WriteRun
) -> None:
    records = write_run(tmp_path, {5: 0.5, 10: 0.7}) / "records.jsonl"
    lines = records.read_text().splitlines(keepends=True)
    # The last line is the end, the one before it the evaluation of the same step.
    edit_records(records, "".join([*lines[:-2], lines[-1]]))
    (run,) = load_runs([tmp_path])
    assert [(each.usage.steps, each.metrics) for each in run.measurements] == [
        (5, {"accuracy": 0.5}),
        (10, {"accuracy": 0.7}),
    ]


def test_an_incomplete_run_has_spent_what_its_last_record_tells(
    tmp_path: Path, write_run: WriteRun
) -> None:
    (run,) = load_runs([write_run(tmp_path, {5: 0.5, 10: 0.7}, finished=False)])
    assert not run.is_complete
    assert run.usage.steps == 10


@pytest.mark.parametrize(
    ("planned", "finished", "early"),
    [(10, True, False), (11, True, True), (11, False, False)],
)
def test_a_finished_run_shorter_than_planned_has_ended_early(
    tmp_path: Path, write_run: WriteRun, *, planned: int, finished: bool, early: bool
) -> None:
    (run,) = load_runs([write_run(tmp_path, {10: 0.7}, planned=planned, finished=finished)])
    assert run.has_ended_early == early


def test_no_folder_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="must be given at least one run folder; got none"):
        load_runs([])


def test_a_folder_without_records_is_an_error(tmp_path: Path) -> None:
    match = r"must hold 'records.jsonl' or 'students'; it holds neither"
    with pytest.raises(CheckpointError, match=match):
        load_runs([tmp_path / "nothing"])


def test_a_comparison_without_seeds_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "students").mkdir()
    match = r"students' must hold '<strategy>/seed-<n>/records.jsonl'; there is none"
    with pytest.raises(CheckpointError, match=match):
        load_runs([tmp_path])


def test_a_seed_without_records_is_not_skipped(comparison: Path) -> None:
    (comparison / "students/one_shot/seed-1/records.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"seed-1/records\.jsonl' must be a records file"):
        load_runs([comparison])


def test_records_without_an_opening_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_bytes(b"")
    match = r"records.jsonl' must begin with a record of kind 'run'; it does not"
    with pytest.raises(CheckpointError, match=match):
        load_runs([tmp_path])


def test_names_of_records_are_made_visible(tmp_path: Path, write_run: WriteRun) -> None:
    (run,) = load_runs([write_run(tmp_path, {4: 0.5}, method="a\x1b[2J", metric="f\x07")])
    assert (run.method, run.opening.metric) == (r"a\x1b[2J", r"f\x07")
    assert run.evaluations[0].metrics == {r"f\x07": 0.5}
    assert run.end is not None
    assert run.end.metrics == {r"f\x07": 0.5}


def test_names_of_folders_and_stages_are_made_visible(tmp_path: Path, write_run: WriteRun) -> None:
    path = write_run(tmp_path / "students/a\tb/seed-0", {4: 0.5})
    records = path / "records.jsonl"
    edit_records(records, records.read_text().replace('"first"', '"fi\\u001brst"'))
    (run,) = load_runs([tmp_path])
    assert run.method == r"a\tb"
    assert run.opening.stages[0].name == run.stages[0].stage == run.steps[0].stage == r"fi\x1brst"


def test_of_very_many_losses_ends_and_extremes_are_kept(
    tmp_path: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curricle.reports.run_folders.MOST_STEPS", 50)
    records = write_run(tmp_path, {1_000: 0.5}) / "records.jsonl"
    text = records.read_text()
    edit_records(records, text.replace(f'"loss": {1 / 77}', '"loss": 9.0'))
    (run,) = load_runs([tmp_path])
    assert len(run.steps) < 100
    steps = {record.usage.steps: record.loss for record in run.steps}
    assert list(steps) == sorted(steps)
    # The spike, both ends, and both sides of the border between the stages.
    assert steps[77] == 9.0
    assert {1, 500, 501, 1_000} <= set(steps)


def test_a_run_that_was_never_evaluated_and_took_no_step_is_loaded(
    tmp_path: Path, write_run: WriteRun
) -> None:
    records = write_run(tmp_path, {4: 0.5}) / "records.jsonl"
    records.write_text(records.read_text().splitlines()[0] + "\n")
    (run,) = load_runs([tmp_path])
    assert (run.measurements, run.usage.steps, run.is_complete) == ((), 0, False)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_numbers_that_are_not_finite_are_an_error_of_their_line(
    tmp_path: Path, write_run: WriteRun, number: str
) -> None:
    records = write_run(tmp_path, {4: 0.5}) / "records.jsonl"
    # Without checks, as version 0.1 wrote records; our writer lets no such number through.
    text = re.sub(r', "check": "\w+"', "", records.read_text())
    records.write_text(text.replace('"accuracy": 0.5', f'"accuracy": {number}'))
    with pytest.raises(CheckpointError, match=r"line .* is not a record: .*finite"):
        load_runs([tmp_path])


def test_a_record_of_an_unknown_stage_is_an_error(tmp_path: Path, write_run: WriteRun) -> None:
    records = write_run(tmp_path, {10: 0.7}) / "records.jsonl"
    text = re.sub(r', "check": "\w+"', "", records.read_text())
    head, _, rest = text.partition("\n")
    records.write_text(head + "\n" + rest.replace('"stage": "second"', '"stage": "third"', 1))
    match = (
        r"must name the stages of its first record, 'first', 'second'; got .* with stage 'third'"
    )
    with pytest.raises(CheckpointError, match=match):
        load_runs([tmp_path])


Outcomes = dict[str, tuple[int, str | None]]


def outcomes(run: Run) -> Outcomes:
    return {name: (end.done, end.why) for name, end in run.outcomes.items()}


@pytest.mark.parametrize(
    ("last", "why", "expected", "early"),
    [
        (7, "plateau", {"first": (5, "plateau"), "second": (2, "length")}, False),
        (5, "goal", {"first": (5, "goal")}, True),
    ],
)
def test_the_reason_of_an_end_is_the_recorded_one(
    tmp_path: Path,
    write_run: WriteRun,
    *,
    last: int,
    why: str,
    expected: Outcomes,
    early: bool,
) -> None:
    folder = write_run(tmp_path, {last: 0.9}, first=5, planned=7, rule=(8, why))
    (run,) = load_runs([folder])
    assert outcomes(run) == expected
    assert run.has_ended_early == early


@pytest.mark.parametrize(
    ("first", "planned", "expected"),
    [
        (5, 10, {"first": (5, "length"), "second": (5, "length")}),
        (5, 11, {"first": (5, "length"), "second": (5, "goal")}),
        # At the border the second stage does not begin.
        (10, 15, {"first": (10, "goal")}),
    ],
)
def test_only_the_target_ends_a_stage_of_a_fixed_length_early(
    tmp_path: Path, write_run: WriteRun, first: int, planned: int, expected: Outcomes
) -> None:
    (run,) = load_runs([write_run(tmp_path, {10: 0.7}, first=first, planned=planned)])
    assert outcomes(run) == expected
    assert run.has_ended_early == ("goal" in {why for _, why in expected.values()})


def test_a_stage_that_goes_on_has_no_reason_of_an_end(tmp_path: Path, write_run: WriteRun) -> None:
    (run,) = load_runs([write_run(tmp_path, {10: 0.7}, finished=False)])
    assert outcomes(run) == {"first": (5, "length"), "second": (5, None)}
