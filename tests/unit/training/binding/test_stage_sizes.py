"""Sizes of stages, against closed forms and against passes with data."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import curricle
from curricle import seeding
from curricle.curriculum.stages import Curriculum
from curricle.data.batch import Batch
from curricle.models.hooked import HookedModel
from curricle.models.wrapping import tapped
from curricle.training.binding.stage_sizes import SizeProbe
from curricle.training.setup.costs import Meter
from curricle.training.setup.optimizers import AdamW
from curricle.training.setup.rank_costs import Passes, StageSizes
from curricle.training.setup.settings import TrainingSettings
from tests.parts import layers, mlp, parity

EXAMPLES = 32
STUDENT, TEACHER = (5, 4), (16, 12)


def measured(
    curriculum: Curriculum, batch: Batch | None = None, **settings: Any
) -> list[tuple[StageSizes, Passes]]:
    probe = SizeProbe(
        mlp(*STUDENT),
        mlp(*TEACHER, seed=1),
        optimizer=AdamW(learning_rate=1e-3),
        settings=TrainingSettings(**settings),
    )
    batch = batch or Batch(inputs=torch.zeros(EXAMPLES, 6))
    return [
        (sizes, passes[0])
        for sizes, passes in (probe.measure(stage, [batch]) for stage in curriculum.stages)
    ]


def test_a_layer_stage_reaches_the_blocks_below_its_tap() -> None:
    ((sizes, _),) = measured(layers((1, 2)))
    root, first, second = sizes.student
    assert (first.in_forward, first.in_backward) == (True, True)
    assert (second.in_forward, second.in_backward) == (False, False)
    assert [weight.trained for weight in first.weights] == [True, True]
    assert not any(weight.trained for weight in root.weights)
    # The teacher's tap is deeper.
    assert [unit.in_forward for unit in sizes.teacher] == [True, True, True]


def test_blocks_that_share_weights_belong_to_the_root_as_in_runs() -> None:
    with seeding.scoped(0, "blocks"):
        module = nn.Sequential(*(nn.Linear(6, 6) for _ in range(2)), nn.Linear(6, 2))
    module[1].weight = module[0].weight
    probe = SizeProbe(
        HookedModel(module, blocks=["0", "1"], head="2"),
        None,
        optimizer=AdamW(learning_rate=1e-3),
        settings=TrainingSettings(),
    )
    (stage,) = curricle.from_labels(total="4 steps").stages
    sizes, _ = probe.measure(stage, [Batch(inputs=torch.zeros(EXAMPLES, 6))])
    (root,) = sizes.student
    assert root.whole(1) == 4 * (6 * 6 + 2 * 6 + 7 * 2)


def test_flops_are_those_of_the_products() -> None:
    ((_, passes),) = measured(layers((1, 1)))
    # Two FLOPs a product; the gradient of the inputs is not computed.
    assert passes.student_flops == 2 * (2 * EXAMPLES * 6 * STUDENT[0])
    assert passes.teacher_flops == 2 * EXAMPLES * 6 * TEACHER[0]


def test_logits_count_both_models_their_probabilities_and_a_gradient() -> None:
    ((_, passes),) = measured(curricle.one_shot(total="4 steps"))
    assert passes.logits == EXAMPLES * 2 * (4 + 4 + 4 + 4 + 4)


def test_chunks_bound_the_logits() -> None:
    objective = curricle.MatchLogits(chunk=8)
    ((_, passes),) = measured(curricle.one_shot(total="4 steps", objective=objective))
    assert passes.logits == 8 * 2 * 20


def test_frozen_earlier_blocks_are_not_in_the_backward_pass() -> None:
    curriculum = curricle.Curriculum(
        name="new",
        stages=tuple(
            curricle.Stage(
                name=str(tap),
                duration=curricle.Duration(number=2),
                objectives=layers((tap, tap)).stages[0].objectives,
                trainable="new",
            )
            for tap in (1, 2)
        ),
    )
    _, (sizes, _) = measured(curriculum)
    _, first, second = sizes.student
    assert (first.in_forward, first.in_backward) == (True, False)
    assert (second.in_forward, second.in_backward) == (True, True)
    # Adam's moments of the first stage stay.
    assert [weight.has_state for weight in first.weights] == [True, True]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_of_an_encoder_are_those_that_autograd_keeps(precision: Any) -> None:
    config = BertConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
    )
    with seeding.scoped(0, "models"):
        student, teacher = (tapped(BertForMaskedLM(config)) for _ in range(2))
    ids = torch.arange(24).reshape(3, 8)
    batch = Batch(inputs={"input_ids": ids}, selected=torch.arange(24))
    probe = SizeProbe(
        student,
        teacher,
        optimizer=AdamW(learning_rate=1e-3),
        settings=TrainingSettings(precision=precision),
    )
    (stage,) = curricle.one_shot(total="4 steps").stages
    _, (passes,) = probe.measure(stage, [batch])
    student.module.train()
    meter = Meter([*student.module.parameters(), ids])
    is_low = precision == "bfloat16"
    with (
        seeding.scoped(0, "dropout"),
        torch.autocast("cpu", torch.bfloat16, enabled=is_low),
        meter.running(),
        student.open_taps([], logits=True) as forward,
    ):
        forward(batch.inputs, batch.selected)
    assert passes.activations == pytest.approx(meter.saved_bytes, rel=0.02)


def test_a_teacher_in_bfloat16_keeps_copies_of_its_linear_maps() -> None:
    ((sizes, _),) = measured(layers((1, 1)), teacher_precision="bfloat16")
    assert sizes.teacher_copies == 2 * (6 * 16 + 16 * 12 + 12 * 2)


def test_data_of_a_stream_fit() -> None:
    ((_, passes),) = measured(layers((1, 1)), parity().batch(0))
    assert passes.activations > 0


def test_the_head_of_a_teacher_counts_where_it_is_read_in_chunks() -> None:
    with seeding.scoped(0, "models"):
        modules = [nn.Sequential(nn.Linear(6, width), nn.Linear(width, 2)) for width in (5, 16)]
    student, teacher = (HookedModel(module, blocks=["0"], head="1") for module in modules)
    heads = []
    for chunk in (8, None):
        probe = SizeProbe(
            student,
            teacher,
            optimizer=AdamW(learning_rate=1e-3),
            settings=TrainingSettings(),
        )
        objective = curricle.MatchLogits(chunk=chunk)
        (stage,) = curricle.one_shot(total="4 steps", objective=objective).stages
        sizes, _ = probe.measure(stage, [Batch(inputs=torch.zeros(EXAMPLES, 6))])
        heads.append(sizes.teacher_head)
    # Weight and bias of the map from the teacher's width to two classes.
    assert heads == [4 * (16 + 1) * 2, 0]
