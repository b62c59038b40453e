"""Files of stored targets: written in pieces, found again, and refused if damaged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.data.example_keys import example_keys
from curricle.errors import CheckpointError
from curricle.locks import locked
from curricle.teachers.store.codecs import Exact, Sampled
from curricle.teachers.store.manifest import Manifest, TargetSet, read_manifest
from curricle.teachers.store.shards import ShardWriter, open_shard, uniforms

SECTION = TargetSet(facts={"kind": "hidden"}, selected=False, codec=Exact(), width=2)
OTHER = replace(SECTION, facts={"kind": "logits"})
MANIFEST = Manifest(sections=(SECTION,))


def keys(*examples: int) -> np.ndarray:
    return example_keys(Batch(inputs=torch.tensor(examples).reshape(-1, 1)), selected=False)


def values(*examples: int) -> dict[str, Tensor]:
    return {"values": torch.tensor([[float(one), 0.5] for one in examples])}


def counts(*examples: int) -> np.ndarray:
    return np.ones(len(examples), dtype=np.int64)


def add(writer: ShardWriter, *examples: int) -> None:
    writer.add(SECTION, keys(*examples), counts(*examples), values(*examples))


def stored(folder: Path) -> list[float]:
    manifest = read_manifest(folder)
    parts = [open_shard(folder, shard)["values"][:, 0] for shard in manifest.shards]
    found: list[float] = torch.cat(parts).tolist()
    return found


def test_targets_are_written_in_files_of_a_size(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MANIFEST, shard_bytes=2 * (16 + 4 + 8))
    for number in range(5):
        add(writer, number)
    manifest = writer.finish(MANIFEST.sections)
    assert [shard.rows for shard in manifest.shards] == [2, 2, 1]
    assert stored(tmp_path) == [0, 1, 2, 3, 4]
    assert manifest.is_complete


def test_what_is_written_is_known_to_who_goes_on(tmp_path: Path) -> None:
    killed = ShardWriter(tmp_path, MANIFEST, shard_bytes=1)
    add(killed, 1, 2)
    assert not read_manifest(tmp_path).finished
    writer = ShardWriter(tmp_path, read_manifest(tmp_path))
    assert writer.find_missing(SECTION, keys(2, 3, 1)).tolist() == [False, True, False]
    add(writer, 3)
    writer.finish(MANIFEST.sections)
    assert stored(tmp_path) == [1, 2, 3]


def test_what_was_not_written_before_a_kill_is_lacking(tmp_path: Path) -> None:
    add(ShardWriter(tmp_path, MANIFEST), 1)
    again = ShardWriter(tmp_path, read_manifest(tmp_path))
    assert again.find_missing(SECTION, keys(1)).tolist() == [True]


def test_going_on_with_a_whole_store_leaves_it_whole_until_there_is_more(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MANIFEST)
    add(writer, 1)
    whole = writer.finish(MANIFEST.sections)
    again = ShardWriter(tmp_path, replace(whole, sections=(SECTION, OTHER)), shard_bytes=1)
    assert read_manifest(tmp_path) == whole
    add(again, 2)
    begun = read_manifest(tmp_path)
    assert not begun.is_complete
    assert begun.is_readable(SECTION)
    assert [begun.is_readable(OTHER), again.finish([OTHER]).is_readable(OTHER)] == [False, True]


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "a"),
        locked(tmp_path / "b"),
        pytest.raises(CheckpointError, match="must have one writer at a time"),
    ):
        locked(tmp_path / "a").__enter__()
    with locked(tmp_path / "a"):
        pass


def test_an_example_twice_in_a_batch_is_wanted_once(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MANIFEST)
    assert writer.find_missing(SECTION, keys(7, 8, 7)).tolist() == [True, True, False]


def test_random_numbers_belong_to_an_example() -> None:
    section = TargetSet(facts={"kind": "logits"}, selected=False, codec=Sampled(seed=1), width=9)
    together = uniforms(section, keys(1, 2, 3), np.array([2, 1, 3]))(4)
    alone = [uniforms(section, keys(one), np.array([n]))(4) for one, n in ((1, 2), (2, 1), (3, 3))]
    assert np.array_equal(together, np.concatenate(alone))
    other = TargetSet(facts={"kind": "logits"}, selected=False, codec=Sampled(seed=2), width=9)
    assert not np.array_equal(together, uniforms(other, keys(1, 2, 3), np.array([2, 1, 3]))(4))
    assert uniforms(section, keys()[:0], counts()[:0])(4).shape == (0, 4)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MANIFEST)
    add(writer, 1)
    (shard,) = writer.finish(MANIFEST.sections).shards
    path = tmp_path / shard.file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"must hold {shard.size} bytes"):
        open_shard(tmp_path, shard)
    path.write_bytes(b"x" * shard.size)
    with pytest.raises(CheckpointError, match="must be a safetensors file"):
        open_shard(tmp_path, shard)
    path.unlink()
    with pytest.raises(CheckpointError, match="got no file"):
        open_shard(tmp_path, shard)


def test_a_file_of_other_rows_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, MANIFEST)
    add(writer, 1)
    (shard,) = writer.finish(MANIFEST.sections).shards
    wrong = replace(shard, rows=2)
    with pytest.raises(CheckpointError, match="must hold 1 examples and 2 rows"):
        open_shard(tmp_path, wrong)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "other"])
def test_who_adds_to_a_store_checks_the_files_that_are_there(tmp_path: Path, damage: str) -> None:
    writer = ShardWriter(tmp_path, MANIFEST)
    add(writer, 1)
    manifest = writer.finish(MANIFEST.sections)
    path = tmp_path / manifest.shards[0].file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        changed = {"flip": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-1]}
        path.write_bytes(changed.get(damage, content.replace(b"keys", b"kezs")))
    with pytest.raises(CheckpointError, match=path.name):
        ShardWriter(tmp_path, manifest)


def test_a_file_that_leads_elsewhere_is_not_opened(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "store", MANIFEST)
    add(writer, 1)
    (shard,) = writer.finish(MANIFEST.sections).shards
    (tmp_path / "store" / shard.file).rename(tmp_path / shard.file)
    with pytest.raises(CheckpointError, match=r"must list plain names of files inside it"):
        open_shard(tmp_path / "store", replace(shard, file=f"../{shard.file}"))


def test_who_adds_to_a_store_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    add(ShardWriter(tmp_path, MANIFEST), 1)
    kept = sorted(path.name for path in tmp_path.iterdir())
    for name in (".manifest.json.123.tmp", ".logits-00001.safetensors.7.tmp", ".tmpAb3xYz"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".notes").write_bytes(b"of the user")
    ShardWriter(tmp_path, MANIFEST)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".notes"])
