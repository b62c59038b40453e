from pathlib import Path

import pytest

from curricle.errors import SpecError
from curricle.experiments.recipes.catalog import RECIPES
from curricle.experiments.recipes.recipe import checked_scale, placed


def test_a_scale_that_is_none_is_told() -> None:
    assert checked_scale("paper") == "paper"
    with pytest.raises(SpecError, match=r"'scale' must be one of \['smoke', 'small', 'paper'\]"):
        checked_scale("tiny")


def test_a_panel_is_placed_in_its_folder(tmp_path: Path) -> None:
    comparison = RECIPES["parity-mlp"].panels("smoke")["parity"]
    assert placed(comparison, tmp_path / "here").folder == tmp_path / "here"
