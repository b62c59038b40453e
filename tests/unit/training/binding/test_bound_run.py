"""Binding finds what fits, and how long stages last."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import curricle
from curricle.curriculum.durations import Duration, Unit
from curricle.curriculum.stages import Curriculum, Stage
from curricle.curriculum.strategies import extraction, from_labels, one_shot, progressive
from curricle.data.batch import Batch
from curricle.data.examples import ExampleStream
from curricle.data.streams import Stream
from curricle.errors import BindError, DataError
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.labels import LabelLoss
from curricle.objectives.logits import MatchLogits
from curricle.objectives.projections import Sign
from curricle.teachers.live import LiveTeacher
from curricle.training.setup.optimizers import SGD, AdamW
from tests.parts import INPUTS, Listed, bound, drawn, layers, mlp, texts

BATCH = 8


# --- how long stages last -------------------------------------------------------------------------


def test_stages_follow_each_other() -> None:
    run = bound(extraction(total=Duration(number=40), pairs=1, layer_fraction=0.3))
    assert [(stage.span.start, stage.span.end) for stage in run.stages] == [(0, 12), (12, 40)]
    assert [stage.plan.steps for stage in run.stages] == [12, 28]
    assert run.num_steps == 40


@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_rounding_to_steps_does_not_lengthen_a_run_of_many_stages(unit: Unit) -> None:
    total = Duration(number=100, unit=unit)
    # One position an example: 8 examples are 8 tokens.
    batch = Batch(inputs=torch.zeros(8, INPUTS), labels=torch.zeros(8).long(), length=1)
    # 12.5 steps of 8 examples are 13, whatever the number of stages.
    assert bound(one_shot(total=total), stream=Listed(batch)).num_steps == 13
    stages = tuple(
        Stage(name=str(place), duration=Duration(number=20, unit=unit), objectives=(LabelLoss(),))
        for place in range(5)
    )
    run = bound(Curriculum(name="five", stages=stages), stream=Listed(batch))
    # Covered after 20, 40, 60, 80, 100 examples.
    assert [stage.span.end for stage in run.stages] == [3, 5, 8, 10, 13]


def test_every_stage_has_a_step() -> None:
    short = Stage(name="a", duration=Duration(number=1, unit="examples"), objectives=(LabelLoss(),))
    stages = tuple(replace(short, name=name) for name in "abc")
    assert [stage.plan.steps for stage in bound(Curriculum(name="x", stages=stages)).stages] == [
        1,
        1,
        1,
    ]


def test_stages_may_use_different_units() -> None:
    first = Stage(name="a", duration=Duration(number=2), objectives=(MatchLogits(),))
    second = Stage(name="b", duration="41 tokens", objectives=(MatchLogits(),))
    ids = torch.arange(20).remainder(11).view(4, 5)
    stream = Listed(Batch(inputs={"input_ids": ids}))
    assert texts(Curriculum(name="x", stages=(first, second)), stream=stream).num_steps == 2 + 3


# --- models of other depths -----------------------------------------------------------------------


def test_models_of_one_layer_are_enough() -> None:
    run = bound(
        extraction(total=Duration(number=8)),
        student=mlp(5),
        teacher=LiveTeacher(mlp(16)),
    )
    assert [stage.plan.taps for stage in run.stages] == ["1 <- 1", "logits"]


def test_a_student_may_be_deeper_than_its_teacher() -> None:
    run = bound(
        extraction(total=Duration(number=8), pairs=2),
        student=mlp(5, 5, 5, 5, 5, 5),
        teacher=LiveTeacher(mlp(16, 16, 16)),
    )
    assert [stage.plan.taps for stage in run.stages] == ["2 <- 1", "4 <- 2", "logits"]


@pytest.mark.parametrize(
    ("pairs", "depth", "teacher_depth", "taps"),
    [
        # As people number the layers that they pair by hand.
        (3, 3, 6, ["1 <- 2", "2 <- 4", "3 <- 6"]),
        (2, 3, 6, ["1 <- 2", "2 <- 4"]),
        (1, 3, 6, ["2 <- 4"]),
        (3, 4, 8, ["1 <- 2", "2 <- 4", "3 <- 6"]),
        (3, 6, 12, ["2 <- 4", "3 <- 6", "5 <- 10"]),
        (4, 4, 12, ["1 <- 3", "2 <- 6", "3 <- 9", "4 <- 12"]),
        (3, 4, 4, ["1 <- 1", "2 <- 2", "3 <- 3"]),
        (2, 2, 3, ["1 <- 2", "2 <- 3"]),
    ],
)
def test_pairs_are_of_equal_depth_in_both_models(
    pairs: int, depth: int, teacher_depth: int, taps: list[str]
) -> None:
    run = bound(
        extraction(total=Duration(number=80), pairs=pairs),
        student=mlp(*[5] * depth),
        teacher=LiveTeacher(mlp(*[16] * teacher_depth)),
    )
    assert [stage.plan.taps for stage in run.stages] == [*taps, "logits"]


def test_different_fractions_are_of_each_model_alone() -> None:
    curriculum = extraction(total="20 steps", pairs=(LayerPair(student=0.5, teacher=0.75),))
    run = bound(curriculum, student=mlp(5, 5, 5), teacher=LiveTeacher(mlp(*[16] * 6)))
    assert run.stages[0].plan.taps == "2 <- 5"


def test_epochs_are_those_of_the_data_and_are_noted() -> None:
    inputs = drawn(50, INPUTS)
    data = ExampleStream(inputs, torch.arange(50) % 2, batch_size=8)
    run = bound(extraction(total="3 epochs", layer_fraction=0.1), stream=data)
    # 150 examples are 18.75 batches of 8, the first 15 of them 1.875.
    assert [stage.plan.steps for stage in run.stages] == [2, 17]
    assert "length: 3 epochs of 50 examples in batches of 8 are 19 steps" in run.notes
    assert not any(note.startswith("length") for note in bound(one_shot(total="4 steps")).notes)


def test_temperatures_that_differ_are_noted() -> None:
    softer = one_shot(total="4 steps", objective=MatchLogits(teacher_temperature=4))
    (note,) = (note for note in bound(softer).notes if "temperature" in note)
    assert note.startswith("temperatures of MatchLogits differ, 4 of the teacher and 1 of the ")


@pytest.mark.parametrize(("drops", "steps"), [(True, 15), (False, 15)])
def test_an_epoch_of_a_loader_is_its_whole_batches(drops: bool, steps: int) -> None:
    pairs = [(torch.zeros(INPUTS), place % 2) for place in range(43)]
    loader: DataLoader[Any] = DataLoader(pairs, batch_size=8, drop_last=drops)  # type: ignore[arg-type]
    assert bound(one_shot(total="3 epochs"), stream=curricle.stream(loader)).num_steps == steps


def test_epochs_of_data_without_an_end_are_refused() -> None:
    with pytest.raises(
        BindError,
        match=r"^'duration' must be in steps, examples or tokens for data that do not repeat after "
        r"a known number of examples; got 1.5 epochs of 'ParityStream'; ",
    ):
        bound(extraction(total="1.5 epochs"))


def test_more_layer_stages_than_blocks_are_an_error() -> None:
    with pytest.raises(
        BindError,
        match=r"^stages 'layer 1' and 'layer 2' must read different taps of the student; "
        r"fractions 0\.333 and 0\.667 of its 1 blocks are both tap 1; "
        r"pairs=1 is the most that can be spread over them$",
    ):
        bound(
            extraction(total=Duration(number=9), pairs=2),
            student=mlp(5),
            teacher=LiveTeacher(mlp(16)),
        )


def test_a_deep_teacher_does_not_make_up_for_blocks_that_the_student_lacks() -> None:
    teacher = LiveTeacher(mlp(*[16] * 12))
    # Five pairs lie at 2, 4, 6, 8, 10 of the teacher, but at 1, 1, 2, 2, 3 of the student.
    with pytest.raises(BindError, match=r"fractions 0\.167 and 0\.333 of its 3 blocks are both "):
        bound(extraction(total=Duration(number=30), pairs=5), student=mlp(5, 5, 5), teacher=teacher)


def test_a_pair_that_is_written_out_may_be_trained_again_in_any_way() -> None:
    first, second = layers((1, 1), (1, 1)).stages
    pair = LayerPair(student=1, teacher=1)
    again = [
        second,
        replace(second, learning_rate_scale=0.1),
        replace(second, objectives=(MatchHidden(pair=pair, projection=Sign()),)),
    ]
    for stage in again:
        assert len(bound(Curriculum(name="x", stages=(first, stage))).stages) == 2


def test_one_fraction_may_be_trained_twice() -> None:
    assert len(bound(layers((0.5, 0.5), (0.5, 0.5))).stages) == 2


def test_one_student_layer_may_follow_several_teacher_layers() -> None:
    assert len(bound(layers((1, 1), (1, 2))).stages) == 2


def test_one_pair_may_be_trained_twice_with_another_objective() -> None:
    first, second = layers((1, 1), (1, 1)).stages
    light = MatchHidden(pair=LayerPair(student=1, teacher=1), weight=0.1)
    stages = (first, replace(second, objectives=(light,)))
    assert len(bound(Curriculum(name="x", stages=stages)).stages) == 2


# --- what does not fit ----------------------------------------------------------------------------


def test_only_an_optimizer_with_state_can_be_reset() -> None:
    curriculum = layers((1, 1), optimizer_state="reset")
    for optimizer in (SGD(learning_rate=0.1, momentum=0.9), AdamW(learning_rate=0.1)):
        assert bound(curriculum, optimizer=optimizer).stages
    with pytest.raises(BindError, match=r"^stage 'layer 1': 'optimizer_state' must be 'keep' for"):
        bound(curriculum, optimizer=SGD(learning_rate=0.1))


def test_a_curriculum_that_reads_a_teacher_needs_one() -> None:
    with pytest.raises(BindError, match=r"^'teacher' must be given to run 'one_shot'; got none$"):
        bound(one_shot(total=Duration(number=3)), teacher=None)


def test_a_checkpoint_that_nothing_reads_is_an_error() -> None:
    stage = replace(from_labels(total=Duration(number=3)).stages[0], teacher=70)
    with pytest.raises(
        BindError,
        match=r"^stage 'labels': 'teacher' must be given only where an objective reads it; got 70$",
    ):
        bound(Curriculum(name="x", stages=(stage,)))


def test_a_tap_that_is_not_there_is_named_with_its_stage() -> None:
    with pytest.raises(
        BindError, match=r"^stage 'layer 1': student's tap 3 must lie between 0 and the model's"
    ):
        bound(layers((3, 1)))


def test_vocabularies_are_equal() -> None:
    with pytest.raises(BindError, match=r"^stage 'logits': .* same classes, .*; got 2 and 3; "):
        bound(one_shot(total=Duration(number=3)), teacher=LiveTeacher(mlp(16, num_classes=3)))


def test_a_model_without_a_known_head_is_not_read_in_chunks() -> None:
    declared = Stage(
        name="logits", duration=Duration(number=3), objectives=(MatchLogits(chunk="auto"),)
    )
    with pytest.raises(BindError, match=r"^stage 'logits': 'chunk' must be None for MLP: its head"):
        bound(Curriculum(name="x", stages=(declared,)))


def test_accumulation_divides_the_batch() -> None:
    with pytest.raises(
        DataError, match=r"^'gradient_accumulation_steps' must divide the 8 examples .* got 3$"
    ):
        bound(one_shot(total=Duration(number=3)), settings={"gradient_accumulation_steps": 3})


def test_labels_must_be_in_the_data_to_fit_them() -> None:
    stream: Stream = Listed(Batch(inputs=torch.ones(4, INPUTS)))
    with pytest.raises(BindError, match=r"^stage 'labels': 'labels' must be in the data"):
        bound(from_labels(total=Duration(number=3)), stream=stream)


def test_missing_checkpoints_do_not_keep_a_plan_from_being_made() -> None:
    run = bound(progressive(total=Duration(number=9), trajectory=(5, 10)))
    assert run.teachers == (5, 10)
    assert [stage.plan.teacher for stage in run.stages] == ["step 5", "step 10"]
