"""Rows and sequences of paired states; their masks are promises of the objectives' contract."""

import torch

from curricle.data.batch import Batch
from curricle.models.tapped import Activations, Place
from curricle.objectives.base import Reads, Sample
from curricle.objectives.paired_states import PairedStates
from tests.parts import drawn

STUDENT, TEACHER = Place("blocks.0"), Place("layers.3")
VALID = torch.tensor([[True, True, False], [True, False, False]])
IDS = torch.zeros(2, 3, dtype=torch.long)
STATES = {STUDENT: drawn(2, 3, 4), TEACHER: drawn(2, 3, 6, seed=1)}
ACTIVATIONS = Activations(STATES, None)


def paired(batch: Batch, *, takes_selected: bool = False) -> PairedStates:
    return PairedStates.of(
        "positions",
        Reads(student=(STUDENT,), teacher=(TEACHER,)),
        Sample(batch=batch, student=ACTIVATIONS, teacher=ACTIVATIONS, seed=0),
        takes_selected=takes_selected,
    )


def test_rows_are_those_with_data_in_both_models() -> None:
    batch = Batch(inputs={"input_ids": IDS}, valid=VALID)
    states = paired(batch)
    assert states.count(batch) == 3
    assert torch.equal(states.student_rows(ACTIVATIONS, batch), STATES[STUDENT][VALID])
    assert torch.equal(states.teacher_rows(ACTIVATIONS, batch), STATES[TEACHER][VALID])


def test_selected_rows_are_taken_only_if_asked_for() -> None:
    batch = Batch(inputs={"input_ids": IDS}, valid=VALID, selected=torch.tensor([0, 3]))
    assert paired(batch).count(batch) == 3
    states = paired(batch, takes_selected=True)
    assert (states.count(batch), states.selects) == (2, True)
    expected = STATES[STUDENT].flatten(0, 1)[[0, 3]]
    assert torch.equal(states.student_rows(ACTIVATIONS, batch), expected)


def test_sequences_are_of_all_positions_also_for_flat_states() -> None:
    batch = Batch(inputs={"input_ids": IDS}, valid=VALID)
    states = paired(batch)
    flat = Activations({place: state.flatten(0, 1) for place, state in STATES.items()}, None)
    for activations in (ACTIVATIONS, flat):
        assert torch.equal(states.student_sequences(activations, batch), STATES[STUDENT])
        assert torch.equal(states.teacher_sequences(activations, batch), STATES[TEACHER])


def test_taps_and_widths_are_described() -> None:
    states = paired(Batch(inputs={"input_ids": IDS}))
    assert states.names == "blocks.0 <- layers.3"
    assert states.describe()[1] == "4 <- 6"
