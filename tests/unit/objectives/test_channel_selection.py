"""Selections of channels, with energies by hand."""

from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import curricle
from curricle import seeding
from curricle.data.batch import Batch
from curricle.errors import BindError, SpecError
from curricle.models.mlp import MLP
from curricle.models.tapped import Activations, Place
from curricle.models.wrapping import tapped
from curricle.objectives.base import BoundObjective, Reads, Sample, pending_calibration
from curricle.objectives.channel_selection import ChannelSelection, largest_channels
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.projections import Projection
from curricle.teachers.live import LiveTeacher
from curricle.training.binding.bound_run import bind
from curricle.values import parse, plain
from tests.parts import INPUTS, drawn, parity

STUDENT, TEACHER = Place("student"), Place("teacher")
IDS = {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
VALID = torch.tensor([[True, True, False], [True, True, True]])
BATCH = Batch(inputs=IDS, valid=VALID)


def test_the_channels_with_the_largest_energies_stay_in_order() -> None:
    energies = torch.tensor([1.0, 4.0, 0.0, 9.0, 4.0])
    assert largest_channels(energies, 2) == (1, 3)
    assert largest_channels(energies, 3) == (1, 3, 4)


def test_the_kept_channels_are_scaled_to_the_mean_square_of_all() -> None:
    matrix = ChannelSelection().matrix(torch.tensor([1.0, 7.0, 0.0, 9.0]), 2)
    # Mean of all 17 / 4, of the kept (7 + 9) / 2.
    factor = (4.25 / 8) ** 0.5
    expected = torch.tensor([[0, factor, 0, 0], [0, 0, 0, factor]])
    assert torch.allclose(matrix, expected)


def test_named_channels_stay_whatever_their_energy() -> None:
    matrix = ChannelSelection(channels=(2, 0)).matrix(torch.tensor([1.0, 7.0, 4.0]), 2)
    assert torch.equal(matrix != 0, torch.tensor([[True, False, False], [False, False, True]]))


def test_states_of_zero_have_a_finite_selection() -> None:
    assert torch.equal(ChannelSelection().matrix(torch.zeros(3), 2), torch.eye(3)[:2])


@given(seed=st.integers(0, 1000), width=st.integers(1, 6))
def test_the_mean_square_of_the_rows_is_kept(seed: int, width: int) -> None:
    rows = drawn(20, 6, seed=seed).double()
    matrix = ChannelSelection().matrix(rows.square().mean(0), width)
    assert torch.allclose((rows @ matrix.mT).square().mean(), rows.square().mean())


def bound(student: torch.Tensor, teacher: torch.Tensor, **fields: Any) -> BoundObjective:
    declared = MatchHidden(
        pair=LayerPair(student=1, teacher=1), **{"projection": ChannelSelection()} | fields
    )
    sample = Sample(
        batch=BATCH,
        student=Activations({STUDENT: student}, None),
        teacher=Activations({TEACHER: teacher}, None),
        seed=0,
    )
    reads = Reads(student=(STUDENT,), teacher=(TEACHER,))
    return declared.bind(reads, sample, is_residual=False)


@pytest.mark.parametrize("center", [False, True])
def test_energies_are_those_of_the_calibration_at_positions_with_data(center: bool) -> None:
    teacher = drawn(2, 3, 4, seed=1)
    teacher[..., 2] *= 5.0
    # Padding does not count.
    teacher[0, 2, 0] = 1e4
    term = bound(drawn(2, 3, 1), teacher, center=center)
    calibrate = pending_calibration(term)
    assert calibrate is not None
    activations = Activations({TEACHER: teacher}, None)
    target = calibrate([(activations, BATCH)]).target(activations, BATCH)
    rows = teacher[VALID]
    factor = (rows.square().mean() / rows[:, 2].square().mean()).sqrt()
    expected = rows[:, [2]] * factor
    expected = expected - expected.mean(0) if center else expected
    assert torch.allclose(target, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("widths", "fields", "sentence"),
    [
        (
            (4, 3),
            {},
            r"must have a student no wider than its teacher; got widths 4 and 3; use 'orthogonal'$",
        ),
        (
            (2, 3),
            {"projection": ChannelSelection(channels=(0, 3))},
            r"^'channels' of 'student <- teacher' must be 2 numbers below 3, .*; got 2 up to 3$",
        ),
        (
            (2, 3),
            {"projection": ChannelSelection(channels=(1,))},
            r"^'channels' of .* must be 2 numbers below 3, .*; got 1 up to 1$",
        ),
    ],
)
def test_widths_without_a_selection_are_refused(
    widths: tuple[int, int], fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BindError, match=sentence):
        bound(drawn(2, 3, widths[0]), drawn(2, 3, widths[1]), **fields)


def test_named_channels_are_not_ranked() -> None:
    with pytest.raises(SpecError, match=r"'by' has no effect with 'channels'.*got 'gradients'"):
        ChannelSelection(by="gradients", channels=(1,))


def test_the_channels_of_the_largest_gradients_are_kept() -> None:
    with seeding.scoped(0, "models"):
        student, teacher = (MLP(num_inputs=4, widths=(n,), num_classes=1) for n in (2, 5))
    with torch.no_grad():
        # The gradient of a single output by the states is the head's row, whatever their energy.
        teacher.head.weight[0] = torch.tensor([0.1, -3.0, 0.5, 2.0, 0.0])
        first = teacher.blocks[0][0]  # type: ignore[index]
        first.bias[4] = 100.0
    objective = MatchHidden(
        pair=LayerPair(student=1, teacher=1), projection=ChannelSelection(by="gradients")
    )
    models = tapped(student), tapped(teacher.requires_grad_(False))
    reads, batch = objective.reads(*models), Batch(inputs=drawn(6, 4, seed=1))
    states = []
    for model, places in zip(models, (reads.student, reads.teacher), strict=True):
        with torch.no_grad(), model.open_taps(places, logits=False) as forward:
            states.append(forward(batch.inputs, None))
    sample = Sample(batch=batch, student=states[0], teacher=states[1], seed=0)
    term = objective.bind(reads, sample, is_residual=False)
    calibrate = pending_calibration(term)
    assert calibrate is not None
    target = calibrate([(states[1], batch)]).target(states[1], batch)
    hidden = states[1].hidden[reads.teacher[0]]
    kept = hidden[:, [1, 3]]
    factor = (hidden.square().mean() / kept.square().mean()).sqrt()
    assert torch.allclose(target, kept * factor, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_channels_of_a_divided_student_are_selected_by_gradients_of_its_whole_teacher() -> None:
    with seeding.scoped(0, "models"):
        student, teacher = (MLP(num_inputs=INPUTS, widths=(n,), num_classes=2) for n in (2, 4))
    curriculum = curricle.one_shot(
        total="2 steps",
        objective=MatchHidden(
            pair=LayerPair(student=1, teacher=1), projection=ChannelSelection(by="gradients")
        ),
    )
    runs = [
        bind(
            curriculum,
            student=tapped(deepcopy(student)),
            teacher=LiveTeacher(tapped(teacher)),
            stream=parity(),
            optimizer=curricle.SGD(learning_rate=0.1),
            settings=curricle.TrainingSettings(parallel=parallel, device="cpu"),
            seed=0,
        )
        for parallel in ("none", "fsdp2")
    ]
    facts = [cast("Any", run.stages[0].terms[0].objective).target_facts for run in runs]
    assert facts[0] == facts[1]
    assert "'channels': [" in str(facts[0])


def test_gradients_of_a_teacher_without_weights_are_refused() -> None:
    objective = MatchHidden(
        pair=LayerPair(student="0", teacher="0"), projection=ChannelSelection(by="gradients")
    )
    with seeding.scoped(0, "student"):
        student = tapped(nn.Sequential(nn.Linear(4, 2)), blocks=["0"])
    with pytest.raises(BindError, match="needs a teacher with weights; got stored targets"):
        objective.reads(student, tapped(nn.Sequential(nn.Identity()), blocks=["0"]))


def test_a_selection_by_energy_is_written_as_before() -> None:
    assert "by" not in plain(ChannelSelection())
    assert parse(ChannelSelection, plain(ChannelSelection(by="gradients"))) == ChannelSelection(
        by="gradients"
    )


def test_a_selection_is_not_shared() -> None:
    sentence = r"'shared_projection' must be false with projection 'selection', .*; got True$"
    with pytest.raises(SpecError, match=sentence):
        MatchHidden(
            pair=LayerPair(student=1, teacher=1),
            projection=ChannelSelection(),
            shared_projection=True,
        )


def test_a_channel_is_kept_once() -> None:
    with pytest.raises(SpecError, match=r"'channels' must differ; got 3 twice"):
        ChannelSelection(channels=(3, 1, 3))


@pytest.mark.parametrize("law", [ChannelSelection(), ChannelSelection(channels=(4, 1))])
def test_it_survives_plain_data(law: ChannelSelection) -> None:
    assert parse(Projection, plain(law)) == law
