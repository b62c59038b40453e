"""Readings of maps and sequences: rows, values by hand, and refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.errors import BindError, DataError, SpecError
from curricle.models.tapped import Activations, Place
from curricle.objectives.base import Reads, Sample
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.objectives.projections import Identity
from curricle.values import parse, plain
from tests.parts import drawn

STUDENT, TEACHER = Place("s"), Place("t")
READS = Reads(student=(STUDENT,), teacher=(TEACHER,))


def loss(reading: str, student: Tensor, teacher: Tensor, batch: Batch) -> float:
    """Return the first loss of a pair with the identity as projection."""
    declared = objective(reading)
    activations = Activations({STUDENT: student}), Activations({TEACHER: teacher})
    sample = Sample(batch=batch, student=activations[0], teacher=activations[1], seed=0)
    term = declared.bind(READS, sample, is_residual=False)
    total = term.total(activations[0], term.target(activations[1], batch), batch)
    # In parts the sums and counts of the parts add up to those of the whole.
    parts = batch.chunks(1)
    assert sum(term.count(part) for part in parts) == term.count(batch)
    return total.item() / term.count(batch)


def objective(reading: str, **fields: Any) -> MatchHidden:
    pair = LayerPair(student="s", teacher="t", reading=reading)  # type: ignore[arg-type]
    return MatchHidden(pair=pair, projection=Identity(), normalize="none", **fields)


def images(num_examples: int = 3) -> Batch:
    return Batch(inputs=torch.zeros(num_examples, 1, 8, 8))


def test_pooled_states_are_means_over_positions() -> None:
    student, teacher = drawn(3, 2, 4, 5), drawn(3, 7, 5)
    expected = (student.mean((1, 2)) - teacher.mean(1)).square().mean()
    assert loss("pooled", student, teacher, images()) == pytest.approx(expected.item())


def test_a_pooled_state_without_positions_stays_as_it_is() -> None:
    student, teacher = drawn(3, 5), drawn(3, 2, 2, 5)
    expected = (student - teacher.mean((1, 2))).square().mean()
    assert loss("pooled", student, teacher, images()) == pytest.approx(expected.item())


def test_padding_does_not_count_in_a_pooled_state() -> None:
    valid = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    batch = Batch(inputs={"input_ids": torch.zeros(2, 3).long()}, valid=valid)
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    means = [torch.stack([state[0].mean(0), state[1, 0]]) for state in (student, teacher)]
    expected = (means[0] - means[1]).square().mean()
    assert loss("pooled", student, teacher, batch) == pytest.approx(expected.item())


def test_the_larger_map_of_a_grid_is_averaged_to_the_smaller() -> None:
    student, teacher = drawn(3, 2, 4, 5), drawn(3, 4, 4, 5)
    # Four rows become two: neighbors are averaged, columns stay.
    coarse = (teacher[:, 0::2] + teacher[:, 1::2]) / 2
    expected = (student - coarse).square().mean()
    assert loss("grid", student, teacher, images()) == pytest.approx(expected.item())


def test_a_grid_takes_the_smaller_of_each_axis() -> None:
    student, teacher = drawn(3, 4, 2, 5), drawn(3, 2, 4, 5)
    student_rows = (student[:, 0::2] + student[:, 1::2]) / 2
    teacher_columns = (teacher[:, :, 0::2] + teacher[:, :, 1::2]) / 2
    expected = (student_rows - teacher_columns).square().mean()
    assert loss("grid", student, teacher, images()) == pytest.approx(expected.item())


def test_a_grid_of_signals_has_one_axis() -> None:
    student, teacher = drawn(3, 2, 5), drawn(3, 4, 5)
    expected = (student - (teacher[:, 0::2] + teacher[:, 1::2]) / 2).square().mean()
    assert loss("grid", student, teacher, images()) == pytest.approx(expected.item())


def test_channels_are_rows_with_their_map_as_features() -> None:
    student, teacher = drawn(3, 2, 2, 5), drawn(3, 2, 2, 5, seed=1)
    # Their mean is that over positions; what differs is what a projection or a norm is applied to.
    expected = (student - teacher).square().mean()
    assert loss("channels", student, teacher, images()) == pytest.approx(expected.item())
    activations = Activations({STUDENT: student}), Activations({TEACHER: drawn(3, 3, 3, 5)})
    sample = Sample(batch=images(), student=activations[0], teacher=activations[1], seed=0)
    declared = MatchHidden(pair=LayerPair(student="s", teacher="t", reading="channels"))
    term = declared.bind(READS, sample, is_residual=False)
    assert term.count(images()) == 15
    assert term.describe()[1:] == ("1 x MSE channels", "gaussian 4x9", "4 <- 9")
    assert term.target(activations[1], images()).shape == (15, 4)


def test_maps_of_other_sizes_are_refused_with_both_remedies() -> None:
    with pytest.raises(
        BindError,
        match=r"the same examples and positions; got \(3, 2, 2\) and \(3, 4, 4\); LayerPair\("
        r"reading='pooled'\) compares .*, reading='grid' maps at the smaller resolution$",
    ):
        loss("positions", drawn(3, 2, 2, 5), drawn(3, 4, 4, 5), images())


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(
        BindError, match=r"must have the same examples and channels; got \(3, 5\) and \(3, 4\)$"
    ):
        loss("channels", drawn(3, 2, 2, 5), drawn(3, 2, 2, 4), images())


@pytest.mark.parametrize("reading", ["grid", "channels"])
def test_states_without_a_common_map_are_refused(reading: str) -> None:
    with pytest.raises(BindError, match=r"^'reading' of taps 's <- t' must be 'pooled' for states"):
        loss(reading, drawn(3, 5), drawn(3, 4, 4, 5), images())


def test_a_map_and_a_sequence_have_no_common_grid() -> None:
    with pytest.raises(
        BindError, match=r"of shapes \(3, 7, 5\) and \(3, 4, 4, 5\) \(features last"
    ):
        loss("grid", drawn(3, 7, 5), drawn(3, 4, 4, 5), images())


@pytest.mark.parametrize("reading", ["grid", "channels"])
def test_padded_data_have_no_map(reading: str) -> None:
    batch = Batch(
        inputs={"input_ids": torch.zeros(2, 3).long()}, valid=torch.ones(2, 3, dtype=torch.bool)
    )
    with pytest.raises(BindError, match=r"must be 'positions' or 'pooled' for padded data; got "):
        loss(reading, drawn(2, 3, 4), drawn(2, 3, 4), batch)


def test_padding_among_unknown_positions_is_refused_before_it_is_averaged() -> None:
    batch = Batch(
        inputs={"input_ids": torch.zeros(2, 3).long()}, valid=torch.ones(2, 3, dtype=torch.bool)
    )
    with pytest.raises(BindError, match=r"must have the positions \(2, 3\) of the padded data"):
        loss("pooled", drawn(2, 5, 4), drawn(2, 5, 4), batch)


PADDED = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_a_mask_that_does_not_fit_positions_of_the_teacher_is_refused() -> None:
    batch = Batch(inputs={"input_ids": torch.zeros(2, 3).long()}, valid=PADDED.bool())
    with pytest.raises(
        BindError, match=r"^teacher's tap 't' must have the positions \(2, 3\) of the padded data"
    ):
        loss("pooled", drawn(2, 3, 4), drawn(2, 5, 4), batch)


def test_a_mask_that_does_not_fit_a_later_batch_is_refused() -> None:
    first = Batch(inputs={"input_ids": torch.zeros(2, 3).long()})
    sides = Activations({STUDENT: drawn(2, 3, 4)}), Activations({TEACHER: drawn(2, 5, 4)})
    sample = Sample(batch=first, student=sides[0], teacher=sides[1], seed=0)
    term = objective("pooled").bind(READS, sample, is_residual=False)
    later = Batch(inputs=first.inputs, valid=PADDED.bool())
    with pytest.raises(DataError, match=r"have the positions \(2, 3\) of the padded data in every"):
        term.target(sides[1], later)


def test_a_single_state_of_the_teacher_needs_no_mask() -> None:
    batch = Batch(inputs={"input_ids": torch.zeros(2, 3).long()}, valid=PADDED.bool())
    student, teacher = drawn(2, 3, 4), drawn(2, 4)
    mean = torch.stack([student[0, :2].mean(0), student[1, 0]])
    expected = (mean - teacher).square().mean()
    assert loss("pooled", student, teacher, batch) == pytest.approx(expected.item())


@pytest.mark.parametrize("inputs", ["input_ids", "pixel_values"])
def test_the_mask_of_the_teachers_inputs_counts_in_its_pooled_state(inputs: str) -> None:
    # Students of images read no mask at all.
    students = {"input_ids": torch.zeros(2, 3).long(), "pixel_values": torch.zeros(2, 1, 8, 8)}
    taught = {"input_ids": torch.ones(2, 3).long(), "attention_mask": PADDED}
    batch = Batch(inputs={inputs: students[inputs]}, teacher_inputs=taught)
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    mean = torch.stack([teacher[0, :2].mean(0), teacher[1, 0]])
    expected = (student.mean(1) - mean).square().mean()
    assert loss("pooled", student, teacher, batch) == pytest.approx(expected.item())
    with pytest.raises(BindError, match=r"must have the positions \(2, 3\) of the padded data"):
        loss("pooled", student, drawn(2, 5, 4), batch)


def test_patches_of_the_teacher_have_no_padding_of_the_students_text() -> None:
    batch = Batch(
        inputs={"input_ids": torch.zeros(2, 3).long()},
        valid=PADDED.bool(),
        teacher_inputs={"pixel_values": torch.zeros(2, 1, 8, 8)},
    )
    student, teacher = drawn(2, 3, 4), drawn(2, 5, 4)
    mean = torch.stack([student[0, :2].mean(0), student[1, 0]])
    expected = (mean - teacher.mean(1)).square().mean()
    assert loss("pooled", student, teacher, batch) == pytest.approx(expected.item())


def test_tokens_of_the_teacher_have_the_mask_of_the_student() -> None:
    inputs = {"input_ids": torch.zeros(2, 3).long()}
    batch = Batch(inputs=inputs, valid=PADDED.bool(), teacher_inputs=torch.ones(2, 3).long())
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    means = [torch.stack([side[0, :2].mean(0), side[1, 0]]) for side in (student, teacher)]
    expected = (means[0] - means[1]).square().mean()
    assert loss("pooled", student, teacher, batch) == pytest.approx(expected.item())
    with pytest.raises(BindError, match=r"must have the positions \(2, 3\) of the padded data"):
        loss("pooled", student, drawn(2, 5, 4), batch)


def test_a_padded_teacher_has_no_map_in_common_with_images() -> None:
    taught = {"input_ids": torch.ones(2, 3).long(), "attention_mask": PADDED}
    batch = Batch(inputs=torch.zeros(2, 1, 8, 8), teacher_inputs=taught)
    with pytest.raises(BindError, match=r"must be 'positions' or 'pooled' for padded data"):
        loss("grid", drawn(2, 3, 4), drawn(2, 3, 4), batch)


@pytest.mark.parametrize("reading", ["positions", "pooled"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_tap_with_examples_first_of_a_model_with_sequences_first_is_refused(
    reading: str, side: int
) -> None:
    # As HookedModel gives a state of shape (3, 7, 5): its axes are moved as declared.
    moved, plain_state = drawn(3, 7, 5).permute(1, 0, 2), drawn(3, 7, 5)
    places = [replace(STUDENT, order=()), replace(TEACHER, order=())]
    places[side] = replace(places[side], order=(1, 0, 2))
    states = [plain_state, plain_state]
    states[side] = moved
    sample = Sample(
        batch=Batch(inputs={"input_ids": torch.zeros(3, 7).long()}),
        student=Activations({places[0]: states[0]}),
        teacher=Activations({places[1]: states[1]}),
        seed=0,
    )
    reads = Reads(student=(places[0],), teacher=(places[1],))
    with pytest.raises(BindError, match=r"^tap '[st]' must have its positions on the first axis"):
        objective(reading).bind(reads, sample, is_residual=False)


def test_selected_positions_are_those_of_the_data() -> None:
    with pytest.raises(SpecError, match=r"'positions' must be 'all' with reading 'pooled'"):
        objective("pooled", positions="selected")


@pytest.mark.parametrize("reading", ["grid", "channels"])
def test_targets_of_a_map_of_the_student_are_not_stored(reading: str) -> None:
    state = drawn(3, 2, 2, 5)
    sample = Sample(
        batch=images(),
        student=Activations({STUDENT: state}),
        teacher=Activations({TEACHER: state}),
        seed=0,
    )
    term: Any = objective(reading).bind(READS, sample, is_residual=False)
    with pytest.raises(BindError, match=r"^'reading' must be 'positions' or 'pooled' for stored"):
        _ = term.target_facts


def test_the_plain_reading_leaves_no_trace_in_digests() -> None:
    # Runs that began before there were readings go on.
    assert plain(LayerPair(student=1, teacher=2)) == {"student": 1, "teacher": 2}
    pooled = LayerPair(student=1, teacher=2, reading="pooled")
    assert plain(pooled) == {"student": 1, "teacher": 2, "reading": "pooled"}
    assert parse(LayerPair, plain(pooled)) == pooled
