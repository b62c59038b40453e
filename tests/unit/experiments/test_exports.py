"""Hugging Face models leave a folder of their own; others leave none."""

from pathlib import Path

from torch import nn

from curricle.experiments.exports import EXPORT, export


class Exportable(nn.Module):
    """Stands for a Hugging Face model."""

    def save_pretrained(self, save_directory: str) -> None:
        Path(save_directory).mkdir()


def test_a_hugging_face_model_is_written_below_its_run_folder(tmp_path: Path) -> None:
    export(Exportable(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [EXPORT]


def test_any_other_model_is_left_alone(tmp_path: Path) -> None:
    export(nn.Identity(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_written() -> None:
    export(Exportable(), None)


def test_the_tokenizer_is_written_beside_the_model(tmp_path: Path) -> None:
    export(Exportable(), tmp_path, lambda folder: (folder / "tokenizer.json").touch())
    assert (tmp_path / EXPORT / "tokenizer.json").is_file()
