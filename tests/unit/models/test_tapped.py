"""Places, tap numbers and the protocol of models that can be read."""

import pytest
import torch
from torch import Tensor, nn

from curricle import seeding
from curricle.errors import BindError
from curricle.models.tapped import (
    Activations,
    Inputs,
    Place,
    TappedModel,
    run_trial,
    tap_number,
)
from curricle.models.wrapping import tapped


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place("blocks.1"), "blocks.1"),
        (Place("blocks.1", call=2), "blocks.1#2"),
        (Place("blocks.0", side="input"), "blocks.0 (input)"),
        (Place("blocks.0", call=1, side="input"), "blocks.0#1 (input)"),
    ],
)
def test_a_place_prints_as_users_write_it(place: Place, text: str) -> None:
    assert str(place) == text


def test_equal_places_are_one_key() -> None:
    assert len({Place("blocks.1"), Place("blocks.1", call=0), Place("blocks.1", call=1)}) == 2


@pytest.mark.parametrize("tap", [0, 1, 3])
def test_a_tap_number_stands_for_itself(tap: int) -> None:
    assert tap_number(tap, depth=3) == tap


@pytest.mark.parametrize(
    ("fraction", "depth", "expected"),
    [
        (1 / 2, 3, 2),
        (1 / 2, 4, 2),
        (1 / 3, 12, 4),
        (2 / 3, 12, 8),
        (0.01, 12, 1),
        (0.99, 12, 12),
        # 0.2 * 5 is exact, 0.07 * 100 is 7.000000000000001: neither may count as one more.
        (0.2, 5, 1),
        (0.07, 100, 7),
    ],
)
def test_a_fraction_stands_for_the_tap_it_reaches(
    fraction: float, depth: int, expected: int
) -> None:
    assert tap_number(fraction, depth=depth) == expected


@pytest.mark.parametrize("tap", [-1, 4])
def test_a_tap_number_lies_within_the_depth(tap: int) -> None:
    with pytest.raises(
        BindError, match=rf"^tap {tap} must lie between 0 and the model's depth 3; got {tap}$"
    ):
        tap_number(tap, depth=3)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5])
def test_a_fraction_lies_strictly_between_nothing_and_all(fraction: float) -> None:
    with pytest.raises(BindError, match=rf"must lie strictly between 0 and 1; got {fraction}$"):
        tap_number(fraction, depth=3)


def test_a_pass_may_show_hidden_states_only() -> None:
    assert Activations(hidden={Place("a"): torch.zeros(2, 3)}).logits is None


def test_a_plain_module_is_no_tapped_model() -> None:
    assert not isinstance(torch.nn.Identity(), TappedModel)


def test_a_forward_pass_that_fails_is_told_with_its_owner() -> None:
    with seeding.scoped(0, "test model"):
        model = tapped(nn.Sequential(nn.Linear(3, 2)))
    with (
        model.open_taps([], logits=True) as forward,
        pytest.raises(
            BindError,
            match=r"^'teacher' must take the inputs of the stream; its forward pass failed with: "
            "mat1 and",
        ),
    ):
        run_trial("teacher", forward, torch.zeros(1, 4), None)


def test_an_error_of_ours_is_not_told_twice() -> None:
    def refuse(inputs: Inputs, selected: Tensor | None = None) -> Activations:
        del inputs, selected
        raise BindError("'tap' must be reached")

    with pytest.raises(BindError, match=r"^'tap' must be reached$"):
        run_trial("student", refuse, torch.zeros(1, 4), None)
