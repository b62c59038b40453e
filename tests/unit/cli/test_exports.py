"""`curricle export` writes a folder and prints its files."""

import sys
from pathlib import Path

import pytest

from curricle.cli import app as cli
from curricle.runs import finished
from curricle.runs.export import Exported
from curricle.runs.onnx_files import TOLERANCE, OnnxCheck


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["curricle", "export", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_options_reach_the_export_and_the_comparison_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []
    check = OnnxCheck(inputs={}, difference=1e-7, tolerance=TOLERANCE, shapes=((4, 2),))

    def export_run(run: Path, to: Path, **options: object) -> Exported:
        calls.append((run, to, options))
        return Exported(folder=to, files=("README.md",), merged=False, onnx=check)

    monkeypatch.setattr(finished, "export_run", export_run)
    arguments = ("run", "--to", "out", "--strategy", "a", "--seed", "1", "--onnx")
    assert call(monkeypatch, *arguments) == 0
    options = {"strategy": "a", "seed": 1, "layout": None, "onnx": True, "tolerance": TOLERANCE}
    assert calls == [(Path("run"), Path("out"), options)]
    assert capsys.readouterr().out == f"{Path('out/README.md')}\nONNX: {check}\n"


def test_a_folder_without_a_run_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, str(tmp_path), "--to", str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be a run folder of the command line" in line
    assert not list(tmp_path.iterdir())
