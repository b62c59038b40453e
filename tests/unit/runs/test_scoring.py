"""All finished models of a comparison or recipe are scored on other data, each once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from curricle.errors import CheckpointError, DataError
from curricle.figure_points import Chart, Panel, RecipeRecord, write_recipe
from curricle.records import Score
from curricle.runs import scoring
from curricle.runs.fine_tuning import FineTuned
from curricle.runs.folder import Origin, start
from curricle.runs.minimal_pairs import PairAccuracy
from curricle.runs.scoring import PairScoring, TextScoring, score_models, scores_grid
from curricle.runs.spec import RunSpec
from curricle.runs.train import single_run, student_runs, teach, train_student

MakeSpec = Callable[..., RunSpec]
PAIR = {"UID": "agreement", "sentence_good": "he goes", "sentence_bad": "he go"}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "blimp.jsonl"
    path.write_text(json.dumps(PAIR) + "\n")
    return path


@pytest.fixture
def folder(make_spec: MakeSpec) -> Path:
    """Return a comparison of two strategies and seeds, of which one run is not finished."""
    spec = make_spec()
    start(spec, Origin(command="compare", title="tiny", line="curricle compare tiny.yaml"))
    teach(spec)
    (spec.folder / "teacher" / "model").mkdir()
    for run in student_runs(spec)[:-1]:
        train_student(spec, run)
    return spec.folder


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the models in the order in which they are scored."""
    models: list[str] = []

    def score_run(folder: Path, _pairs: Path, *, limit: int | None) -> PairAccuracy:
        models.append(f"{folder.parent.name}/{folder.name}")
        share = {"teacher": 0.75, "seed-0": 0.5, "seed-1": 0.25}[folder.name]
        return PairAccuracy(by_kind={"agreement": share}, mean=share, pairs=limit or 4, ties=0)

    monkeypatch.setattr(scoring, "score_run", score_run)
    return models


def test_the_teacher_and_every_finished_student_are_scored(
    folder: Path, pairs: Path, scored: list[str]
) -> None:
    progress: list[tuple[int, int]] = []
    scores = score_models(
        folder, PairScoring(pairs=pairs), watch=lambda *done: progress.append(done)
    )
    assert scored == ["run/teacher", "one_shot/seed-0", "progressive/seed-0", "one_shot/seed-1"]
    assert [score.accuracy for _, score in scores] == [0.75, 0.5, 0.5, 0.25]
    assert {score.name for _, score in scores} == {"blimp"}
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert scores_grid(scores).rows == (
        ("run", "teacher", "75.00 %", "1"),
        ("run", "one_shot", "37.50 % (2 seeds: 25.00, 50.00 %)", "2"),
        ("run", "progressive", "50.00 %", "1"),
    )


def test_an_interrupted_evaluation_goes_on_with_the_models_that_are_left(
    folder: Path, pairs: Path, scored: list[str]
) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_models(folder, PairScoring(pairs=pairs), watch=interrupt)
    assert scored == ["run/teacher", "one_shot/seed-0"]
    score_models(folder, PairScoring(pairs=pairs))
    assert scored == ["run/teacher", "one_shot/seed-0", "progressive/seed-0", "one_shot/seed-1"]


def test_scores_of_two_ways_are_not_mixed(folder: Path, pairs: Path, scored: list[str]) -> None:
    score_models(folder, PairScoring(pairs=pairs))
    with pytest.raises(CheckpointError, match=r"must have been measured with .*'limit': 1}; got"):
        score_models(folder, PairScoring(pairs=pairs, limit=1))
    pairs.write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR) + "\n")
    with pytest.raises(CheckpointError, match="must have been measured with"):
        score_models(folder, PairScoring(pairs=pairs))
    assert len(scored) == 4


def test_a_score_of_texts_is_the_mean_over_the_seeds_of_the_fine_tuning(
    folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fine_tune_run(_folder: Path, *_texts: Path, **_options: object) -> FineTuned:
        return FineTuned(
            by_seed={0: {"accuracy": 0.5, "f1_macro": 0.5}, 1: {"accuracy": 1.0, "f1_macro": 0.0}},
            classes=("a", "b"),
            train_texts=4,
            test_texts=2,
            steps=3,
            new_weights=(),
        )

    monkeypatch.setattr(scoring, "fine_tune_run", fine_tune_run)
    texts = TextScoring(name="polarity", train=pairs, test=pairs, seeds=(0, 1))
    (_, score), *_ = score_models(folder, texts)
    assert (score.name, score.accuracy) == ("polarity", 0.75)
    assert score.settings["tuning"] == {
        "epochs": 3,
        "learning_rate": 1e-4,
        "batch_size": 32,
        "text_column": "text",
        "label_column": "label",
    }
    assert score.details["steps"] == 3


def test_of_a_recipe_the_models_of_all_panels_are_scored_and_the_first_teacher(
    folder: Path, pairs: Path, scored: list[str], tmp_path: Path
) -> None:
    record = RecipeRecord(
        name="figure",
        scale="small",
        title="A figure",
        source="none",
        known="nothing",
        panels=(Panel(name="short"), Panel(name="long")),
        chart=Chart(kind="lines"),
    )
    for panel in record.panels:
        shutil.copytree(folder, tmp_path / "recipe" / "panels" / panel.name)
    write_recipe(tmp_path / "recipe", record)
    scores = score_models(tmp_path / "recipe", PairScoring(pairs=pairs))
    assert len(scores) == 1 + 2 * 3
    assert [model for model in scored if "teacher" in model] == ["short/teacher"]


def test_a_folder_without_a_finished_student_of_a_comparison_is_refused(
    make_spec: MakeSpec, pairs: Path
) -> None:
    spec = make_spec()
    start(spec, Origin(command="compare", title="tiny", line="curricle compare tiny.yaml"))
    with pytest.raises(CheckpointError, match="must hold a finished student of a comparison"):
        score_models(spec.folder, PairScoring(pairs=pairs))


def test_a_single_run_is_refused(make_spec: MakeSpec, pairs: Path) -> None:
    spec = make_spec()
    start(spec, Origin(command="distill", title="tiny", line="curricle distill tiny.yaml"))
    teach(spec)
    train_student(spec, single_run(spec))
    with pytest.raises(
        CheckpointError, match="must be a comparison or a recipe's folder; got a run"
    ):
        score_models(spec.folder, PairScoring(pairs=pairs))


def test_data_that_are_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.jsonl' must be a file or a folder"):
        score_models(folder, PairScoring(pairs=tmp_path / "absent.jsonl"))


def test_pairs_in_a_folder_have_its_name(pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "minimal"
    folder.mkdir()
    pairs.rename(folder / "a.jsonl")
    evaluation = PairScoring(pairs=folder)
    assert evaluation.name == "minimal"
    assert len(evaluation.settings()["data"]) == 1  # type: ignore[arg-type]


def test_scores_of_one_evaluation_have_equal_settings(
    folder: Path, pairs: Path, scored: list[str]
) -> None:
    scores: list[Score] = [score for _, score in score_models(folder, PairScoring(pairs=pairs))]
    assert len(scored) == len(scores)
    assert {json.dumps(score.settings) for score in scores} == {json.dumps(scores[0].settings)}
