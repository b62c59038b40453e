"""Adapters: access by `adapter_of`, and a linear map that uses no random numbers."""

import pytest
import torch
from torch import nn

from curricle import seeding
from curricle.objectives.adapters import LinearMap, adapter_of
from tests.parts import drawn


class Owner:
    def __init__(self, adapter: nn.Module | None) -> None:
        self.adapter = adapter


def test_an_adapter_is_found_where_there_is_one() -> None:
    own = LinearMap(drawn(2, 3))
    assert adapter_of(Owner(own)) is own
    assert adapter_of(Owner(None)) is None
    assert adapter_of(object()) is None


@pytest.mark.parametrize("leading", [(4,), (4, 2), (0,)])
def test_the_map_is_a_product_with_its_matrix(leading: tuple[int, ...]) -> None:
    matrix, states = drawn(5, 3), drawn(*leading, 3, seed=1)
    assert torch.equal(LinearMap(matrix)(states), states @ matrix.mT)


def test_making_a_map_draws_nothing() -> None:
    before = seeding.global_state()
    LinearMap(torch.ones(2, 3))
    assert seeding.global_state() == before


def test_states_of_another_precision_are_mapped_in_that_of_the_matrix() -> None:
    mapped = LinearMap(drawn(2, 3))(drawn(4, 3, seed=1).bfloat16())
    assert mapped.dtype == torch.float32
