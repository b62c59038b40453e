"""Logits of two vocabularies at the positions that both models have; values are in the contract."""

from typing import Any

import pytest
import torch
from torch import Tensor

from curricle.data.batch import Batch
from curricle.errors import BindError
from curricle.models.tapped import Activations
from curricle.objectives.base import BoundObjective, Reads, Sample, label_classes
from curricle.objectives.losses import cross_entropy, sorted_distance
from curricle.objectives.paired_logits import MatchPairedLogits
from tests.parts import drawn

MATCHED = torch.tensor([[True, False, True], [True, True, False]])
STUDENT, TEACHER = drawn(6, 5), drawn(6, 7, seed=1)


def batch(*, labels: bool = True, selects: bool = True) -> Batch:
    """Return two examples of three positions, of which the first five may be selected."""
    selected = torch.arange(5)
    return Batch(
        inputs={"input_ids": torch.zeros(2, 3, dtype=torch.int64)},
        teacher_inputs={"input_ids": torch.zeros(2, 4, dtype=torch.int64)},
        alignment=torch.zeros(2, 3, dtype=torch.int64),
        matched=MATCHED,
        selected=selected if selects else None,
        labels=selected if labels and selects else None,
    )


def rows_of(data: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of both models as their passes return them."""
    if data.selected is None:
        return STUDENT.unflatten(0, (2, 3)), TEACHER.unflatten(0, (2, 3))
    assert data.matched_selected is not None
    return STUDENT[data.selected], TEACHER[data.matched_selected]


def bound(data: Batch, **fields: Any) -> tuple[BoundObjective, Activations, Activations]:
    student, teacher = (Activations({}, logits) for logits in rows_of(data))
    sample = Sample(batch=data, student=student, teacher=teacher, seed=0)
    term = MatchPairedLogits(**fields).bind(Reads(), sample, is_residual=False)
    return term, student, teacher


def expected(rows: list[int]) -> Tensor:
    return sorted_distance(
        STUDENT[rows], TEACHER[rows], student_temperature=1.0, teacher_temperature=1.0
    )


@pytest.mark.parametrize("selects", [True, False])
def test_only_matched_positions_are_compared(selects: bool) -> None:
    data = batch(selects=selects)
    term, student, teacher = bound(data)
    total = term.total(student, term.target(teacher, data), data)
    assert term.count(data) == 4
    assert torch.allclose(total, expected([0, 2, 3, 4]))


def test_labels_count_at_every_selected_position() -> None:
    data = batch()
    term, student, teacher = bound(data, label_weight=0.5)
    total = term.total(student, term.target(teacher, data), data)
    labels = cross_entropy(STUDENT[:5], torch.arange(5))
    assert (term.count(data), label_classes(term)) == (5, 5)
    assert torch.allclose(total, expected([0, 2, 3, 4]) + 0.5 * labels)


def test_labels_must_be_there_to_be_fitted() -> None:
    term, *_ = bound(batch(labels=False), label_weight=0.5)
    with pytest.raises(BindError, match=r"^'labels' must be in the data for 'label_weight' 0.5"):
        term.count(batch(labels=False))


def test_other_positions_of_the_teacher_are_refused() -> None:
    data = batch()
    student, teacher = Activations({}, STUDENT[:5]), Activations({}, TEACHER[:5])
    sample = Sample(batch=data, student=student, teacher=teacher, seed=0)
    with pytest.raises(BindError, match=r"the same compared positions; got \(4,\) and \(5,\)$"):
        MatchPairedLogits().bind(Reads(), sample, is_residual=False)
