"""Logits that are not multiplied out: what they would be, of which classes and positions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from curricle.models.heads import LinearHead
from tests.parts import drawn

WIDTH, CLASSES = 4, 5


def head(*leading: int, dtype: torch.dtype = torch.float64, **fields: float) -> LinearHead:
    return LinearHead(
        states=drawn(*(leading or (3,)), WIDTH).to(dtype),
        weight=drawn(CLASSES, WIDTH, seed=1).double(),
        bias=drawn(CLASSES, seed=2).double(),
        **fields,
    )


def formula(one: LinearHead) -> Tensor:
    assert one.bias is not None
    return torch.einsum("...w,cw->...c", one.states, one.weight) + one.bias


def test_logits_are_product_and_bias() -> None:
    one = head(2, 3)
    torch.testing.assert_close(one.logits(), formula(one))


def test_a_head_may_have_no_bias() -> None:
    one = LinearHead(states=torch.ones(2, 3), weight=torch.full((4, 3), 2.0))
    assert one.logits().tolist() == [[6.0] * 4] * 2


def test_a_soft_cap_bounds_what_was_scaled() -> None:
    one = head(scale=2.0, soft_cap=3.0)
    torch.testing.assert_close(one.logits(), 3 * torch.tanh(2 * formula(one) / 3))


def test_the_last_step_leaves_the_product_as_it_is() -> None:
    one = head(scale=2.0, soft_cap=3.0)
    product = one.product()
    before = product.clone()
    one.finished(product)
    assert torch.equal(product, before)


def test_the_first_classes_are_those_without_padding() -> None:
    one = head()
    assert torch.equal(one.first(3).logits(), one.logits()[:, :3])


@pytest.mark.parametrize("number", [None, CLASSES])
def test_all_classes_are_the_head_itself(number: int | None) -> None:
    one = head()
    assert one.first(number) is one


def test_positions_are_chosen_on_one_axis() -> None:
    one = head(2, 3)
    assert torch.equal(one.flat.at(slice(1, 4)).logits(), one.flat.logits()[1:4])


def test_a_detached_head_has_no_gradient_and_the_precision_of_its_states() -> None:
    one = head(dtype=torch.float32)
    one.weight.requires_grad_()
    found = one.detached
    assert found.bias is not None
    assert {found.states.dtype, found.weight.dtype, found.bias.dtype} == {torch.float32}
    assert not found.logits().requires_grad


def test_the_states_say_in_which_precision_is_multiplied() -> None:
    assert head(dtype=torch.bfloat16).logits().dtype == torch.bfloat16


def test_flops_are_two_for_each_product() -> None:
    assert head(2, 3).flops == 2 * 6 * WIDTH * CLASSES


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_head_gives_its_own_logits(dtype: torch.dtype) -> None:
    assert head(dtype=dtype, scale=0.5, soft_cap=3.0).gives(
        head(dtype=dtype, scale=0.5, soft_cap=3.0).logits().double()
    )


@pytest.mark.parametrize("others", [{"scale": 1.01}, {"soft_cap": 30.0}, {"soft_cap": math.pi}])
def test_a_head_does_not_give_the_logits_of_another(others: Any) -> None:
    assert not head().gives(head(**others).logits())


def test_a_head_does_not_give_logits_of_another_shape() -> None:
    assert not head().gives(head().logits()[:, 1:])
