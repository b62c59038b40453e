"""FLOPs of a fit are counted by models, and estimated before it runs."""

import pytest
import torch
from torch import nn

from curricle.least_squares.fitting import CalibrationBatch, fit
from curricle.least_squares.flops import FitFlops, passes_of, planned_flops
from curricle.models.wrapping import tapped
from tests.unit.least_squares.families import inputs, model

pytest.importorskip("transformers")


def test_passes_of_the_teacher_are_counted_apart() -> None:
    teacher, student, rows = nn.Linear(3, 5), nn.Linear(3, 7), torch.ones(2, 3)
    with FitFlops(teacher) as flops:
        with passes_of(teacher):
            teacher(rows)
        with passes_of(student):
            student(rows)
        rows @ rows.mT
    assert flops.teacher == 2 * 2 * 3 * 5
    assert flops.student == 2 * 2 * 3 * 7 + 2 * 2 * 3 * 2


def test_a_pass_that_fails_is_over() -> None:
    teacher, rows = nn.Linear(3, 5), torch.ones(2, 3)
    with FitFlops(teacher) as flops:
        with pytest.raises(ArithmeticError), passes_of(teacher):
            raise ArithmeticError
        rows @ rows.mT
    assert (flops.teacher, flops.student) == (0, 2 * 2 * 3 * 2)


def test_solutions_are_counted() -> None:
    matrix = 2 * torch.eye(6)
    with FitFlops(nn.Linear(1, 1)) as flops:
        torch.linalg.solve(matrix, torch.ones(6, 4))
        torch.linalg.eigh(matrix)
    assert flops.student == 2 * 6**3 // 3 + 2 * 6**2 * 4 + 9 * 6**3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_costs_about_as_much_as_planned(family: str) -> None:
    teacher = tapped(model(family))
    width = {"llama": {"hidden_size": 8, "intermediate_size": 16}, "gpt2": {"n_embd": 8}}[family]
    counts = []
    for number in (6, 12):
        student = tapped(model(family, seed=1, **width))
        batches = [inputs(family, seed) for seed in range(number)]
        entries = [CalibrationBatch(student=batch, teacher=batch) for batch in batches]
        with FitFlops(teacher.module) as flops:
            fit(student, teacher, entries)
        counts.append(torch.tensor([flops.student, flops.teacher]))
    planned = planned_flops(student, teacher, (batches[0], batches[0]), 6)
    # Twice the batches: what does not grow with them falls out.
    ratio = (counts[1] - counts[0]) / torch.tensor(planned)
    assert ratio.log().abs().max() < torch.tensor(1.7).log(), (planned, counts)
