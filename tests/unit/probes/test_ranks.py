"""Effective ranks of taps of a student, its teacher and its targets."""

import math

import pytest
import torch

from curricle.data.batch import Batch
from curricle.objectives.base import Sample
from curricle.objectives.hidden import LayerPair, MatchHidden
from curricle.probes.forward_passes import hidden_states
from curricle.probes.ranks import Term, student_ranks, tap_ranks
from curricle.probes.representations import effective_rank
from tests.parts import INPUTS, drawn, mlp

BATCH = Batch(inputs=drawn(64, INPUTS).sign())


def test_every_tap_has_its_rank() -> None:
    model = mlp(5, 4)
    states = hidden_states(model, BATCH, [0, 1, 2])
    assert tap_ranks(model, BATCH) == {
        f"rank_{tap}": pytest.approx(effective_rank(states[str(tap)])) for tap in range(3)
    }
    assert set(tap_ranks(model, BATCH, taps=[2])) == {"rank_2"}


def test_a_network_of_one_direction_has_rank_one() -> None:
    model = mlp(4)
    with torch.no_grad():
        first = next(model.module.parameters())
        first.zero_()
        # One neuron moves; all others are constant.
        first[0] = 1.0
    assert tap_ranks(model, BATCH)["rank_1"] == pytest.approx(1.0)


def test_a_student_equal_to_its_teacher_has_the_ranks_of_the_teacher() -> None:
    numbers = student_ranks(mlp(5, 4), BATCH, teacher=mlp(5, 4))
    assert {name for name in numbers if name.startswith("rank")} == {"rank_0", "rank_1", "rank_2"}
    for tap in range(3):
        assert numbers[f"rank_{tap}"] == pytest.approx(numbers[f"teacher_{tap}"])


def test_the_tap_of_a_deeper_teacher_is_that_of_equal_depth() -> None:
    student, teacher = mlp(5), mlp(16, 12, seed=1)
    states = hidden_states(teacher, BATCH, [2])["2"]
    numbers = student_ranks(student, BATCH, teacher=teacher)
    assert numbers["teacher_1"] == pytest.approx(effective_rank(states, directions=5))


def test_the_target_is_that_of_the_layer_pair() -> None:
    """A projection that keeps one direction of the teacher gives a target of rank 1."""
    student, teacher = mlp(5), mlp(16, 12, seed=1)
    declared = MatchHidden(pair=LayerPair(student=1, teacher=1), normalize="none")
    numbers = student_ranks(
        student, BATCH, teacher=teacher, terms=[_with_matrix(declared, student, teacher)]
    )
    states = hidden_states(teacher, BATCH, [1])["1"]
    assert numbers["target_1"] == pytest.approx(1.0, abs=1e-4)
    assert numbers["teacher_1"] == pytest.approx(effective_rank(states, directions=5))
    assert math.isfinite(numbers["rank_1"])


def _with_matrix(declared: MatchHidden, student: object, teacher: object) -> Term:
    """Return the objective bound with a projection of rank 1."""
    reads = declared.reads(student, teacher)  # type: ignore[arg-type]
    activations = []
    for model, places in ((student, reads.student), (teacher, reads.teacher)):
        with model.open_taps(places, logits=False) as forward:  # type: ignore[attr-defined]
            activations.append(forward(BATCH.inputs))
    sample = Sample(batch=BATCH, student=activations[0], teacher=activations[1], seed=0)
    bound = declared.bind(reads, sample, is_residual=False)
    matrix = bound.matrix  # type: ignore[attr-defined]
    matrix.copy_(torch.outer(torch.arange(1.0, 6.0), matrix[0]))
    return declared, bound
