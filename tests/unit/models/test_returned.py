"""The tensor in what a module has returned; models that return each form are in `test_hooked`."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from curricle.errors import BindError
from curricle.models.returned import first_tensor, logits_in

FIRST, SECOND = torch.zeros(1), torch.ones(1)


@dataclass
class Answer:
    note: str
    first: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    [FIRST, (FIRST, SECOND), [None, FIRST], {"a": 1, "b": FIRST}, Answer("x", FIRST, SECOND)],
    ids=lambda output: type(output).__name__,
)
def test_the_first_tensor_is_found(output: object) -> None:
    assert first_tensor(output, "x") is FIRST


@pytest.mark.parametrize("output", [Answer("x", FIRST, SECOND), {"a": FIRST, "logits": SECOND}])
def test_logits_are_found_by_name(output: object) -> None:
    assert logits_in(output) is SECOND


@pytest.mark.parametrize("output", [FIRST, (FIRST, SECOND), {"a": FIRST}])
def test_logits_without_a_name_come_first(output: object) -> None:
    assert logits_in(output) is FIRST


def test_something_without_a_tensor_is_refused() -> None:
    with pytest.raises(BindError, match=r"^tap 'blocks.1' must give a tensor; got int$"):
        first_tensor(3, "blocks.1")
