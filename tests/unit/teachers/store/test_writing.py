"""Stores that are opened for writing, and the shares whose files they take."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from curricle.errors import CheckpointError
from curricle.locks import locked
from curricle.teachers.store.codecs import BFloat16, Exact
from curricle.teachers.store.manifest import Manifest, TargetSet, TeacherFacts, read_manifest
from curricle.teachers.store.shards import ShardWriter
from curricle.teachers.store.writing import SHARES, open_writer, present_and_new, take_shares
from tests.parts import stored_rows

SET = TargetSet(facts={"kind": "logits", "stream": 1}, selected=False, codec=Exact(), width=1)
OTHER = replace(SET, facts={"kind": "logits", "stream": 2})
TEACHER = TeacherFacts(weights={"final": "a" * 64}, precision="float32")
MANIFEST = Manifest(teacher=TEACHER, sections=(SET,))


def add(writer: ShardWriter, *examples: int, target_set: TargetSet = SET) -> None:
    keys = np.array([number.to_bytes(16, "little") for number in examples], dtype="V16")
    counts = np.ones(len(examples), dtype=np.int64)
    values = torch.tensor(examples, dtype=torch.float32).unsqueeze(1)
    writer.add(target_set, keys, counts, {"values": values})


def write_share(folder: Path, name: str, *examples: int, manifest: Manifest = MANIFEST) -> None:
    with open_writer(folder / SHARES / name, manifest, shard_bytes=1) as writer:
        for example in examples:
            add(writer, example)


def examples(folder: Path) -> list[int]:
    return sorted(int.from_bytes(key, "little") for _, key in stored_rows(folder))


def test_a_store_takes_the_files_of_its_shares(tmp_path: Path) -> None:
    with open_writer(tmp_path, MANIFEST) as writer:
        add(writer, 1)
        writer.finish([SET])
    write_share(tmp_path, "0-of-2", 2, 3)
    write_share(tmp_path, "1-of-2", 4)
    with open_writer(tmp_path, MANIFEST):
        assert examples(tmp_path) == [1, 2, 3, 4]
    files = [shard.file for shard in read_manifest(tmp_path).shards]
    assert files == [f"{SET.name}-{number:05d}.safetensors" for number in range(4)]
    assert not (tmp_path / SHARES).exists()


def test_files_that_the_store_has_already_are_not_taken_again(tmp_path: Path) -> None:
    write_share(tmp_path, "0-of-1", 1, 2)
    with locked(tmp_path):
        taken = take_shares(tmp_path, MANIFEST)
        write_share(tmp_path, "0-of-1", 1, 2)
        assert take_shares(tmp_path, taken).shards == taken.shards


def test_shares_without_files_leave_the_manifest_as_it_is(tmp_path: Path) -> None:
    with open_writer(tmp_path, MANIFEST) as writer:
        add(writer, 1)
        finished = writer.finish([SET])
    write_share(tmp_path, "0-of-1")
    with open_writer(tmp_path, Manifest(teacher=TEACHER, sections=(OTHER,))):
        assert read_manifest(tmp_path) == finished


def test_a_share_that_is_still_written_is_refused(tmp_path: Path) -> None:
    with (
        open_writer(tmp_path / SHARES / "0-of-1", MANIFEST),
        pytest.raises(CheckpointError, match=r"0-of-1' must have one writer at a time.*wait for"),
        open_writer(tmp_path, MANIFEST),
    ):
        pass


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (
            replace(MANIFEST, teacher=replace(TEACHER, weights={"final": "b" * 64})),
            "must hold targets of this teacher 'final', whose weights have the SHA-256 bbbb",
        ),
        (
            replace(MANIFEST, teacher=replace(TEACHER, precision="bfloat16")),
            "must hold targets of a teacher in 'bfloat16'; got 'float32'",
        ),
        (
            replace(MANIFEST, sections=(replace(SET, codec=BFloat16()),)),
            "must hold targets packed as",
        ),
    ],
)
def test_targets_of_another_teacher_or_form_are_refused(
    manifest: Manifest, sentence: str, tmp_path: Path
) -> None:
    with open_writer(tmp_path, MANIFEST) as writer:
        writer.finish([SET])
    with (
        pytest.raises(CheckpointError, match=f"{sentence}.*capture into another folder"),
        open_writer(tmp_path, manifest),
    ):
        pass


def test_present_target_sets_come_before_new_ones(tmp_path: Path) -> None:
    with open_writer(tmp_path, MANIFEST):
        pass
    both = present_and_new(tmp_path, replace(MANIFEST, sections=(OTHER, SET)))
    assert both.sections == (SET, OTHER)
    assert present_and_new(tmp_path / "none", MANIFEST) is MANIFEST
