"""Scores of a recipe's students are read from the folders of the models."""

from pathlib import Path

import pytest

from curricle.errors import CheckpointError
from curricle.figure_points import Chart, Panel
from curricle.records import Score, write_score
from curricle.reports.run_folders import load_runs
from curricle.reports.scores import Evaluated, read_scores, score_points
from curricle.reports.summary import summarize


def keep(model: Path, accuracy: float, limit: int = 1, name: str = "blimp") -> None:
    model.mkdir(parents=True, exist_ok=True)
    settings: dict[str, object] = {"limit": limit}
    write_score(model, Score(name=name, accuracy=accuracy, settings=settings, details={}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    panels = tmp_path / "panels"
    keep(panels / "short" / "teacher", 0.75)
    for panel, shares in (("short", (0.5, 0.25)), ("long", (0.625, 0.5))):
        for seed, share in enumerate(shares):
            keep(panels / panel / "students" / "one_shot" / f"seed-{seed}", share)
    keep(panels / "long" / "students" / "labels" / "seed-10", 0.5, name="texts")
    return tmp_path


def test_scores_are_told_apart_by_name_panel_strategy_and_seed(folder: Path) -> None:
    blimp, texts = read_scores(folder, ["short", "long"])
    assert blimp == Evaluated(
        name="blimp",
        students={
            "short": {"one_shot": {0: 0.5, 1: 0.25}},
            "long": {"one_shot": {0: 0.625, 1: 0.5}},
        },
        teacher=0.75,
    )
    assert (texts.name, texts.teacher) == ("texts", None)
    assert texts.students == {"long": {"labels": {10: 0.5}}}
    assert texts.metric == "texts_accuracy"


def test_a_recipe_without_scores_has_none(tmp_path: Path) -> None:
    assert read_scores(tmp_path, ["short"]) == ()


def test_scores_of_two_ways_are_refused(folder: Path) -> None:
    keep(folder / "panels" / "long" / "students" / "one_shot" / "seed-0", 0.5, limit=2)
    with pytest.raises(
        CheckpointError, match=r"must have equal settings; .*'limit': 1.*'limit': 2"
    ):
        read_scores(folder, ["short", "long"])


def test_a_damaged_score_is_refused_with_a_remedy(folder: Path) -> None:
    path = folder / "panels" / "short" / "teacher" / "scores" / "blimp.json"
    path.write_text(path.read_text().replace("0.75", "0.85"))
    with pytest.raises(CheckpointError, match=r"blimp.json' must hold a score: it is damaged"):
        read_scores(folder, ["short"])


def test_scores_stand_at_the_flops_of_their_strategy(comparison: Path) -> None:
    summary = summarize(load_runs([comparison]), metric="accuracy")
    evaluation = Evaluated(
        name="blimp", students={"short": {"extraction": {0: 0.5, 1: 0.25}}}, teacher=None
    )
    chart = Chart(kind="lines", of="final", x_from="total_flops")
    points = score_points(chart, [(Panel(name="short"), summary)], [evaluation])
    flops = [seed.usage["total_flops"] for seed in summary.methods["extraction"].seeds]
    assert [(point.panel, point.series, point.y, point.seed) for point in points] == [
        ("blimp", "extraction", 0.5, 0),
        ("blimp", "extraction", 0.25, 1),
    ]
    assert {point.x for point in points} == {sum(flops) / len(flops)}
