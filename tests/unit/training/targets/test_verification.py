"""Stored targets beside what the teacher says: agreement, and what breaks it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import extraction, from_labels
from curricle.errors import BindError
from curricle.objectives.logits import MatchLogits
from curricle.teachers.live import LiveTeacher
from curricle.teachers.store.codecs import Exact, Sampled, TopK
from curricle.teachers.store.manifest import read_manifest, write_manifest
from curricle.teachers.store.target_sets import open_store
from curricle.teachers.stored import StoredTeacher, open_targets
from curricle.training.targets.capture import TargetCompression, capture
from curricle.training.targets.verification import LEAST_SHARE, agreement
from tests.parts import bound, mlp, texts, tokens

EXTRACTION = extraction(total="9 steps")


def captured(folder: Path, logits: Any) -> StoredTeacher:
    compression = TargetCompression(hidden=Exact(), logits=logits)
    capture([bound(EXTRACTION)], folder, compression=compression)
    return open_targets(folder)


@pytest.mark.parametrize("codec", [Exact(), Sampled(), TopK(k=2)])
def test_captured_targets_agree(tmp_path: Path, codec: Any) -> None:
    found = agreement([bound(EXTRACTION)], captured(tmp_path, codec), steps=2)
    assert [one.target_set.facts["kind"] for one in found] == ["hidden", "logits"]
    assert all(one.holds for one in found)
    assert {one.rows for one in found} == {2 * 8}


def changed(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> StoredTeacher:
    """Return stored targets of which one tensor is changed."""
    for shard in open_targets(folder).store.manifest.shards:
        tensors = load_file(folder / shard.file)
        if name in tensors:
            save_file(tensors | {name: change(tensors[name])}, folder / shard.file)
    manifest = read_manifest(folder)
    shards = [replace(one, size=(folder / one.file).stat().st_size) for one in manifest.shards]
    write_manifest(folder, replace(manifest, shards=tuple(shards)))
    return StoredTeacher(open_store(folder, checks_content=False))


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        (Sampled(), "entropy"),
        (Sampled(proposal=0.5), "weights"),
        (TopK(k=1), "log_probabilities"),
        (TopK(k=2), "log_probabilities"),
    ],
)
def test_all_that_is_kept_of_classes_is_compared(tmp_path: Path, codec: Any, name: str) -> None:
    captured(tmp_path, codec)
    stored = changed(
        tmp_path, name, lambda found: found + torch.linspace(0.1, 0.5, found.shape[-1])
    )
    _, logits = agreement([bound(EXTRACTION)], stored, steps=2)
    assert logits.share == 0
    assert not logits.holds


def test_a_row_agrees_if_all_of_its_numbers_do(tmp_path: Path) -> None:
    captured(tmp_path, Exact())

    def change(found: Tensor) -> Tensor:
        found[:, 0] += 1
        return found

    for one in agreement([bound(EXTRACTION)], changed(tmp_path, "values", change), steps=2):
        assert one.share == 0


@pytest.mark.parametrize("codec", [Sampled(), TopK(k=3)])
def test_selected_rows_of_targets_of_all_positions_agree(tmp_path: Path, codec: Any) -> None:
    stage = Stage(name="only", duration="3 steps", objectives=(MatchLogits(),))
    chosen = Curriculum(name="own", stages=(stage,))
    compression = TargetCompression(logits=codec)
    capture([texts(chosen, stream=tokens(selects=False))], tmp_path, compression=compression)
    (found,) = agreement([texts(chosen)], open_targets(tmp_path), steps=3)
    assert (found.rows, found.share) == (18, 1.0)


@pytest.mark.parametrize("codec", [Exact(), Sampled(), TopK(k=1)])
def test_another_teacher_does_not_agree(tmp_path: Path, codec: Any) -> None:
    other = mlp(16, 12, seed=1)
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.neg_()
    run = bound(EXTRACTION, teacher=LiveTeacher(other))
    states, logits = agreement([run], captured(tmp_path, codec), steps=9)
    assert not states.holds
    assert not logits.holds
    assert logits.share < LEAST_SHARE


def test_there_is_nothing_to_capture_without_a_teachers_target(tmp_path: Path) -> None:
    run = bound(from_labels(total="2 steps"))
    with pytest.raises(BindError, match=r"^'curriculum' must compare with a teacher .*from_labels"):
        capture([run], tmp_path)
    assert not any(tmp_path.iterdir())
