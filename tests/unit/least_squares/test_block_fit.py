"""A block is fitted to what the teacher's blocks compute, or left with a reason."""

import pytest
import torch

from curricle.least_squares.block_fit import BlockFit, obstacle, teacher_block
from curricle.least_squares.calibrated import CalibratedModel, Understood
from curricle.models.wrapping import tapped
from tests.unit.least_squares.families import inputs, model

pytest.importorskip("transformers")


def calibrated(family: str, *, seed: int = 0, **fields: int) -> CalibratedModel:
    batches = [inputs(family, number) for number in range(4)]
    return CalibratedModel(tapped(model(family, seed=seed, **fields)), batches, [None] * 4)


def block_fit(student: CalibratedModel, teacher: CalibratedModel) -> BlockFit:
    """Return the fit of first blocks of one width; the teacher is advanced."""
    return BlockFit(
        student,
        0,
        teacher,
        stream=torch.eye(16).double(),
        understood=student.understood(0),
        teachers=[teacher_block(teacher, 0)],
    )


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_block_writes_what_the_teachers_writes(family: str) -> None:
    student, teacher = calibrated(family, seed=1), calibrated(family)
    # From the same states, in the coordinates of the teacher.
    states = student.states = list(teacher.states)
    assert block_fit(student, teacher).fit() == {}
    for batch, state in enumerate(states):
        torch.testing.assert_close(student.run(batch, 0, state), teacher.run(batch, 0, state))


def test_an_obstacle_is_that_of_either_block() -> None:
    bert, llama = calibrated("bert").understood(0), calibrated("llama").understood(0)
    assert obstacle(bert, [bert]) == ""
    assert obstacle(bert, [llama]) == "the teacher's has other sublayers"
    reason = Understood(reason="it calls no linear map")
    assert obstacle(reason, [bert]) == "it calls no linear map"
    assert obstacle(bert, [reason]) == "of the teacher's, it calls no linear map"


def test_a_part_of_another_kind_is_left() -> None:
    # GPT-2 has plain neurons, Llama gated ones; both normalize before each sublayer.
    student, teacher = calibrated("gpt2", seed=1), calibrated("llama")
    assert block_fit(student, teacher).fit() == {"mlp.c_fc": "one of both has gates"}
