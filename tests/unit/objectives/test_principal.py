"""Optimality of principal maps by the theorem of Eckart and Young."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curricle.errors import BindError
from curricle.objectives.principal import principal_map
from tests.parts import drawn

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 100)


def rebuilt(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return the least-squares reconstruction of the rows from their images."""
    inverse: Tensor = torch.linalg.pinv(matrix.double())
    images: Tensor = rows.double() @ matrix.double().mT
    return images @ inverse.mT


@given(shape=shapes, seed=seeds, data=st.data())
def test_what_is_lost_is_the_smallest_singular_values(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    rows = drawn(*shape, seed=seed)
    width = data.draw(st.integers(1, min(shape)))
    lost = (rows - rebuilt(rows, principal_map(rows, width))).square().sum().item()
    singular = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    assert lost == pytest.approx(float((singular[width:] ** 2).sum()), abs=1e-5)


@given(shape=shapes, seed=seeds, data=st.data())
def test_no_other_map_of_its_rank_loses_less(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    rows = drawn(*shape, seed=seed)
    width = data.draw(st.integers(1, min(shape)))
    other = drawn(width, shape[1], seed=seed + 1)
    errors = [
        (rows - rebuilt(rows, matrix)).square().sum().item()
        for matrix in (principal_map(rows, width), other)
    ]
    assert errors[0] <= errors[1] + 1e-5


@given(shape=shapes, seed=seeds, scale=st.floats(1e-3, 1e3), data=st.data())
def test_the_mean_square_of_the_entries_is_kept(
    shape: tuple[int, int], seed: int, scale: float, data: st.DataObject
) -> None:
    rows = drawn(*shape, seed=seed) * scale
    width = data.draw(st.integers(1, min(shape)))
    mapped = rows @ principal_map(rows, width).mT
    assert mapped.square().mean().item() == pytest.approx(rows.square().mean().item(), rel=1e-4)


def test_the_directions_are_orthogonal_of_one_length_and_largest_first() -> None:
    rows = drawn(40, 6) * torch.tensor([1.0, 5, 2, 4, 3, 6])
    matrix = principal_map(rows, 4)
    gram = matrix @ matrix.mT
    assert torch.allclose(gram, gram[0, 0] * torch.eye(4), atol=1e-5)
    sizes = (rows @ matrix.mT).square().mean(0)
    assert torch.equal(sizes, sizes.sort(descending=True).values)


def test_the_largest_entry_of_a_direction_is_positive() -> None:
    matrix = principal_map(drawn(40, 6), 4)
    assert bool((matrix.gather(1, matrix.abs().argmax(1, keepdim=True)) > 0).all())


def test_half_precision_rows_are_mapped_in_full() -> None:
    rows = drawn(40, 6).bfloat16()
    assert torch.equal(principal_map(rows, 4), principal_map(rows.float(), 4))


def test_too_few_rows_are_an_error() -> None:
    with pytest.raises(BindError, match=r"^'init' by principal components needs 5 .* has 4$"):
        principal_map(drawn(4, 6), 5)


def test_rows_of_zeros_are_an_error() -> None:
    with pytest.raises(BindError, match=r"needs a nonzero teacher table$"):
        principal_map(torch.zeros(4, 6), 2)
