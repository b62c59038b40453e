"""Objectives of geometries in plans and stores, and the batches that they refuse."""

from typing import Any

import pytest
import torch

import curricle
from curricle import seeding
from curricle.errors import BindError
from curricle.models.mlp import MLP
from curricle.objectives.hidden import LayerPair
from curricle.objectives.matched_geometries import MatchCKA, MatchProcrustes
from curricle.teachers.store.codecs import Exact
from tests.parts import drawn

PAIR = LayerPair(student=1, teacher=2)
kinds = pytest.mark.parametrize("kind", [MatchCKA, MatchProcrustes])


class Vectors:
    """Batches of vectors."""

    fingerprint = "vectors"

    def __init__(self, batch_size: int = 16) -> None:
        self.batch_size = self.tokens_per_batch = batch_size

    def batch(self, step: int) -> curricle.Batch:
        return curricle.Batch(inputs=drawn(self.batch_size, 6, seed=step))


def network(*widths: int, seed: int) -> MLP:
    with seeding.scoped(seed, "network"):
        return MLP(num_inputs=6, widths=widths, num_classes=2)


def curriculum(objective: Any, steps: int = 6) -> curricle.Curriculum:
    stage = curricle.Stage(name="layer", duration=f"{steps} steps", objectives=(objective,))
    return curricle.Curriculum(name="layers", stages=(stage,))


def distilled(objective: Any, data: Vectors, teacher: Any = None) -> Any:
    return curricle.distill(
        network(5, seed=1),
        teacher or network(8, 8, seed=2),
        curriculum(objective),
        data,
        evaluation=lambda model: {"zero": 0.0},
        metric="zero",
        optimizer=curricle.AdamW(learning_rate=0.02),
    )


@kinds
def test_a_batch_of_one_row_is_refused(kind: Any) -> None:
    sentence = r"taps 'blocks.0 <- blocks.1' must have 2 or more rows in a batch .*; got 1$"
    with pytest.raises(BindError, match=sentence):
        distilled(kind(pair=PAIR), Vectors(1))


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (MatchCKA(pair=PAIR, weight=0.5), "0.5 x 1 - CKA"),
        (MatchProcrustes(pair=PAIR), "1 x Procrustes"),
    ],
)
def test_a_plan_names_taps_distance_and_widths(objective: Any, words: str) -> None:
    plan = curricle.plan(
        network(5, seed=1), network(8, 8, seed=2), curriculum(objective), Vectors()
    )
    assert words in str(plan)
    assert "5 <- 8" in str(plan)


@kinds
def test_stored_targets_train_the_same_student(kind: Any, tmp_path: Any) -> None:
    objective, data = kind(pair=PAIR), Vectors()
    curricle.capture_targets(
        network(5, seed=1),
        network(8, 8, seed=2),
        curriculum(objective),
        data,
        folder=tmp_path / "targets",
        compression=curricle.TargetCompression(hidden=Exact()),
    )
    stored = distilled(objective, data, curricle.open_targets(tmp_path / "targets"))
    live = distilled(objective, data)
    for name, weight in live.student.state_dict().items():
        assert torch.equal(weight, stored.student.state_dict()[name]), name
