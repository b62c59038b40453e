"""Trajectories of curricle and of other trainers are listed, and faults are errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curricle.errors import CheckpointError
from curricle.runs.trajectory_folder import list_trajectory
from curricle.teachers.trajectory import TrajectoryWriter
from tests.parts import mlp


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder whose teacher has two checkpoints."""
    writer = TrajectoryWriter(tmp_path / "teacher" / "trajectory", [5, 10])
    for step, loss in ((5, 0.5), (10, 0.25)):
        writer.save(mlp(3).module, step, loss)
    # Each finished run has a manifest, too.
    (tmp_path / "records.jsonl").touch()
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("path", ["", "teacher", "teacher/trajectory"])
def test_the_trajectory_of_a_run_is_listed_with_its_losses(run: Path, path: str) -> None:
    listing = list_trajectory(run / path)
    found = [(item.step, item.loss, item.parameters) for item in listing.checkpoints]
    assert found == [(5, 0.5, 29), (10, 0.25, 29)]
    assert listing.opening == f"curricle.open_trajectory({str(run / 'teacher/trajectory')!r})"
    listing.check()


def test_a_changed_weight_of_a_run_is_a_fault(run: Path) -> None:
    (file,) = run.rglob("*10.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    listing = list_trajectory(run)
    assert not listing.checkpoints[0].fault
    with pytest.raises(
        CheckpointError, match=r"^1 of 2 checkpoints cannot be used; step 10: .* is damaged"
    ):
        listing.check()


def test_folders_of_other_trainers_are_listed(tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "tokenizer.json").write_text(str(step))
    listing = list_trajectory(tmp_path)
    assert [item.path.name for item in listing.checkpoints] == ["step1", "step2"]
    assert listing.notes == ("tokenizer.json of step 2 differs from that of step 1",)
    assert listing.opening == f"curricle.hugging_face_trajectory({str(tmp_path)!r})"
    listing.check()


def test_a_single_checkpoint_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "chck_1M"
    folder.mkdir()
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    assert "one checkpoint is no order" in list_trajectory(tmp_path).notes[0]
