"""`curricle trajectory` lists checkpoints and ends with code 2 if one is faulty."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curricle.cli import app as cli


def checkpoint(folder: Path, size: int = 1500) -> None:
    folder.mkdir()
    save_file({"weight": torch.zeros(size)}, folder / "model.safetensors")
    losses = f'{{"log_history": [{{"eval_loss": 0.5, "step": {folder.name[4:]}}}]}}'
    (folder / "trainer_state.json").write_text(losses)


def call(monkeypatch: pytest.MonkeyPatch, folder: Path) -> object:
    monkeypatch.setattr(sys, "argv", ["curricle", "trajectory", str(folder)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_checkpoints_are_listed_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for step in (100, 20):
        checkpoint(tmp_path / f"step{step}")
    assert call(monkeypatch, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "step" in line]
    cells = [cell.strip() for cell in rows[1].strip("│").split("│")]
    assert cells == ["20", "step20", "1,500", "F32", "0.0", "0.5000", "ok"]
    assert "step100" in rows[2]
    assert lines[-1].startswith("in Python: trajectory = curricle.hugging_face_trajectory('")


def test_a_faulty_checkpoint_is_shown_and_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint(tmp_path / "step1")
    checkpoint(tmp_path / "step2", size=7)
    assert call(monkeypatch, tmp_path) == 2
    printed = capsys.readouterr()
    assert printed.out.count("faulty") == 1
    assert "curricle: 1 of 2 checkpoints cannot be used; step 2: " in printed.err
    assert "in Python" not in printed.out
