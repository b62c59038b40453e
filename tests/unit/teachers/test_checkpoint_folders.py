"""Names of checkpoints give their order, and faults are noticed without a model."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curricle.errors import CheckpointError
from curricle.teachers.checkpoint_folders import (
    checkpoint_folders,
    in_step_order,
    inspect,
    tokenizer_note,
)
from curricle.teachers.trajectory import hugging_face_steps, hugging_face_trajectory

SHAPES = {"first.weight": (2, 3), "second.weight": (4,)}


def checkpoint(folder: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Path:
    folder.mkdir(parents=True)
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def parent(tmp_path: Path, *names: str) -> Path:
    for name in names:
        checkpoint(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("checkpoint-1000", "checkpoint-50", "checkpoint-200"), (50, 200, 1000)),
        (("step143000", "step0", "step1000"), (0, 1000, 143000)),
        (("step_20", "step-3"), (3, 20)),
        (("chck_10M", "chck_1M", "chck_900k"), (900_000, 1_000_000, 10_000_000)),
    ],
)
def test_checkpoints_are_ordered_by_the_numbers_in_their_names(
    tmp_path: Path, names: tuple[str, ...], steps: tuple[int, ...]
) -> None:
    folder = parent(tmp_path, *names)
    (folder / "runs").mkdir()
    (folder / "config.json").touch()
    found = checkpoint_folders(folder)
    assert tuple(step for step, _ in found) == steps
    assert {path.name for _, path in found} == set(names)
    # In Python the folder, or the folders in any order.
    assert hugging_face_trajectory(folder).files == tuple(found)
    assert hugging_face_trajectory(str(folder)).steps == steps
    assert hugging_face_trajectory([folder / name for name in names]).files == tuple(found)
    assert hugging_face_steps([Path(name) for name in names]) == steps


def test_names_of_two_patterns_define_no_order(tmp_path: Path) -> None:
    names = ["step30", "checkpoint-10"]
    assert [step for step, _ in in_step_order([Path(name) for name in names])] == [1, 2]
    with pytest.raises(CheckpointError, match="of one kind; got 'checkpoint-10' beside 'step30'"):
        checkpoint_folders(parent(tmp_path, *names))


def test_a_step_under_two_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="each step once; got step 1000 twice"):
        checkpoint_folders(parent(tmp_path, "chck_1k", "chck_1000"))


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="such as 'checkpoint-1000', 'step1000' or 'chck_1M'"):
        checkpoint_folders(tmp_path)
    with pytest.raises(CheckpointError, match="must be a folder with checkpoints; there is none"):
        checkpoint_folders(tmp_path / "missing")


def test_revisions_in_the_cache_of_the_hub_are_checkpoints(tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    for name, commit in {"step10": "c0ffee", "step2": "facade", "main": "decade"}.items():
        checkpoint(cache / "snapshots" / commit)
        (cache / "refs" / name).write_text(f"{commit}\n")
    snapshots = cache / "snapshots"
    assert checkpoint_folders(cache) == [(2, snapshots / "facade"), (10, snapshots / "c0ffee")]


def test_a_checkpoint_is_described_from_its_files(tmp_path: Path) -> None:
    folder = parent(tmp_path, "checkpoint-5")
    (state := folder / "checkpoint-5" / "trainer_state.json").write_text(
        '{"log_history": [{"eval_loss": 0.25, "step": 5}]}'
    )
    (found,) = inspect(checkpoint_folders(folder))
    assert (found.step, found.parameters, found.dtype, found.loss) == (5, 10, "F32", 0.25)
    assert found.num_bytes == (folder / "checkpoint-5" / "model.safetensors").stat().st_size
    assert not found.fault
    state.write_text("{}")
    (found,) = inspect(checkpoint_folders(folder))
    assert "must hold the 'log_history' of a Trainer" in found.fault


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        ({"first.weight": (2, 3)}, "'second.weight' is missing"),
        (SHAPES | {"third": (1,)}, "'third' is not in it"),
        (SHAPES | {"first.weight": (3, 3)}, r"'first.weight' has shape (3, 3) instead of (2, 3)"),
    ],
)
def test_a_checkpoint_of_another_model_is_faulty(
    tmp_path: Path, shapes: Mapping[str, tuple[int, ...]], fault: str
) -> None:
    checkpoint(tmp_path / "step1")
    checkpoint(tmp_path / "step2", shapes)
    first, second = inspect(checkpoint_folders(tmp_path))
    assert not first.fault
    assert second.fault.endswith(fault)


def test_a_cut_file_and_a_missing_one_are_faulty_and_do_not_set_the_shapes(tmp_path: Path) -> None:
    folder = parent(tmp_path, "step1", "step2", "step3")
    file = folder / "step1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    (folder / "step2" / "model.safetensors").unlink()
    faults = [found.fault for found in inspect(checkpoint_folders(folder))]
    assert "must be a safetensors file" in faults[0]
    assert "is listed as a checkpoint and must exist" in faults[1]
    assert not faults[2]


def test_another_tokenizer_is_noted(tmp_path: Path) -> None:
    folders = checkpoint_folders(parent(tmp_path, "step1", "step2", "step3"))
    assert not tokenizer_note(folders)
    for (_, folder), text in zip(folders, ("{}", "{}", "{ }"), strict=True):
        (folder / "tokenizer.json").write_text(text)
    assert not tokenizer_note(folders[:2])
    assert tokenizer_note(folders) == "tokenizer.json of step 3 differs from that of step 1"
