"""`curricle evaluate` prints tables, or JSON alone."""

import json
import sys
from pathlib import Path

import pytest

from curricle.cli import app as cli
from curricle.runs import run_evaluation
from curricle.runs.costs import Cost
from curricle.runs.evaluate import Evaluation, ModelEvaluation

COST = Cost(parameters=10, num_bytes=40, milliseconds=0.5, milliseconds_alone=1.0)
EVALUATION = Evaluation(
    student=ModelEvaluation(name="one_shot seed 0", metrics={"accuracy": 0.5}, cost=COST),
    teacher=None,
    task="signs",
    num_examples=4,
    timed_examples=4,
    repetitions=3,
    device="cpu",
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
