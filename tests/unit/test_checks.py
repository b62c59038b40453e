"""The checks that run around every call of curricle in the tests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from curricle import seeding
from curricle.objectives.losses import squared_error
from tests.checks import decorator, has_shape

STATE = Float[Tensor, " width"]
check = decorator(typechecker=beartype)


@check
def mixed(first: Float[Tensor, "row width"], second: Float[Tensor, "width out"]) -> object:
    """Return the product, unless there is a single row; its sum then."""
    product = first @ second
    return product.sum() if len(first) == 1 else product


@check
def doubled(states: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    return torch.cat([states, states], dim=1) if len(states) == 2 else 2 * states


@check
def rows(states: Float[Tensor, "row width"]) -> Iterator[Float[Tensor, " width"]]:
    yield from states


@check
@dataclass(frozen=True)
class Pair:
    first: Float[Tensor, " width"]
    second: Float[Tensor, " width"]


@check
def counted(number: int) -> "int":
    return number if number < 10 else str(number)  # type: ignore[return-value]


@check
def listed(values: "list[Float[Tensor, ' width']]", *, kind: Literal["a", "b"] = "a") -> "object":
    return values


@check
def unknown(thing: "torch.NoSuchName") -> int:  # type: ignore[name-defined]
    return 1


def test_calls_of_curricle_are_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="seed"):
        seeding.generator("one", "purpose")  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        squared_error(torch.ones(2, 3), torch.ones(2, 4))


def test_an_axis_has_one_size_in_a_call_and_any_in_the_next() -> None:
    for width in (3, 4):
        assert mixed(torch.ones(2, width), torch.ones(width, 5)) is not None
    with pytest.raises(BeartypeCallHintViolation, match="second"):
        mixed(torch.ones(2, 3), torch.ones(4, 5))


def test_a_returned_value_has_the_sizes_of_the_arguments() -> None:
    assert doubled(torch.ones(3, 2)).shape == (3, 2)
    with pytest.raises(BeartypeCallHintViolation, match="return"):
        doubled(torch.ones(2, 2))


def test_the_sizes_of_a_failed_call_are_forgotten() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        doubled(torch.ones(2, 2))
    assert doubled(torch.ones(5, 7)).shape == (5, 7)


def test_the_arguments_of_a_generator_are_checked() -> None:
    assert len(list(rows(torch.ones(2, 3)))) == 2
    with pytest.raises(TypeCheckError):
        rows(torch.ones(2))


def test_the_fields_of_a_dataclass_are_checked_together() -> None:
    Pair(torch.ones(2), torch.ones(2))
    with pytest.raises(BeartypeCallHintViolation):
        Pair(torch.ones(2), torch.ones(3))


def test_types_without_a_shape_are_checked_without_a_scope() -> None:
    assert counted(3) == 3
    for wrong in ("3", 10):
        with pytest.raises(BeartypeCallHintViolation):
            counted(wrong)


def test_types_in_strings_are_checked() -> None:
    listed([torch.ones(2)], kind="b")
    with pytest.raises(BeartypeCallHintViolation, match="values"):
        listed([torch.ones(2, 3)])


def test_a_name_for_the_type_checker_alone_is_left_unchecked() -> None:
    assert unknown("anything") == 1


@pytest.mark.parametrize(
    ("hint", "holds"),
    [
        (int, False),
        (list[int], False),
        (STATE, True),
        (dict[str, tuple[STATE, ...]], True),
        (STATE | None, True),
        (Callable[[STATE], int], True),
    ],
)
def test_a_shape_is_seen_wherever_it_stands_in_a_hint(hint: object, holds: bool) -> None:
    assert has_shape(hint) == holds
