"""Every recipe is whole at every scale, without running it."""

from typing import get_args

import pytest

from curricle.errors import SpecError
from curricle_papers.recipes.index import RECIPES, recipe_named
from curricle_papers.recipes.recipe import SCALES, Recipe, Scale

EVERY = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@EVERY
def test_a_recipe_says_what_it_shows_and_what_is_known(recipe: Recipe) -> None:
    assert all(recipe.describe())
    assert set(recipe.costs) == set(SCALES) == set(get_args(Scale))
    assert RECIPES[recipe.name] is recipe


@EVERY
@pytest.mark.parametrize("scale", SCALES)
def test_a_recipe_is_a_valid_comparison_at_every_scale(recipe: Recipe, scale: Scale) -> None:
    panels = recipe.panels(scale)
    assert bool(panels) != (recipe.measure is not None)
    record = recipe.record(scale, "line")
    assert [panel.name for panel in record.panels] == list(panels)
    for comparison in panels.values():
        assert comparison.spec.strategies
        assert comparison.spec.seeds


@EVERY
def test_the_small_scale_has_the_seeds_that_a_claim_needs(recipe: Recipe) -> None:
    least = 5 if recipe.name.startswith(("parity", "sample")) else 3
    for comparison in recipe.panels("small").values():
        assert len(comparison.spec.seeds or ()) >= least


def test_an_unknown_recipe_lists_near_names() -> None:
    with pytest.raises(SpecError, match=r"'parity-mpl' is not a recipe.*parity-mlp"):
        recipe_named("parity-mpl")
