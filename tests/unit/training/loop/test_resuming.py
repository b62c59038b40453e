"""A run folder is checked before anything in it is believed, and has one writer."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from curricle.checksums import SEAL
from curricle.curriculum.strategies import one_shot
from curricle.errors import CheckpointError
from curricle.locks import LOCK, locked
from curricle.models.tapped import TappedModel
from curricle.records import RECORDS, EndRecord, Record, RecordWriter, RunRecord, read_records
from curricle.training.distill import execute
from curricle.training.loop.checkpoints import CHECKPOINTS, OPTIMIZER, STATE, STUDENT
from curricle.training.loop.resuming import FINISHED, RunFolder, owner_of
from curricle.training.loop.run_outputs import Outputs
from tests.parts import bound, mlp, parity

STEPS = 8


class Whole(NamedTuple):
    """A run that nothing has disturbed."""

    folder: Path
    end: EndRecord
    student: nn.Module


class CutError(Exception):
    """Stands for a kill."""


def evaluate(model: TappedModel) -> dict[str, float]:
    return {"accuracy": 0.5}


def run(
    folder: Path, *observers: Callable[[Record], None], resume: bool = False, seed: int = 0
) -> tuple[EndRecord, nn.Module]:
    settings = {"save_every": 3, "log_every": 1, "eval_every": 4}
    bound_run = bound(one_shot(total=f"{STEPS} steps"), settings=settings, stream=parity(seed=seed))
    outputs = Outputs(folder=folder, observers=observers)
    end = execute(bound_run, evaluate, metric="accuracy", outputs=outputs, resume=resume)
    return end, bound_run.student.module


def cut_at(step: int) -> Callable[[Record], None]:
    def observe(record: Record) -> None:
        if record.kind == "step" and record.usage.steps == step:
            raise CutError

    return observe


def begun(folder: Path) -> Path:
    """Return the folder of a run that was cut after its fifth step, with a checkpoint at 3."""
    with pytest.raises(CutError):
        run(folder, cut_at(5))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return a finished run, whose folder is to be copied."""
    folder = tmp_path_factory.mktemp("whole")
    return Whole(folder, *run(folder))


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as `begun` leaves it; it is to be copied."""
    return begun(tmp_path_factory.mktemp("begun"))


def copied(source: Path, folder: Path) -> Path:
    """Return a folder with what is in another one."""
    return Path(shutil.copytree(source, folder, dirs_exist_ok=True))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


PLACES = pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.75, 0.9999])


@PLACES
@pytest.mark.parametrize("name", [RECORDS, FINISHED, SEAL])
def test_a_flipped_bit_in_a_finished_run_is_noticed(
    tmp_path: Path, whole: Whole, name: str, place: float
) -> None:
    copied(whole.folder, tmp_path)
    flip(tmp_path / name, place)
    with pytest.raises(CheckpointError, match=name):
        run(tmp_path, resume=True)


@PLACES
def test_a_flipped_bit_in_the_records_of_a_begun_run_is_noticed(
    tmp_path: Path, cut_run: Path, place: float
) -> None:
    flip(copied(cut_run, tmp_path) / RECORDS, place)
    with pytest.raises(CheckpointError, match=RECORDS):
        list(read_records(tmp_path / RECORDS))
    with pytest.raises(CheckpointError, match=RECORDS):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_lines_that_are_missing_at_the_end_of_a_finished_run_are_noticed(
    tmp_path: Path, whole: Whole, lines: int
) -> None:
    copied(whole.folder, tmp_path)
    written = (tmp_path / RECORDS).read_bytes().splitlines(keepends=True)
    (tmp_path / RECORDS).write_bytes(b"".join(written[:-lines]))
    with pytest.raises(CheckpointError, match=r"records.jsonl' must hold \d+ bytes as .*; one"):
        list(read_records(tmp_path / RECORDS))


@pytest.mark.parametrize("name", [RECORDS, FINISHED])
def test_a_file_of_another_run_is_noticed(tmp_path: Path, name: str) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(CheckpointError, match=name):
        run(tmp_path / "a", resume=True)


def test_records_of_the_same_run_at_another_time_do_not_go_with_a_checkpoint(
    tmp_path: Path,
) -> None:
    """Seconds differ, so the bytes differ though the run is the same."""
    begun(tmp_path / "a")
    begun(tmp_path / "b")
    (tmp_path / "a" / RECORDS).write_bytes((tmp_path / "b" / RECORDS).read_bytes())
    with pytest.raises(CheckpointError, match=r"records.jsonl' must begin with the \d+ bytes"):
        run(tmp_path / "a", resume=True)


def test_a_byte_that_is_no_text_is_named_with_its_line(tmp_path: Path, cut_run: Path) -> None:
    path = copied(cut_run, tmp_path) / RECORDS
    path.write_bytes(path.read_bytes().replace(b'"stage"', b'"st\xffge"', 1))
    with pytest.raises(CheckpointError, match=r"records.jsonl' line 2 is not a record: "):
        list(read_records(path))


def test_a_finished_run_without_its_manifest_is_checked_by_its_records(tmp_path: Path) -> None:
    """As a crash between the last record and the manifest leaves it."""
    end, _ = run(tmp_path)
    (tmp_path / SEAL).rename(tmp_path / f".{SEAL}.123.tmp")
    assert run(tmp_path, resume=True)[0] == end
    assert (tmp_path / SEAL).is_file()
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / SEAL).unlink()
    flip(tmp_path / FINISHED, 0.9)
    with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged or of another run"):
        run(tmp_path, resume=True)


def test_a_kill_before_older_checkpoints_were_removed_leaves_them_to_the_next_start(
    tmp_path: Path, cut_run: Path
) -> None:
    checkpoints = copied(cut_run, tmp_path) / CHECKPOINTS
    (only,) = checkpoints.iterdir()
    for step in (1, 2):
        shutil.copytree(only, checkpoints / f"step-{step:09d}")
    with pytest.raises(CutError):
        run(tmp_path, cut_at(4), resume=True)
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-000000002",
        "step-000000003",
    ]


def test_missing_weights_of_a_finished_run_are_told(tmp_path: Path, whole: Whole) -> None:
    copied(whole.folder, tmp_path)
    (tmp_path / FINISHED).unlink()
    with pytest.raises(CheckpointError, match=r"must hold the weights of the finished run; there"):
        run(tmp_path, resume=True)


def test_a_run_may_begin_anew_where_only_the_records_are_gone(tmp_path: Path, whole: Whole) -> None:
    copied(whole.folder, tmp_path)
    (tmp_path / RECORDS).unlink()
    for path in (tmp_path / CHECKPOINTS).rglob("*"):
        if path.is_file():
            path.unlink()
    end, _ = run(tmp_path)
    assert list(read_records(tmp_path / RECORDS))[-1] == end


@PLACES
@pytest.mark.parametrize("name", [SEAL, STATE, STUDENT, OPTIMIZER])
def test_without_its_damaged_checkpoint_a_run_begins_anew_and_ends_as_ever(
    tmp_path: Path, whole: Whole, cut_run: Path, name: str, place: float
) -> None:
    folder = copied(cut_run, tmp_path / "begun")
    checkpoint = folder / CHECKPOINTS / "step-000000003"
    flip(checkpoint / name, place)
    with pytest.raises(CheckpointError, match=rf"; remove the folder '{checkpoint}': an unfin"):
        run(folder, resume=True)
    shutil.rmtree(checkpoint)
    end, student = run(folder, resume=True)
    assert end.weights == whole.end.weights
    assert same(student, whole.student)


@pytest.mark.parametrize("name", [SEAL, STATE])
def test_without_its_damaged_checkpoint_a_finished_run_gives_its_student(
    tmp_path: Path, whole: Whole, name: str
) -> None:
    copied(whole.folder, tmp_path)
    checkpoint = tmp_path / CHECKPOINTS / "step-000000006"
    flip(checkpoint / name, 0.5)
    with pytest.raises(CheckpointError, match=rf"; remove the folder '{checkpoint}'"):
        run(tmp_path, resume=True)
    shutil.rmtree(checkpoint)
    end, student = run(tmp_path, resume=True)
    assert end == whole.end
    assert same(student, whole.student)


def test_without_its_damaged_checkpoint_a_run_goes_on_from_an_older_one(
    tmp_path: Path, whole: Whole, cut_run: Path
) -> None:
    """As a crash between writing a checkpoint and removing the one before it leaves them."""
    older = copied(cut_run, tmp_path / "begun") / CHECKPOINTS / "step-000000003"
    newer = older.with_name("step-000000006")
    shutil.copytree(older, newer)
    flip(newer / SEAL, 0.5)
    with pytest.raises(CheckpointError, match=rf"; remove the folder '{newer}'"):
        run(tmp_path / "begun", resume=True)
    shutil.rmtree(newer)
    seen: list[int] = []
    end, student = run(tmp_path / "begun", lambda each: seen.append(steps_of(each)), resume=True)
    assert (end.weights, min(filter(None, seen))) == (whole.end.weights, 4)
    assert same(student, whole.student)


@PLACES
def test_the_ways_out_of_damaged_records_lead_out(
    tmp_path: Path, whole: Whole, cut_run: Path, place: float
) -> None:
    folder = copied(cut_run, tmp_path / "begun")
    content = (folder / RECORDS).read_bytes()
    flip(folder / RECORDS, place)
    with pytest.raises(
        CheckpointError, match=rf"; restore it, or move the folder '{folder}' away and run again$"
    ):
        run(folder, resume=True)
    folder.rename(tmp_path / "away")
    end, student = run(folder, resume=True)
    assert end.weights == whole.end.weights
    assert same(student, whole.student)
    (tmp_path / "away" / RECORDS).write_bytes(content)
    end, student = run(tmp_path / "away", resume=True)
    assert end.weights == whole.end.weights
    assert same(student, whole.student)


@PLACES
def test_without_its_damaged_manifest_a_finished_run_is_as_before(
    tmp_path: Path, whole: Whole, place: float
) -> None:
    copied(whole.folder, tmp_path)
    content = (tmp_path / SEAL).read_bytes()
    flip(tmp_path / SEAL, place)
    with pytest.raises(CheckpointError, match=r"manifest.json' must hold .*; remove this file: "):
        run(tmp_path, resume=True)
    (tmp_path / SEAL).unlink()
    assert run(tmp_path, resume=True)[0] == whole.end
    assert (tmp_path / SEAL).read_bytes() == content


def steps_of(record: Record) -> int:
    return 0 if isinstance(record, RunRecord) else record.usage.steps


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return all(torch.equal(left[name], right[name]) for name in right)


# --- one writer -----------------------------------------------------------------------------------


def test_a_second_writer_of_a_begun_run_is_refused_and_nothing_changes(
    tmp_path: Path, cut_run: Path
) -> None:
    before = (copied(cut_run, tmp_path) / RECORDS).read_bytes()
    told = rf"must have one writer at a time; process {os.getpid()} on"
    with locked(tmp_path), pytest.raises(CheckpointError, match=told):
        run(tmp_path, resume=True)
    assert (tmp_path / RECORDS).read_bytes() == before


def test_a_run_inside_a_run_of_the_same_folder_is_refused(tmp_path: Path) -> None:
    def again(record: Record) -> None:
        if record.kind == "step":
            run(tmp_path, resume=True)

    with pytest.raises(CheckpointError, match=r"must have one writer at a time"):
        run(tmp_path, again)


def test_a_finished_run_needs_no_lock(tmp_path: Path) -> None:
    end, _ = run(tmp_path)
    with locked(tmp_path):
        assert run(tmp_path, resume=True)[0] == end


def test_the_lock_is_given_back_however_a_run_ends(tmp_path: Path) -> None:
    begun(tmp_path)
    run(tmp_path, resume=True)
    assert [path.name for path in tmp_path.glob(".*")] == [LOCK]


def test_what_a_killed_writer_left_is_removed_when_its_run_goes_on(
    tmp_path: Path, cut_run: Path
) -> None:
    copied(cut_run, tmp_path)
    (tmp_path / CHECKPOINTS / ".step-000000006-abcd_123" / "new").mkdir(parents=True)
    (tmp_path / f".{FINISHED}.99.tmp").touch()
    run(tmp_path, resume=True)
    left = {path.name for path in tmp_path.rglob(".*")}
    assert left == {LOCK}


def test_runs_that_go_on_after_a_kill_end_as_those_that_do_not(
    tmp_path: Path, whole: Whole, cut_run: Path
) -> None:
    copied(cut_run, tmp_path)
    assert same(run(tmp_path, resume=True)[1], whole.student)


# --- links and disks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RECORDS, CHECKPOINTS])
def test_a_link_in_a_run_folder_is_not_written_through(
    tmp_path: Path, cut_run: Path, name: str
) -> None:
    copied(cut_run, tmp_path / "a")
    place = tmp_path / "a" / name
    place.rename(tmp_path / "precious")
    place.symlink_to(tmp_path / "precious")
    files = [tmp_path / "precious", *(tmp_path / "precious").rglob("*")]
    before = {path: path.read_bytes() for path in files if path.is_file()}
    with pytest.raises(CheckpointError, match=rf"{name}' must be .*symbolic link"):
        run(tmp_path / "a", resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_full_disk_ends_a_run_with_a_sentence_and_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RecordWriter.write

    def full(self: RecordWriter, record: Record) -> None:
        if record.kind == "step" and record.usage.steps == 5:
            self._file = Full(self._file)  # type: ignore[assignment]
        write(self, record)

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(CheckpointError, match=r"records.jsonl' cannot be written: No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / RECORDS).read_bytes().endswith(b"}\n")
    assert run(tmp_path, resume=True)[0].usage.steps == STEPS


class Full:
    """A file on a disk that is full after half a line."""

    def __init__(self, file: object) -> None:
        self.file = file

    def write(self, line: bytes) -> int:
        self.file.write(line[: len(line) // 2])  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def test_the_digest_of_records_is_that_of_their_run(tmp_path: Path) -> None:
    run(tmp_path)
    files = RunFolder(
        records=tmp_path / RECORDS, checkpoints=tmp_path / CHECKPOINTS, weights=tmp_path / FINISHED
    )
    known = files.known_records()
    assert owner_of(known, "x") == known[0].run  # type: ignore[union-attr]
    assert (owner_of([], "x"), owner_of(known[1:], "x")) == ("x", "")


def test_the_student_of_a_finished_run_is_given_back(tmp_path: Path) -> None:
    end, whole = run(tmp_path)
    files = RunFolder(
        records=tmp_path / RECORDS, checkpoints=tmp_path / CHECKPOINTS, weights=tmp_path / FINISHED
    )
    other = mlp(5, 4, seed=9).module
    files.load_student(other, end)
    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
