"""FLOPs of a fit are counted by models, and planned before it runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curricle.least_squares.chain_fit import fit_chain, inspect_chain, planned_chain_flops
from curricle.least_squares.fitting import CalibrationBatch, fit
from curricle.least_squares.flops import StartFlops, passes_of, planned_flops
from curricle.models.wrapping import tapped
from tests.unit.least_squares.families import inputs, model
from tests.unit.least_squares.networks import (
    calibration,
    convolutional,
    images,
    open_networks,
    perceptron,
    vectors,
)

pytest.importorskip("transformers")


def test_passes_of_the_teacher_are_counted_apart() -> None:
    teacher, student, rows = nn.Linear(3, 5), nn.Linear(3, 7), torch.ones(2, 3)
    with StartFlops(teacher) as flops:
        with passes_of(teacher):
            teacher(rows)
        with passes_of(student):
            student(rows)
        rows @ rows.mT
    assert flops.teacher == 2 * 2 * 3 * 5
    assert flops.student == 2 * 2 * 3 * 7 + 2 * 2 * 3 * 2


def test_a_pass_that_fails_is_over() -> None:
    teacher, rows = nn.Linear(3, 5), torch.ones(2, 3)
    with StartFlops(teacher) as flops:
        with pytest.raises(ArithmeticError), passes_of(teacher):
            raise ArithmeticError
        rows @ rows.mT
    assert (flops.teacher, flops.student) == (0, 2 * 2 * 3 * 2)


def test_solutions_are_counted() -> None:
    matrix = 2 * torch.eye(6)
    with StartFlops(nn.Linear(1, 1)) as flops:
        torch.linalg.solve(matrix, torch.ones(6, 4))
        torch.linalg.eigh(matrix)
    assert flops.student == 2 * 6**3 // 3 + 2 * 6**2 * 4 + 9 * 6**3


def test_each_matrix_of_a_batch_counts() -> None:
    matrices = 2 * torch.eye(6).expand(5, 6, 6)
    with StartFlops(nn.Linear(1, 1)) as flops:
        torch.linalg.solve(matrices, torch.ones(5, 6, 4))
        torch.linalg.cholesky(matrices)
    assert flops.student == 5 * (2 * 6**3 // 3 + 2 * 6**2 * 4 + 6**3 // 3)


def test_a_triangular_solution_costs_half_of_a_product_from_either_side() -> None:
    matrix = torch.eye(6)
    with StartFlops(nn.Linear(1, 1)) as flops:
        torch.linalg.solve_triangular(matrix, torch.ones(6, 4), upper=False)
        torch.linalg.solve_triangular(matrix, torch.ones(4, 6), upper=False, left=False)
    assert flops.student == 2 * 6**2 * 4


def test_without_computing_the_counts_are_the_same_and_the_results_zero() -> None:
    def counted(*, computes: bool) -> tuple[int, list[Tensor]]:
        matrix, images = 2 * torch.eye(6), torch.ones(2, 3, 5, 5)
        with StartFlops(nn.Linear(1, 1), computes=computes) as flops, torch.no_grad():
            results = [
                matrix @ matrix,
                nn.Conv2d(3, 4, 3, stride=2)(images),
                torch.linalg.solve(matrix, torch.ones(6, 4)),
                torch.linalg.cholesky(matrix),
                torch.linalg.eigh(matrix).eigenvectors,
            ]
        return flops.student, results

    (count, results), (dry_count, zeros) = (counted(computes=flag) for flag in (True, False))
    assert dry_count == count > 0
    assert [zero.shape for zero in zeros] == [result.shape for result in results]
    assert not any(zero.any() for zero in zeros)


@settings(max_examples=5)
@given(
    st.lists(st.tuples(st.integers(2, 4), st.integers(4, 9)), min_size=1, max_size=2),
    st.integers(1, 5),
)
def test_a_perceptron_costs_what_is_planned(sizes: list[tuple[int, int]], number: int) -> None:
    widths, teacher_widths = zip(*sizes, strict=True)
    batches = [vectors(seed) for seed in range(number)]
    planned, counted = chain_flops(
        perceptron(*widths, seed=1), perceptron(*teacher_widths), batches
    )
    assert planned == counted


@pytest.mark.parametrize(("channels", "teacher_channels"), [((3, 4), (5, 7)), ((5,), (5,))])
def test_a_convolutional_network_costs_what_is_planned(
    channels: tuple[int, ...], teacher_channels: tuple[int, ...]
) -> None:
    networks = convolutional(*channels, seed=1), convolutional(*teacher_channels)
    planned, counted = chain_flops(*networks, [images(seed) for seed in range(3)])
    assert planned == counted


def test_a_plan_of_costs_leaves_weights_and_statistics_as_they_are() -> None:
    student, teacher = convolutional(3, 4, seed=1), convolutional(5, 7)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    models, batch = open_networks(student, teacher), calibration([images(0)])[0]
    planned_chain_flops(inspect_chain(*models, batch), *models, batch, number=3)
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)


def chain_flops(
    student: nn.Module, teacher: nn.Module, batches: list[Tensor]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the FLOPs of a fit of chains as planned and as counted."""
    models, entries = open_networks(student, teacher), calibration(batches)
    plan = inspect_chain(*models, entries[0])
    planned = planned_chain_flops(plan, *models, entries[0], number=len(entries))
    with StartFlops(teacher) as flops:
        fit_chain(*models, entries)
    return planned, (flops.student, flops.teacher)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_costs_about_as_much_as_planned(family: str) -> None:
    teacher = tapped(model(family))
    width = {"llama": {"hidden_size": 8, "intermediate_size": 16}, "gpt2": {"n_embd": 8}}[family]
    counts = []
    for number in (6, 12):
        student = tapped(model(family, seed=1, **width))
        batches = [inputs(family, seed) for seed in range(number)]
        entries = [CalibrationBatch(student=batch, teacher=batch) for batch in batches]
        with StartFlops(teacher.module) as flops:
            fit(student, teacher, entries)
        counts.append(torch.tensor([flops.student, flops.teacher]))
    planned = planned_flops(student, teacher, (batches[0], batches[0]), 6)
    # Twice the batches: what does not grow with them falls out.
    ratio = (counts[1] - counts[0]) / torch.tensor(planned)
    assert ratio.log().abs().max() < torch.tensor(1.7).log(), (planned, counts)
