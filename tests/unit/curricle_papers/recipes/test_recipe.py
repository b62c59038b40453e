from pathlib import Path

import pytest

from curricle.errors import SpecError
from curricle_papers.recipes.index import RECIPES
from curricle_papers.recipes.recipe import checked_scale, four_strategies, placed, taps


def test_a_scale_that_is_none_is_told() -> None:
    assert checked_scale("paper") == "paper"
    with pytest.raises(SpecError, match=r"'scale' must be one of \['smoke', 'small', 'paper'\]"):
        checked_scale("tiny")


def test_a_panel_is_placed_in_its_folder(tmp_path: Path) -> None:
    comparison = RECIPES["parity-mlp"].panels("smoke")["parity"]
    assert placed(comparison, tmp_path / "here").folder == tmp_path / "here"


def test_the_four_strategies_take_the_arguments_given() -> None:
    found = four_strategies({"pairs": taps(1, 3), "layer_fraction": 0.2}, {"refresh": 5})
    assert {name: one.curriculum["kind"] for name, one in found.items()} == {
        name: name for name in ("from_labels", "one_shot", "progressive", "extraction")
    }
    assert found["progressive"].curriculum["refresh"] == 5
    assert found["extraction"].curriculum["pairs"] == [
        {"student": 1, "teacher": 1},
        {"student": 3, "teacher": 3},
    ]
