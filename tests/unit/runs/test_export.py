"""Hugging Face models leave a folder of their own; others leave none."""

from pathlib import Path

import pytest
from safetensors import SafetensorError
from torch import nn

from curricle.errors import CheckpointError
from curricle.runs.export import EXPORT, write_model


class Exportable(nn.Module):
    """Stands for a Hugging Face model."""

    def save_pretrained(self, save_directory: str) -> None:
        (Path(save_directory) / "config.json").write_text("{}")


def test_a_hugging_face_model_is_written_below_its_run_folder(tmp_path: Path) -> None:
    write_model(Exportable(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [EXPORT]


def test_an_export_on_a_full_disk_leaves_nothing_and_is_told(tmp_path: Path) -> None:
    class Full(Exportable):
        def save_pretrained(self, save_directory: str) -> None:
            super().save_pretrained(save_directory)
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"model' cannot be written: .*No space left"):
        write_model(Full(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_an_earlier_one_but_no_link(tmp_path: Path) -> None:
    write_model(Exportable(), tmp_path)
    write_model(Exportable(), tmp_path)
    (tmp_path / EXPORT).rename(tmp_path / "precious")
    (tmp_path / EXPORT).symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"must be a folder to be replaced; it is a symbol"):
        write_model(Exportable(), tmp_path)
    assert (tmp_path / "precious" / "config.json").is_file()


def test_any_other_model_is_left_alone(tmp_path: Path) -> None:
    write_model(nn.Identity(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_written() -> None:
    write_model(Exportable(), None)


def test_the_tokenizer_is_written_beside_the_model(tmp_path: Path) -> None:
    write_model(Exportable(), tmp_path, lambda folder: (folder / "tokenizer.json").touch())
    assert (tmp_path / EXPORT / "tokenizer.json").is_file()
