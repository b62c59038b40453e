"""Files and folders appear whole or not at all."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from curricle.errors import CheckpointError
from curricle.files import (
    inside,
    new_file,
    new_folder,
    remove_folder,
    remove_leftovers,
    usable_folder,
    write_bytes,
    write_text,
)


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


# --- links, places, leftovers ---------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match=r"/a' cannot be written: No space left on device"):
        write_text(tmp_path / "a", "text")
    assert names(tmp_path) == []


def test_a_folder_on_a_full_disk_is_one_sentence_and_keeps_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "old", "old")

    def fill() -> None:
        with new_folder(tmp_path / "a"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match=r"/a' cannot be written: No space left on device$"):
        fill()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


def test_nothing_is_written_through_a_link_of_the_temporary_name(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".a.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()


def test_a_folder_is_removed_with_its_content(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c", "text")
    remove_folder(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_removal_that_is_cut_off_leaves_what_the_next_writer_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(_path: Path) -> None:
        raise KilledError

    write_text(tmp_path / "a" / "b", "text")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KilledError):
            remove_folder(tmp_path / "a")
    assert "a" not in names(tmp_path)
    assert names(tmp_path)
    remove_leftovers(tmp_path, "a")
    assert names(tmp_path) == []


def test_a_link_is_neither_replaced_nor_removed_as_a_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "precious" / "file", "mine")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"must be a folder to be removed; it is a symbolic"):
        remove_folder(tmp_path / "link")
    with (
        pytest.raises(CheckpointError, match=r"must be a folder to be replaced; it is a symbolic"),
        new_folder(tmp_path / "link"),
    ):
        pass
    assert (tmp_path / "link" / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/x", "..", ".", "", "a\\x", "c:x", "a\0", "x" * 256, "ü" * 130, "\ud800"],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"must list plain names of files inside it; got "):
        inside(tmp_path, name)


def test_a_plain_name_is_a_file_of_its_folder_unless_it_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert inside(tmp_path, "a..b") == tmp_path / "a..b"
    with pytest.raises(CheckpointError, match=r"must be a file of its folder; it is a symbolic"):
        inside(tmp_path, "b")


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("", r"got an empty text$"),
        ("a\0b", r"with a zero byte$"),
        ("x" * 300, r"got a name of 300 bytes, at most 255 are allowed: 'xxx"),
        ("ü" * 200, r"got a name of 400 bytes"),
        ("file", r"where the file 'file' exists$"),
        ("file/run", r"where the file 'file' exists$"),
    ],
)
def test_what_can_be_no_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(CheckpointError, match=r"^'output_dir' must be a folder .*" + told):
        usable_folder(folder, "output_dir")


@pytest.mark.parametrize("folder", ["new", "new/deep", "x" * 255, "a b[/bold]"])
def test_what_can_be_a_folder_is_taken(tmp_path: Path, folder: str) -> None:
    assert usable_folder(tmp_path / folder, "output_dir") == tmp_path / folder


def test_leftovers_of_killed_writers_go_and_other_files_stay(tmp_path: Path) -> None:
    for name in (
        ".a.17.tmp",
        ".tmpAb3xYz",
        ".tmp_other",
        ".b.17.tmp",
        ".a.tmp",
        "a",
        ".a.17.tmp.mine",
    ):
        (tmp_path / name).touch()
    (tmp_path / ".a-abcdefgh" / "new").mkdir(parents=True)
    (tmp_path / ".a-abcdefghi").mkdir()
    (tmp_path / ".a.18.tmp").symlink_to(tmp_path / "a")
    remove_leftovers(tmp_path, "a")
    assert names(tmp_path) == sorted(
        [".tmp_other", ".b.17.tmp", ".a.tmp", "a", ".a.17.tmp.mine", ".a-abcdefghi", ".a.18.tmp"]
    )
    remove_leftovers(tmp_path / "nowhere", "a")
