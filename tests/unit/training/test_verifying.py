"""Stored targets beside what the teacher says: agreement, and what breaks it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from curricle.curriculum.strategies import extraction
from curricle.teachers.codecs import Exact, Sampled, TopK
from curricle.teachers.live import LiveTeacher
from curricle.teachers.stored import StoredTeacher, open_targets
from curricle.training.capturing import Packing, capture
from curricle.training.verifying import LEAST_SHARE, agreement
from tests.parts import bound, mlp

EXTRACTION = extraction(total="9 steps")


def captured(folder: Path, logits: Any) -> StoredTeacher:
    packing = Packing(hidden=Exact(), logits=logits)
    capture([bound(EXTRACTION)], folder, packing=packing)
    return open_targets(folder)


@pytest.mark.parametrize("codec", [Exact(), Sampled(), TopK(k=2)])
def test_captured_targets_agree(tmp_path: Path, codec: Any) -> None:
    found = agreement([bound(EXTRACTION)], captured(tmp_path, codec), steps=2)
    assert [one.section.facts["kind"] for one in found] == ["hidden", "logits"]
    assert all(one.holds for one in found)
    assert {one.rows for one in found} == {2 * 8}


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
