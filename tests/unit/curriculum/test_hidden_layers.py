"""Strategies with several hidden layers in one stage, in numbers computed by hand."""

from typing import Any

import pytest
import torch

import curricle
from curricle import seeding
from curricle.curriculum.durations import Duration
from curricle.curriculum.hidden_layers import hidden_first, joint
from curricle.curriculum.layer_pairs import evenly_spaced_pairs
from curricle.errors import BindError, SpecError
from curricle.models.mlp import MLP
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.matched_geometries import MatchCKA, MatchProcrustes
from curricle.objectives.matched_relations import MatchRelations
from curricle.objectives.projections import Learned
from tests.parts import drawn

PAIRS = (LayerPair(student=1, teacher=1), LayerPair(student=2, teacher=3))


def test_layers_come_first_together_and_then_the_logits() -> None:
    layers, logits = hidden_first(total="100 steps", pairs=PAIRS, layer_fraction=0.3).stages
    assert [stage.duration for stage in (layers, logits)] == [
        Duration(number=30),
        Duration(number=70),
    ]
    # The mean over two pairs.
    assert layers.objectives == tuple(MatchHidden(pair=pair, weight=0.5) for pair in PAIRS)
    assert logits.objectives == (MatchLogits(),)


def test_a_quarter_is_for_the_layers_by_default() -> None:
    layers, _ = hidden_first(total="100 steps").stages
    assert layers.duration == Duration(number=25)
    assert layers.objectives == (MatchHidden(pair=evenly_spaced_pairs(1)[0]),)


def test_joint_layers_stand_beside_the_logits_in_one_stage() -> None:
    (stage,) = joint(total="100 steps", pairs=PAIRS, layer_objective="cka", layer_weight=3).stages
    assert stage.duration == Duration(number=100)
    assert stage.objectives == (MatchLogits(), *(MatchCKA(pair=pair, weight=1.5) for pair in PAIRS))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("hidden", MatchHidden(pair=PAIRS[0])),
        ("procrustes", MatchProcrustes(pair=PAIRS[0])),
        ({"kind": "cka", "weight": 2.0}, MatchCKA(pair=PAIRS[0], weight=2.0)),
        ({"kind": "relations", "heads": 8}, MatchRelations(pair=PAIRS[0], heads=8)),
        (
            {"kind": "hidden", "projection": {"kind": "learned"}, "normalize": "rms"},
            MatchHidden(pair=PAIRS[0], projection=Learned(), normalize="rms"),
        ),
        (
            {"kind": "hidden", "projection": Learned()},
            MatchHidden(pair=PAIRS[0], projection=Learned()),
        ),
    ],
)
def test_the_objective_of_the_layers_is_named_or_given_by_its_fields(
    objective: Any, expected: object
) -> None:
    for strategy in (hidden_first, joint):
        curriculum = strategy(total="8 steps", pairs=PAIRS[:1], layer_objective=objective)
        assert expected in curriculum.stages[0].objectives


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        ("logits", r"^'layer_objective': 'logits' is not a kind; .*'hidden', 'cka', 'procrustes'"),
        ({"heads": 2}, r"^'layer_objective': 'kind' must be given"),
        ({"kind": "cka", "head": 2}, r"^'layer_objective': .*'head' is not a field"),
        (
            {"kind": "cka", "pair": {"student": 1, "teacher": 1}},
            r"^'layer_objective' must have no 'pair', since 'pairs' holds the taps; got ",
        ),
        ({"kind": "relations", "heads": 0}, r"^'layer_objective': .*greater than 0; got 0"),
        (3, r"^'layer_objective': '3' is not a kind; available: 'hidden', 'cka'"),
    ],
)
def test_another_objective_of_the_layers_is_refused(objective: Any, sentence: str) -> None:
    for strategy in (hidden_first, joint):
        with pytest.raises(SpecError, match=sentence):
            strategy(total="8 steps", layer_objective=objective)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^'pairs' must hold at least one layer pair; got \(\)$"):
        hidden_first(total="8 steps", pairs=())


@pytest.mark.parametrize("objective", ["hidden", "cka"])
def test_layers_share_the_projection_of_a_random_start(objective: str) -> None:
    sentence = r"^'shared_projection' must be true with a random 'init', .*; got False$"
    with pytest.raises(SpecError, match=sentence):
        joint(total="8 steps", layer_objective=objective, init="random")


def test_labels_as_the_last_objective_have_no_teacher() -> None:
    curriculum = hidden_first(total="8 steps", teacher=70, final_objective=LabelLoss())
    assert [stage.teacher for stage in curriculum.stages] == [70, "final"]


class Vectors:
    """Batches of vectors."""

    batch_size = tokens_per_batch = 16
    fingerprint = "vectors"

    def batch(self, step: int) -> curricle.Batch:
        return curricle.Batch(inputs=drawn(self.batch_size, 6, seed=step))


def network(*widths: int, seed: int) -> MLP:
    with seeding.scoped(seed, "network"):
        return MLP(num_inputs=6, widths=widths, num_classes=2)


def distilled(curriculum: curricle.Curriculum, **settings: Any) -> Any:
    return curricle.distill(
        network(8, 8, seed=1),
        network(12, 12, 12, seed=2),
        curriculum,
        Vectors(),
        evaluation=[Vectors().batch(1000)],
        metric="teacher_cosine",
        optimizer=curricle.AdamW(learning_rate=0.02),
        settings=curricle.TrainingSettings(**settings),
    )


@pytest.mark.parametrize("objective", ["hidden", "cka", "procrustes"])
@pytest.mark.parametrize("strategy", [hidden_first, joint])
def test_a_student_learns_by_either_strategy(strategy: Any, objective: str) -> None:
    curriculum = strategy(total="200 steps", pairs=PAIRS, layer_objective=objective)
    assert distilled(curriculum).metrics["teacher_cosine"] > 0.7


def test_the_layers_of_the_first_stage_train_nothing_behind_them() -> None:
    curriculum = hidden_first(
        total="9 steps", pairs=PAIRS[:1], layer_fraction=0.9, layer_objective="cka"
    )
    first = curriculum.stages[0]
    only = curricle.Curriculum(name="layers", stages=(first,))
    before = network(8, 8, seed=1).state_dict()
    after = distilled(only).student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert len(changed) < len(before) / 2


def test_micro_batches_of_a_geometry_are_refused() -> None:
    curriculum = joint(total="4 steps", layer_objective="cka", pairs=PAIRS)
    sentence = r"'gradient_accumulation_steps' must be 1 for MatchCKA, which compares .*; got 2"
    with pytest.raises(BindError, match=sentence):
        distilled(curriculum, gradient_accumulation_steps=2)


def test_pairs_of_one_stage_at_one_block_by_rounding_are_refused() -> None:
    sentence = (
        r"pairs of stage 'layers' must read different taps of the student; fractions .* tap 1"
    )
    with pytest.raises(BindError, match=sentence):
        distilled(hidden_first(total="8 steps", pairs=4))
