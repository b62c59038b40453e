"""Reading stored targets: content is the only key, and what is not there is an error."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curricle.data.batch import Batch
from curricle.data.example_keys import data_counts, example_keys
from curricle.errors import BindError, CheckpointError, DataError
from curricle.models.weights import weights_digest
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import Exact
from curricle.teachers.store.manifest import (
    Manifest,
    TargetSet,
    TeacherFacts,
    read_manifest,
    write_manifest,
)
from curricle.teachers.store.shards import ShardWriter
from curricle.teachers.store.target_sets import TargetSetReader, TargetStore, open_store
from curricle.teachers.trajectory import TrajectoryWriter, open_trajectory
from tests.parts import mlp

SECTION = TargetSet(facts={"kind": "hidden"}, selected=False, codec=Exact(), width=1)
LENGTHS = [3, 1, 4, 2, 4]
IDS = torch.arange(20).reshape(5, 4)


def batch(rows: list[int], selected: list[int] | None = None) -> Batch:
    """Return examples of different lengths, padded to the longest."""
    width = max(LENGTHS[row] for row in rows)
    valid = torch.stack([torch.arange(width) < LENGTHS[row] for row in rows])
    chosen = None if selected is None else torch.tensor(selected)
    return Batch(inputs=IDS[rows][:, :width], valid=valid, selected=chosen)


def stored(folder: Path, *, shard_bytes: int = 60, section: TargetSet = SECTION) -> TargetStore:
    """Store the token ids themselves as targets, a few examples a file."""
    writer = ShardWriter(folder, Manifest(sections=(section,)), shard_bytes=shard_bytes)
    for row in range(len(IDS)):
        one = batch([row])
        counts = data_counts(one)
        values = one.leading[one.valid].float().unsqueeze(-1)
        keys = example_keys(one, selected=section.selected)
        writer.add(section, keys, counts, {"values": values})
    writer.finish([section])
    return open_store(folder)


def reader(folder: Path, shard_bytes: int = 60) -> TargetSetReader:
    return stored(folder, shard_bytes=shard_bytes).reader(SECTION)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.sampled_from([1, 60, 10**6]))
def test_rows_come_in_the_order_of_the_reader(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], shard_bytes: int
) -> None:
    asked = batch(rows)
    found = reader(tmp_path_factory.mktemp("s"), shard_bytes=shard_bytes).target(
        asked, selected=False, rows=asked.num_tokens
    )
    assert found[:, 0].tolist() == asked.leading[asked.valid].tolist()


def test_selected_positions_are_found_among_all(tmp_path: Path) -> None:
    asked = batch([4, 0], selected=[1, 3, 4])
    found = reader(tmp_path).target(asked, selected=True, rows=3)
    assert found[:, 0].tolist() == asked.leading.flatten()[asked.selected].tolist()


def test_a_position_after_those_stored_is_an_error(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, Manifest(sections=(SECTION,)))
    one = batch([2])
    keys = example_keys(one, selected=False)
    writer.add(SECTION, keys, np.array([3]), {"values": torch.zeros(3, 1)})
    writer.finish([SECTION])
    found = open_store(tmp_path).reader(SECTION)
    assert len(found.target(batch([2], selected=[0, 2]), selected=True, rows=2)) == 2
    with pytest.raises(DataError, match="position 3 of example 0"):
        found.target(batch([2], selected=[0, 3]), selected=True, rows=2)


@pytest.mark.parametrize("each", [1, 2, 6])
def test_rows_that_only_the_model_counts_are_those_stored(tmp_path: Path, each: int) -> None:
    one = batch([2, 1, 0])
    writer = ShardWriter(tmp_path, Manifest(sections=(SECTION,)))
    values = torch.arange(3.0 * each)
    counts, keys = np.full(3, each), example_keys(one, selected=False)
    writer.add(SECTION, keys, counts, {"values": values.unsqueeze(-1)})
    writer.finish([SECTION])
    found = open_store(tmp_path).reader(SECTION)
    again = found.target(batch([0, 2]), selected=False, rows=2 * each)
    assert again[:, 0].tolist() == [*values[2 * each :].tolist(), *values[:each].tolist()]


@pytest.mark.parametrize(("rows", "wanted"), [([2, 0], 2), ([0, 1], 8), ([4], 5)])
def test_a_number_of_rows_that_is_not_stored_is_an_error(
    tmp_path: Path, rows: list[int], wanted: int
) -> None:
    there = sum(LENGTHS[row] for row in rows)
    with pytest.raises(DataError, match=rf"^'targets' must hold the {wanted} rows .*; got {there}"):
        reader(tmp_path).target(batch(rows), selected=False, rows=wanted)


def test_an_example_that_is_not_stored_is_an_error(tmp_path: Path) -> None:
    foreign = Batch(inputs=torch.tensor([[0, 1, 2], [9, 9, 9]]))
    with pytest.raises(DataError, match="example 1 of a batch is not among the 5"):
        reader(tmp_path).target(foreign, selected=False, rows=6)


def test_a_section_without_files_holds_nothing(tmp_path: Path) -> None:
    ShardWriter(tmp_path, Manifest(sections=(SECTION,))).finish([SECTION])
    with pytest.raises(DataError, match="'targets' must hold some of"):
        open_store(tmp_path).reader(SECTION).target(batch([0]), selected=False, rows=3)


def test_a_capture_that_was_killed_is_not_opened(tmp_path: Path) -> None:
    ShardWriter(tmp_path, Manifest(sections=(SECTION,)))
    with pytest.raises(CheckpointError, match="must hold a finished capture"):
        open_store(tmp_path)


def test_a_changed_number_is_noticed_when_the_store_is_opened(tmp_path: Path) -> None:
    shard = stored(tmp_path).manifest.shards[0]
    path = tmp_path / shard.file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"must have the SHA-256 .*; one of the two is d"):
        open_store(tmp_path)
    assert open_store(tmp_path, checks_content=False).manifest.is_complete


@pytest.mark.parametrize("kind", ["size", "digest", "files"])
def test_a_manifest_of_another_store_is_named_beside_the_file(tmp_path: Path, kind: str) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    stored(right)
    section = replace(SECTION, reference=7) if kind == "files" else SECTION
    stored(wrong, section=section, shard_bytes=10**6 if kind == "size" else 60)
    manifest = wrong / "manifest.json"
    if kind == "digest":
        other = read_manifest(wrong)
        shards = tuple(replace(one, sha256=one.sha256[::-1]) for one in other.shards)
        write_manifest(wrong, replace(other, shards=shards))
    shutil.copy(manifest, right)
    with pytest.raises(
        CheckpointError,
        match=rf"^'{right}/[\w-]+\.safetensors' must .* as listed in '{right}/manifest\.json'; got "
        r".*; one of the two is damaged or of another store: restore it, or capture into a new "
        r"folder$",
    ):
        open_store(right)


def test_the_ways_out_of_a_swapped_manifest_lead_out(tmp_path: Path) -> None:
    stored(tmp_path / "right")
    stored(tmp_path / "wrong", shard_bytes=10**6)
    manifest = tmp_path / "right" / "manifest.json"
    kept = manifest.read_bytes()
    shutil.copy(tmp_path / "wrong" / "manifest.json", manifest)
    with pytest.raises(CheckpointError, match="restore it, or capture into a new folder"):
        open_store(tmp_path / "right")
    manifest.write_bytes(kept)
    assert open_store(tmp_path / "right").manifest == stored(tmp_path / "new").manifest


def test_targets_of_another_teacher_are_refused(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.check_teacher(LiveTeacher(mlp(3)))
    digest, second = (weights_digest(mlp(3, seed=seed).module) for seed in (0, 2))
    told = TeacherFacts(weights={"final": digest, "7": second})
    write_manifest(tmp_path, replace(store.manifest, teacher=told))
    open_store(tmp_path).check_teacher(LiveTeacher(mlp(3)))
    with pytest.raises(BindError, match="must hold targets of this teacher 'final'"):
        open_store(tmp_path).check_teacher(LiveTeacher(mlp(3, seed=1)))
    for seed in (2, 3):
        TrajectoryWriter(tmp_path / str(seed), [7]).save(mlp(3, seed=seed).module, 7)
    same, other = (open_trajectory(tmp_path / str(seed)) for seed in (2, 3))
    open_store(tmp_path).check_teacher(LiveTeacher(mlp(3), same))
    with pytest.raises(BindError, match="must hold targets of this teacher 7"):
        open_store(tmp_path).check_teacher(LiveTeacher(mlp(3), other))


def test_keys_are_loaded_once(tmp_path: Path) -> None:
    store = stored(tmp_path)
    assert store.reader(SECTION) is store.reader(SECTION)
    assert store.reader(SECTION).num_examples == 5
