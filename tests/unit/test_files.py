"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from curricle.files import new_folder, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "größer")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "größer"


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"long before")
    write_bytes(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"after"
    assert names(tmp_path) == ["a"]


def test_a_file_keeps_its_content_if_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a", "before")

    def full(self: Path, data: bytes) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "a", "after")
    assert (tmp_path / "a").read_text() == "before"


def test_a_folder_appears_when_it_is_filled(tmp_path: Path) -> None:
    with new_folder(tmp_path / "runs" / "a") as folder:
        (folder / "one").write_text("1")
        assert not (tmp_path / "runs" / "a").exists()
    assert (tmp_path / "runs" / "a" / "one").read_text() == "1"
    assert names(tmp_path / "runs") == ["a"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "a") as folder:
            (folder / name).touch()
    assert names(tmp_path / "a") == ["new"]


def test_a_failure_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "old").touch()

    def fail() -> None:
        with new_folder(tmp_path / "a") as folder:
            (folder / "new").touch()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


def test_a_folder_that_someone_else_has_made_meanwhile_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a", keep_if_holds="done") as folder:
        (folder / "done").write_text("mine")
        with new_folder(tmp_path / "a", keep_if_holds="done") as faster:
            (faster / "done").write_text("theirs")
    assert (tmp_path / "a" / "done").read_text() == "theirs"
    assert names(tmp_path) == ["a"]


def test_a_half_made_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "half").touch()
    with (
        pytest.raises(OSError, match="not empty"),
        new_folder(tmp_path / "a", keep_if_holds="done") as folder,
    ):
        (folder / "done").touch()
    assert names(tmp_path) == ["a"]
