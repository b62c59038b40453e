"""Every recipe really trains at scale `smoke`, from the command line to its figure."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from curricle_papers.recipes.index import RECIPES

pytestmark = pytest.mark.integration
Command = Callable[..., tuple[object, str, str]]


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the figure of a recipe alone, and no learning curves of its comparisons."""
    monkeypatch.setattr("curricle.runs.report.save_learning_curves", lambda *_, **__: None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_to_its_figure(command: Command, name: str, tmp_path: Path) -> None:
    code, shown, told = command("reproduce", name, "--scale", "smoke", "--jobs", "1")
    assert (code, told) == (0, "")
    folder = tmp_path / "runs" / "reproduce" / f"{name}-smoke"
    assert f"report: {Path(*folder.parts[-3:])}/report.html" in shown.replace("\n", " ")
    assert "scale smoke only shows that everything runs" in shown
    assert "times as many" not in shown
    assert "measurable difference" not in shown
    for page in folder.rglob("report.html"):
        assert "scale smoke only shows" in page.read_text().lower()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["panels"] or summary["points"]
    for panel in summary["panels"].values():
        assert all(seed["complete"] for one in panel["methods"].values() for seed in one["seeds"])
    for file in ("figure.png", "figure.svg", "report.html"):
        assert (folder / file).stat().st_size > 1000


def test_a_second_call_trains_nothing_and_remakes_the_report(
    command: Command, tmp_path: Path
) -> None:
    call = ("reproduce", "parity-mlp", "--scale", "smoke", "--jobs", "1", "--output-dir", "again")
    assert command(*call)[0] == 0
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    (tmp_path / "again" / "figure.svg").unlink()
    assert command(*call)[0] == 0
    assert weights == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert (tmp_path / "again" / "figure.svg").is_file()


def test_the_report_of_a_recipes_folder_is_remade(command: Command, tmp_path: Path) -> None:
    call = ("reproduce", "parity-mlp", "--scale", "smoke", "--jobs", "1", "--output-dir", "my own")
    assert command(*call)[0] == 0
    page = tmp_path / "my own" / "report.html"
    before = page.read_text()
    assert "--scale smoke --output-dir" in before
    assert "only shows that everything runs" in before
    page.unlink()
    code, shown, told = command("report", "my own")
    assert (code, told) == (0, "")
    assert "report: my own/report.html" in shown
    assert page.read_text() == before
    assert command("report", "my own", "--output", "x.html")[0] == 2
    code, _, told = command("report", "my own", "other")
    assert code == 2
    assert "it is a recipe's folder, with runs in 'my own/panels/parity'" in told


@pytest.mark.parametrize(
    ("name", "series"), [("theorem-check", "one_shot"), ("correlation-gap", "off support")]
)
def test_what_no_run_can_tell_is_told_on_the_console(
    command: Command, name: str, series: str
) -> None:
    _, shown, _ = command("reproduce", name, "--scale", "smoke")
    assert series in shown
    assert "over repetitions" in " ".join(shown.split())


def test_the_list_names_every_recipe(command: Command) -> None:
    code, shown, _ = command("reproduce", "--list")
    assert code == 0
    assert all(name in shown for name in RECIPES)


def test_mistakes_are_one_sentence(command: Command) -> None:
    assert command("reproduce", "parity-mpl")[0] == 2
    code, _, told = command("reproduce", "parity-mlp", "--scale", "tiny")
    assert code == 2
    assert "'scale' must be one of" in told
