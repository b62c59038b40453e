"""Files and folders appear whole or not at all."""

import os
from pathlib import Path

import pytest

from curricle.files import new_file, new_folder, write_bytes, write_text


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


def test_a_file_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_file(tmp_path / "a") as file:
            file.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert names(tmp_path) == []


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, list[str]]] = []

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append((path.name, names(tmp_path)))

    monkeypatch.setattr(os, "fsync", note)
    with new_file(tmp_path / "a") as file:
        file.touch()
    assert flushed == [(file.name, [file.name]), (tmp_path.name, ["a"])]


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


def test_a_folder_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_below_a_folder_are_flushed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda number: flushed.append(Path(f"/proc/self/fd/{number}").readlink().name)
    )
    with new_folder(tmp_path / "a") as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").touch()
    assert sorted(flushed) == sorted(["file", "below", "new", tmp_path.name])


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "old").touch()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="disk full"), new_folder(tmp_path / "a") as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


def test_the_old_folder_is_whole_until_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "old").touch()
    remaining: list[list[str]] = []
    rename = Path.rename

    def watch(self: Path, target: Path) -> Path:
        remaining.append(sorted(path.name for path in tmp_path.rglob("old") if path.is_file()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    with new_folder(tmp_path / "a") as folder:
        pass
    assert remaining == [["old"], ["old"]]


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
