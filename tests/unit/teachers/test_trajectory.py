"""Checkpoints on disk: what is written is found again, and what is damaged is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.errors import BindError, CheckpointError
from curricle.models.mlp import MLP
from curricle.models.wrapping import tapped
from curricle.teachers.trajectory import (
    MANIFEST,
    TrajectoryWriter,
    hugging_face_steps,
    hugging_face_trajectory,
    open_trajectory,
)


def mlp(seed: int = 0, widths: tuple[int, ...] = (4,)) -> MLP:
    with seeding.scoped(seed, "teacher"):
        return MLP(3, widths, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a trajectory of three checkpoints; checkpoint n holds the weights of seed n."""
    writer = TrajectoryWriter(tmp_path / "trajectory", [10, 20, 30])
    for step in (10, 20, 30):
        writer.save(mlp(step), step)
    return tmp_path / "trajectory"


def file(folder: Path, step: int) -> Path:
    return open_trajectory(folder).path(step)


def test_the_steps_are_listed_in_order(folder: Path) -> None:
    assert open_trajectory(folder).steps == (10, 20, 30)


@pytest.mark.parametrize("step", [10, 30])
def test_the_weights_of_a_checkpoint_are_those_that_were_saved(folder: Path, step: int) -> None:
    module, saved = mlp(), mlp(step)
    open_trajectory(folder).load(module, step)
    assert torch.equal(module.head.weight, saved.head.weight)


def test_checkpoints_written_out_of_order_are_listed_in_order(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path, [1, 2])
    for step in (2, 1, 2):
        writer.save(mlp(), step)
    assert open_trajectory(tmp_path).steps == (1, 2)


def test_a_second_writer_adds_to_the_first(folder: Path) -> None:
    TrajectoryWriter(folder, [40]).save(mlp(), 40)
    assert open_trajectory(folder).steps == (10, 20, 30, 40)


def test_nothing_is_written_before_the_first_checkpoint(tmp_path: Path) -> None:
    assert TrajectoryWriter(tmp_path / "later", [1]).steps == {1}
    assert not (tmp_path / "later").exists()


def test_a_trajectory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest.json' must list the steps .*No such file"):
        open_trajectory(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"steps": 5}', '{"steps": ["x"]}', '{"steps": [1], "losses": [1]}'],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest.json' must list the steps"):
        open_trajectory(tmp_path)


def test_a_checkpoint_that_is_listed_must_be_there(folder: Path) -> None:
    file(folder, 20).unlink()
    with pytest.raises(CheckpointError, match=r"000020.*' is listed as a checkpoint and must"):
        open_trajectory(folder)


def test_a_checkpoint_that_is_not_listed_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(
        BindError, match=r"^'teacher' checkpoint must be one of \[10, 20, 30\]; got 25$"
    ):
        open_trajectory(folder).check(mlp(), [10, 25])


def test_a_checkpoint_that_vanishes_after_opening_is_refused(folder: Path) -> None:
    opened = open_trajectory(folder)
    opened.path(20).unlink()
    with pytest.raises(CheckpointError, match=r"must be a safetensors file; there is none$"):
        opened.check(mlp(), [20])


def test_a_checkpoint_that_was_cut_is_refused(folder: Path) -> None:
    path = file(folder, 20)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"000020.safetensors' must be a safetensors file: "):
        open_trajectory(folder).check(mlp(), [10, 20])


def test_a_checkpoint_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold this model's weights; "):
        open_trajectory(folder).check(mlp(widths=(5,)), [10])


def test_the_manifest_holds_steps_losses_and_hashes(folder: Path) -> None:
    listed = json.loads((folder / MANIFEST).read_text())
    files = [folder / f"step-{step:09d}.safetensors" for step in (10, 20, 30)]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    del listed["check"]
    assert listed == {
        "steps": [10, 20, 30],
        "losses": [],
        "sha256": [[step, one] for step, one in zip((10, 20, 30), hashes, strict=True)],
    }


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.999])
def test_a_flipped_bit_of_a_checkpoint_is_noticed(folder: Path, place: float) -> None:
    path, opened = file(folder, 20), open_trajectory(folder)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"000020\.safetensors"):
        opened.check(mlp(), [20])
    with pytest.raises(CheckpointError, match=r"000020\.safetensors"):
        opened.load(mlp(), 20)


def test_another_checkpoint_in_the_place_of_one_is_noticed(folder: Path) -> None:
    file(folder, 20).write_bytes(file(folder, 30).read_bytes())
    with pytest.raises(CheckpointError, match=r"000020.* is damaged or of another run"):
        open_trajectory(folder).check(mlp(), [20])


def test_a_changed_byte_of_the_manifest_is_noticed(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content.replace(b"20,", b"21,"))
    with pytest.raises(CheckpointError, match=r"manifest.json' must list .* does not match its 'c"):
        open_trajectory(folder)


@pytest.mark.parametrize("steps", ["[2, 1]", "[1, 1]", "[-1]"])
def test_steps_that_do_not_ascend_from_zero_are_refused(tmp_path: Path, steps: str) -> None:
    (tmp_path / MANIFEST).write_text(f'{{"steps": {steps}}}')
    with pytest.raises(CheckpointError, match=r"must list steps that ascend from 0; got"):
        open_trajectory(tmp_path)


def test_a_checkpoint_that_is_a_link_is_refused(folder: Path) -> None:
    path = file(folder, 20)
    path.unlink()
    path.symlink_to(folder / "step-000000030.safetensors")
    with pytest.raises(CheckpointError, match=r"000020.* it is a symbolic link"):
        open_trajectory(folder)


def test_losses_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path, [1, 2])
    for step, loss in ((2, 0.25), (1, 0.75), (2, 0.5)):
        writer.save(mlp(), step, loss)
    assert open_trajectory(tmp_path).losses == ((1, 0.75), (2, 0.5))


def test_a_trajectory_of_an_earlier_version_has_no_losses(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"steps": [10, 20]}')
    found = open_trajectory(folder)
    assert (found.steps, found.losses) == ((10, 20), ())


# --- Hugging Face folders -------------------------------------------------------------------------


def bert(seed: int) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=6,
    )
    with seeding.scoped(seed, "teacher"):
        return transformers.BertForMaskedLM(config)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Return two checkpoints as the Trainer of transformers leaves them."""
    made = [tmp_path / "checkpoint-50", tmp_path / "checkpoint-100"]
    for seed, folder in enumerate(made):
        bert(seed).save_pretrained(folder)
    return made


def logits(module: nn.Module) -> torch.Tensor:
    module.eval()
    with torch.no_grad(), tapped(module).open_taps((), logits=True) as forward:
        shown = forward(torch.arange(6).view(1, 6)).logits
    assert shown is not None
    return shown


def test_folders_of_the_trainer_give_their_steps(folders: list[Path]) -> None:
    assert hugging_face_trajectory(folders).steps == (50, 100)


def note_losses(folder: Path, losses: dict[int, float]) -> None:
    noted = [{"eval_loss": loss, "step": step} for step, loss in losses.items()]
    history = [{"loss": 9.0, "step": 50}, *noted]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def test_the_losses_that_the_trainer_has_noted_are_read(folders: list[Path]) -> None:
    note_losses(folders[0], {50: 0.7})
    note_losses(folders[1], {50: 0.7, 100: 0.1})
    assert hugging_face_trajectory(folders).losses == ((50, 0.7), (100, 0.1))


def test_a_checkpoint_that_the_trainer_has_not_evaluated_has_no_loss(folders: list[Path]) -> None:
    note_losses(folders[1], {60: 0.7})
    assert hugging_face_trajectory(folders).losses == ()


def test_a_damaged_state_of_the_trainer_is_refused(folders: list[Path]) -> None:
    (folders[0] / "trainer_state.json").write_text('{"log_history": [{"eval_loss": 1}]}')
    with pytest.raises(CheckpointError, match=r"trainer_state.json' must hold the 'log_history'"):
        hugging_face_trajectory(folders)


def test_hugging_face_checkpoints_load_into_the_model(folders: list[Path]) -> None:
    module = bert(7)
    trajectory = hugging_face_trajectory(folders)
    trajectory.check(module, trajectory.steps)
    trajectory.load(module, 100)
    assert torch.equal(logits(module), logits(bert(1)))
    trajectory.load(module, 50)
    assert torch.equal(logits(module), logits(bert(0)))


def test_folders_of_other_names_are_numbered(folders: list[Path]) -> None:
    renamed = [folder.rename(folder.with_name(f"epoch-{n}")) for n, folder in enumerate(folders)]
    assert hugging_face_trajectory(renamed).steps == (1, 2)


def test_folders_are_put_in_the_order_of_their_steps(folders: list[Path]) -> None:
    """As `sorted(Path("run").glob("checkpoint-*"))` gives them, checkpoint-100 before -50."""
    by_name = sorted(folders)
    assert [folder.name for folder in by_name] == ["checkpoint-100", "checkpoint-50"]
    trajectory = hugging_face_trajectory(by_name)
    assert trajectory.files == ((50, folders[0]), (100, folders[1]))


def test_losses_stay_with_their_steps_when_folders_are_put_in_order(folders: list[Path]) -> None:
    note_losses(folders[0], {50: 0.7})
    note_losses(folders[1], {100: 0.1})
    assert hugging_face_trajectory(sorted(folders)).losses == ((50, 0.7), (100, 0.1))


def test_a_step_that_comes_twice_is_refused(folders: list[Path]) -> None:
    with pytest.raises(CheckpointError, match=r"^'folders' must have each step once; got step 50 "):
        hugging_face_trajectory([*folders, folders[0]])


def test_folders_without_steps_keep_their_order(tmp_path: Path) -> None:
    names = [tmp_path / "late", tmp_path / "checkpoint-3", tmp_path / "early"]
    assert hugging_face_steps(names) == (1, 2, 3)


def test_a_trajectory_has_at_least_one_folder() -> None:
    with pytest.raises(CheckpointError, match=r"^'folders' must be at least one; got none$"):
        hugging_face_trajectory([])


def test_the_steps_of_folders_are_known_before_they_are_there() -> None:
    assert hugging_face_steps([Path("checkpoint-7"), Path("checkpoint-9")]) == (7, 9)


def test_a_folder_without_weights_is_refused(folders: list[Path]) -> None:
    (folders[1] / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-100.* is listed as a checkpoint"):
        hugging_face_trajectory(folders)


def test_temporary_files_of_a_killed_process_are_removed_and_no_others(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path, [1])
    writer.save(mlp(), 1)
    kept = sorted(path.name for path in tmp_path.iterdir())
    for name in (".step-000000002.safetensors.12.tmp", ".manifest.json.12.tmp", ".tmpAb12Cd"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".notes").write_bytes(b"of the user")
    writer.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".notes"])
