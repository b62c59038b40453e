"""A folder has one writer, who is named to the second; nobody who is gone keeps it."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import curricle
from curricle.errors import CheckpointError
from curricle.locks import COMMAND_LOCK, LOCK, locked

NOTE = f"{LOCK}-owner"


def enter(folder: Path, **options: str) -> None:
    with locked(folder, **options):
        pass


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    told = (
        rf"one writer at a time; process {os.getpid()} on '{platform.node()}', since \d{{4}}-.*; "
    )
    with locked(tmp_path), pytest.raises(CheckpointError, match=told + "wait$"):
        enter(tmp_path, remedy="wait")


def test_a_folder_is_free_after_its_writer(tmp_path: Path) -> None:
    for _ in range(2):
        enter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_folder_is_free_after_a_writer_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    enter(tmp_path)


def test_locks_of_other_names_and_folders_do_not_meet(tmp_path: Path) -> None:
    with locked(tmp_path), locked(tmp_path, name=COMMAND_LOCK), locked(tmp_path / "below"):
        assert (tmp_path / "below").is_dir()


@pytest.mark.parametrize("note", ["{", "[]", "{}", json.dumps({"pid": 1})])
def test_an_owner_without_a_readable_note_is_another_process(tmp_path: Path, note: str) -> None:
    with locked(tmp_path):
        (tmp_path / NOTE).write_text(note)
        with pytest.raises(CheckpointError, match=r"time; another process writes into it$"):
            enter(tmp_path)


def test_the_note_of_a_process_that_is_gone_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / NOTE).write_text(json.dumps({"pid": 2**22, "host": "gone", "started": "once"}))
    with locked(tmp_path):
        assert json.loads((tmp_path / NOTE).read_text())["pid"] == os.getpid()


def test_nothing_is_written_through_a_link_in_the_place_of_the_note(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / NOTE).symlink_to(tmp_path / "precious")
    enter(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/\.lock' cannot be written: "):
        enter(tmp_path / "file")


@pytest.mark.integration
def test_a_killed_process_leaves_the_folder_free(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, curricle.locks as locks\n"
        "with locks.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    source = str(Path(str(curricle.__file__)).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"process {process.pid} on "):
            enter(tmp_path)
        process.kill()
    enter(tmp_path)
