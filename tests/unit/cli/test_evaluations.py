"""`curricle evaluate` prints tables, or JSON alone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from curricle.cli import app as cli
from curricle.records import Score
from curricle.runs import run_evaluation, scoring
from curricle.runs.evaluate import Evaluation, ModelEvaluation
from curricle.runs.fine_tuning import FineTuned, FineTuning
from curricle.runs.harness import HarnessScores
from curricle.runs.minimal_pairs import PairAccuracy
from curricle.runs.model_costs import Cost
from curricle.runs.scoring import PairScoring, TextScoring

COST = Cost(parameters=10, num_bytes=40, milliseconds=0.5, milliseconds_alone=1.0)
EVALUATION = Evaluation(
    student=ModelEvaluation(name="one_shot seed 0", metrics={"accuracy": 0.5}, cost=COST),
    teacher=None,
    task="signs",
    num_examples=4,
    timed_examples=4,
    repetitions=3,
    processor="cpu",
    threads=1,
    notes=("the teacher is left out: [red]gone[/red]",),
)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["curricle", "evaluate", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_options_reach_the_evaluation_and_the_table_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    def evaluate_run(run: Path, **options: object) -> Evaluation:
        calls.append((run, options))
        return EVALUATION

    monkeypatch.setattr(run_evaluation, "evaluate_run", evaluate_run)
    options = ("--on", "a=1", "--on", "b=2", "--strategy", "x", "--seed", "1", "--metric", "kl")
    assert call(monkeypatch, "run", *options, "--repetitions", "3") == 0
    expected = {
        "changes": ["a=1", "b=2"],
        "strategy": "x",
        "seed": 1,
        "metrics": ["kl"],
        "repetitions": 3,
    }
    assert calls == [(Path("run"), expected)]
    out = capsys.readouterr().out
    assert "one_shot seed 0" in out
    assert "50.00 %" in out
    assert "[red]gone[/red]" in out
    assert call(monkeypatch, "run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(EVALUATION.plain()))


def test_a_folder_without_a_run_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, str(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be a run folder of the command line" in line


def test_pairs_are_scored_in_place_of_the_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    def score_run(run: Path, pairs: Path, *, watch: Any, **options: object) -> PairAccuracy:
        watch(1, 2)
        calls.append((run, pairs, options))
        return PairAccuracy(by_kind={"islands": 0.25}, mean=0.25, pairs=4, ties=1)

    monkeypatch.setattr(run_evaluation, "score_run", score_run)
    assert call(monkeypatch, "run", "--blimp", "pairs.jsonl", "--pairs", "5") == 0
    options = {"limit": 5, "strategy": None, "seed": None}
    assert calls == [(Path("run"), Path("pairs.jsonl"), options)]
    out = capsys.readouterr().out
    assert "islands" in out
    assert "25.00 %" in out
    assert "4 pairs, 1 ties, which count as wrong" in out
    assert call(monkeypatch, "run", "--blimp", "pairs.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["by_kind"] == {"islands": 0.25}


def test_a_fine_tuning_has_its_own_seeds_and_needs_test_texts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[object] = []

    def fine_tune_run(run: Path, train: Path, test: Path, **options: object) -> FineTuned:
        calls.append((run, train, test, options))
        return FineTuned(
            by_seed={0: {"accuracy": 0.5, "f1_macro": 0.25}},
            classes=("a", "b"),
            train_texts=4,
            test_texts=2,
            steps=3,
            new_weights=("head.weight",),
        )

    monkeypatch.setattr(run_evaluation, "fine_tune_run", fine_tune_run)
    arguments = ("run", "--fine-tune", "train", "--test", "test", "--seeds", "2", "--epochs", "1")
    assert call(monkeypatch, *arguments) == 0
    options = {
        "strategy": None,
        "seed": None,
        "seeds": range(2),
        "tuning": FineTuning(epochs=1, learning_rate=1e-4),
    }
    assert calls == [(Path("run"), Path("train"), Path("test"), options)]
    out = capsys.readouterr().out
    assert "4 training texts and 2 test texts of 2 classes; 3 steps a seed" in out
    assert "new weights: head.weight" in out
    assert call(monkeypatch, "run", "--fine-tune", "train") == 2
    assert "'--fine-tune' must come with '--test'" in capsys.readouterr().err
    # Of a folder the files with these names are taken.
    for name in ("train.jsonl.gz", "test.jsonl.gz", "oos_train.jsonl.gz", "readme.md"):
        (tmp_path / name).touch()
    assert call(monkeypatch, "run", "--fine-tune", str(tmp_path), "--seeds", "2") == 0
    options = {"strategy": None, "seed": None, "seeds": range(2), "tuning": FineTuning()}
    files = (tmp_path / "train.jsonl.gz", tmp_path / "test.jsonl.gz")
    assert calls[-1] == (Path("run"), *files, options)
    (tmp_path / "test.csv").touch()
    assert call(monkeypatch, "run", "--fine-tune", str(tmp_path)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "one file 'test', each" in error
    assert "got train.jsonl.gz, test.csv, test.jsonl.gz" in error


def test_all_models_of_a_folder_are_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[object] = []

    def score_models(
        run: Path, evaluation: object, *, jobs: int, watch: Any
    ) -> list[tuple[Path, Score]]:
        watch(1, 2)
        calls.append((run, evaluation, jobs))
        score = Score(name="pairs", accuracy=0.25, settings={}, details={})
        return [(Path("run/students/extraction/seed-0"), score)]

    monkeypatch.setattr(scoring, "score_models", score_models)
    arguments = ("run", "--blimp", "pairs.jsonl", "--limit", "5", "--all-students", "--jobs", "2")
    assert call(monkeypatch, *arguments) == 0
    assert calls == [(Path("run"), PairScoring(pairs=Path("pairs.jsonl"), limit=5), 2)]
    out = capsys.readouterr().out
    assert "extraction" in out
    assert "25.00 %" in out
    assert "kept beside the records of 1 models" in out
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    texts = ("run", "--fine-tune", str(tmp_path), "--seeds", "1", "--all-students", "--json")
    assert call(monkeypatch, *texts) == 0
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    expected = TextScoring(name=tmp_path.name, train=train, test=test, seeds=(0,))
    assert calls[-1] == (Path("run"), expected, 1)
    scores = json.loads(capsys.readouterr().out)
    assert scores == {"run/students/extraction/seed-0": {"name": "pairs", "accuracy": 0.25}}


def test_options_suit_the_number_of_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", "--blimp", "pairs", "--all-students", "--seed", "1")
    assert call(monkeypatch, *arguments) == 2
    assert "'--seed' must be left out with '--all-students'" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--blimp", "pairs", "--jobs", "2") == 2
    assert "'--jobs' must come with '--all-students'" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--all-students") == 2
    error = capsys.readouterr().err
    assert "'--all-students' must come with '--blimp' or '--fine-tune'" in error


def test_tasks_of_the_harness_are_run_in_place_of_the_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    def harness_run(run: Path, tasks: list[str], **options: object) -> HarnessScores:
        calls.append((run, tasks, options))
        return HarnessScores(by_task={"copa": {"acc": 0.75, "acc_stderr": 0.05}}, version="0.4.9")

    monkeypatch.setattr(run_evaluation, "harness_run", harness_run)
    assert call(monkeypatch, "run", "--lm-eval", "copa, own.yaml", "--limit", "7") == 0
    options = {"limit": 7, "strategy": None, "seed": None}
    assert calls == [(Path("run"), ["copa", "own.yaml"], options)]
    out = capsys.readouterr().out
    assert "0.7500" in out
    assert "lm_eval 0.4.9, of each task the first 7 examples" in out
    assert call(monkeypatch, "run", "--lm-eval", "copa", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["copa"]["acc"] == 0.75
    assert call(monkeypatch, "run", "--lm-eval", "copa", "--metric", "nll") == 2
    assert "'--metric' must be left out with '--lm-eval'" in capsys.readouterr().err


def test_evaluations_are_not_mixed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "--blimp", "pairs", "--fine-tune", "train") == 2
    assert "'--fine-tune' must be left out with '--blimp'" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--blimp", "pairs", "--metric", "nll") == 2
    assert "'--metric' must be left out with '--blimp'" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--blimp", "pairs", "--epochs", "2") == 2
    assert "'--epochs' must be left out with '--blimp'" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--limit", "2") == 2
    assert "'--limit' must come with '--blimp' or '--lm-eval'" in capsys.readouterr().err
    assert call(monkeypatch, "run", "--lm-eval", ",") == 2
    assert "'--lm-eval' must name a task; got ','" in capsys.readouterr().err
