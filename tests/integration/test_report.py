"""What reports of run folders tell: targets, budgets, missing runs, and what the disk refuses."""

import html
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.checksums import read_sealed, write_sealed
from curricle.files import content_digest
from curricle.reports.headline import headline
from curricle.runs.report import write_report
from tests.parts import edit_records

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]
CopyRun = Callable[..., Path]
REPORT = ("summary.json", "report.html", "learning-curves.png", "learning-curves.svg")
# FLOPs of one step at 8 inputs, 16 examples, 8 hidden units, 2 classes, and a teacher of 16 units:
# forward, and gradients of all weights and of the hidden state.
LABELS_STEP = 2 * 16 * (8 * 8 + 8 * 2) + 2 * 16 * (8 * 8 + 8 * 2 + 8 * 2)
LOGITS_STEP = LABELS_STEP + 2 * 16 * (8 * 16 + 16 * 2)


def test_the_summary_has_the_documented_form(copy_run: CopyRun, tmp_path: Path) -> None:
    copy_run("compare")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    first = ["task", "metric", "goal", "budget", "methods", "teacher"]
    then = ["goal_of", "missing", "caution", "better", "teacher_final", "gap_base"]
    assert list(summary) == [*first, *then]
    assert summary["better"] == "higher"
    assert summary["task"] == "(8,2)-parity"
    assert summary["goal"] == 0.1
    assert summary["budget"] == {"number": 12, "unit": "steps"}
    assert list(summary["methods"]) == ["one_shot", "progressive"]
    method = summary["methods"]["one_shot"]
    results = ["final", "to_goal", "to_goal_ci95", "reached", "seeds", "notes", "gap_closed"]
    results.append("are_replicates")
    assert list(method) == results
    assert [seed["seed"] for seed in method["seeds"]] == [0, 1]
    assert method["seeds"][0]["usage"]["examples"] == 12 * 16
    assert method["seeds"][0]["usage"]["teacher_flops"] == 12 * (LOGITS_STEP - LABELS_STEP)


def test_a_report_made_again_without_any_weights_is_the_same(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    made = {name: (tmp_path / "run" / name).read_bytes() for name in REPORT}
    for name in REPORT:
        (tmp_path / "run" / name).unlink()
    for file in (tmp_path / "run").rglob("*.safetensors"):
        file.unlink()
    assert command("report", "run")[0] == 0
    again = {name: (tmp_path / "run" / name).read_bytes() for name in REPORT}
    assert again["summary.json"] == made["summary.json"]
    assert again["report.html"] == made["report.html"]


def test_a_report_of_records_alone_knows_no_target_and_no_budget(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    made = json.loads((tmp_path / "run" / "summary.json").read_text())
    for file in list((tmp_path / "run").rglob("*")):
        if file.is_file() and file.name != "records.jsonl":
            file.unlink()
    code, shown, _ = command("report", "run")
    assert (code, "no goal was set" in shown) == (0, True)
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (again["goal"], again["budget"]) == (None, {})
    for method, told in made["methods"].items():
        assert again["methods"][method]["final"] == told["final"]


def test_a_report_tells_of_missing_runs(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    shutil.rmtree(tmp_path / "run/students/one_shot")
    shutil.rmtree(tmp_path / "run/students/progressive/seed-1")
    told = "3 of 4 runs are missing: one_shot seed 0, one_shot seed 1, progressive seed 1."
    code, shown, _ = command("report", "run")
    assert (code, told in shown) == (0, True)
    assert told in (tmp_path / "run" / "report.html").read_text()
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["missing"]) == 3


def test_a_report_of_several_folders_says_where_runs_are_missing(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        copy_run("compare", name)
    shutil.rmtree(tmp_path / "second/students/one_shot/seed-1")
    _, shown, _ = command("report", "first", "second")
    assert "1 of 8 runs is missing: one_shot seed 1 in second." in shown


def test_a_report_that_cannot_be_written_is_a_users_mistake(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    (tmp_path / "file").write_text("")
    for page in ("file/page.html", "run"):
        code, _, told = command("report", "run", "--output", page)
        assert code == 2
        assert told.startswith(f"curricle: '{page}' must be a file that can be written; got ")
        assert told.count("\n") == 1


def test_runs_may_end_at_their_target(command: Command, parity: Path, tmp_path: Path) -> None:
    early = "goal={number: 0.1, ends_run: true}"
    assert command("compare", parity, "--set", early)[0] == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "4 of 4 runs ended when they reached the goal" in page


def test_a_report_names_what_to_type_to_run_it_again(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    command("compare", parity, "--set", "budget=6 steps", "--set", "seeds=[4]")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&#x27;budget=6 steps&#x27; --set &#x27;seeds=[4]&#x27;</code>" in page


def lines_again(page: Path) -> list[str]:
    """Return what a page says to type to make it again."""
    found = re.search(
        r"(?:Run it|Draw this page of the same runs) again</h3><pre><code>(.*?)</code>",
        page.read_text(),
        re.DOTALL,
    )
    return [] if found is None else html.unescape(found[1]).splitlines()


@pytest.mark.parametrize(
    ("folders", "page"),
    [
        (["run"], "else/page.html"),
        (["python"], "with blank.html"),
        (["run", "python"], "run/page.html"),
    ],
)
def test_a_page_elsewhere_names_its_place_to_be_made_again(
    command: Command, copy_run: CopyRun, folders: list[str], page: str
) -> None:
    copy_run("distill")
    shutil.copytree("run", "python")
    for name in ("spec.yaml", "run.json"):
        Path("python", name).unlink()
    assert command("report", *folders, "--output", page)[0] == 0
    content, (*before, line) = Path(page).read_bytes(), lines_again(Path(page))
    assert before == (["curricle distill parity.yaml"] if folders == ["run"] else [])
    assert shlex.split(line) == ["curricle", "report", *folders, "--output", page]
    Path(page).unlink()
    assert command(*shlex.split(line)[1:])[0] == 0
    assert Path(page).read_bytes() == content


@pytest.mark.parametrize("output", [(), ("--output", "{}"), ("--output", "./{}")])
def test_a_page_at_its_usual_place_needs_no_place_named(
    command: Command, copy_run: CopyRun, output: tuple[str, ...]
) -> None:
    copy_run("distill")
    shutil.copytree("run", "other")
    for folders, place in ((["run"], "run/"), (["run", "other"], "joint-report/")):
        page = f"{place}report.html"
        assert command("report", *folders, *(one.format(page) for one in output))[0] == 0
        assert len(lines_again(Path(page))) == 1
        assert "--output" not in lines_again(Path(page))[0]


def test_a_report_of_several_folders_tells_their_runs_apart(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    final = "goal={final_of: one_shot}"
    command("compare", parity, "--set", "output_dir=first", "--set", final)
    shutil.copytree("first", "second")
    code, _, told = command("report", "first", "second", "--output", "both/page.html")
    assert (code, told) == (0, "")
    summary = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert set(summary["methods"]) == {
        f"{folder}/{method}"
        for folder in ("first", "second")
        for method in ("one_shot", "progressive")
    }


def test_a_target_may_be_the_final_value_of_a_strategy(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    command("compare", parity, "--set", "goal={final_of: one_shot}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    source = summary["methods"]["one_shot"]
    assert summary["goal_of"] == "one_shot"
    assert summary["goal"] == source["final"]["mean"]
    assert 0 < source["to_goal"]["examples"] <= 12 * 16
    assert None not in source["to_goal"].values()


def test_a_report_of_one_student_has_no_target_that_only_a_comparison_has(
    command: Command, parity: Path, tmp_path: Path
) -> None:
    command("distill", parity, "--set", "goal={final_of: one_shot}")
    assert command("report", "run")[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["goal"] is None
    assert list(summary["methods"]) == ["extraction"]


def test_a_report_of_several_folders_leaves_theirs_as_they_are(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        copy_run("compare", name)
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, shown, _ = command("report", "first", "second")
    assert (code, "report: joint-report/report.html" in shown) == (0, True)
    assert all(path.read_bytes() == content for path, content in made.items())
    page = (tmp_path / "joint-report" / "report.html").read_text()
    assert "<title>first and second</title>" in page
    assert {path.name for path in (tmp_path / "joint-report").iterdir()} == set(REPORT)


def test_a_report_of_several_tasks_is_refused(
    command: Command, parity: Path, copy_run: CopyRun
) -> None:
    copy_run("distill", "first")
    command("distill", parity, "--set", "output_dir=second", "--set", "task.degree=3")
    code, _, told = command("report", "first", "second")
    assert (code, told.count("\n")) == (2, 1)
    assert "must be of one task; got '(8,2)-parity' in 'first' and '(8,3)-parity' in" in told


def test_the_direction_of_recorded_runs_can_be_declared_for_a_report(
    copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.name != "records.jsonl":
            path.unlink()
    for records in (tmp_path / "run" / "students").rglob("records.jsonl"):
        edit_records(records, records.read_text().replace('"accuracy"', '"xyz"'))
    page = tmp_path / "page.html"
    assert "no strategy is called best" in headline(write_report([tmp_path / "run"], page))
    summary = write_report([tmp_path / "run"], page, better="lower")
    assert summary.better == "lower"
    assert "no strategy is called best" not in headline(summary)


def test_the_title_of_many_folders_counts_them(copy_run: CopyRun, tmp_path: Path) -> None:
    copy_run("distill")
    folders = [tmp_path / f"run-{number}" for number in range(8)]
    for folder in folders:
        shutil.copytree(tmp_path / "run", folder)
    write_report(folders, tmp_path / "page.html")
    names = ", ".join(f"run-{number}" for number in range(6))
    title = f"<title>8 folders: {names}, and 2 more</title>"
    assert title in (tmp_path / "page.html").read_text()


def test_a_folder_of_an_earlier_version_is_reported_and_not_resumed(
    command: Command, copy_run: CopyRun, tmp_path: Path
) -> None:
    copy_run("compare")
    folder = tmp_path / "run"
    made = (folder / "summary.json").read_bytes()
    spec, origin = folder / "spec.yaml", folder / "run.json"
    spec.write_text(spec.read_text(encoding="utf-8") + "classroom: false\n", encoding="utf-8")
    fields = read_sealed(origin)
    write_sealed(origin, fields | {"spec_sha256": content_digest(spec)})
    assert command("report", "run")[0] == 0
    assert (folder / "summary.json").read_bytes() == made
    code, _, error = command("resume", "run")
    assert code == 2
    words = " ".join(error.split())
    assert "'classroom' is not a field; it is now named 'share_teacher'" in words
    assert "'curricle report' reads it, and a new run needs another folder" in words
