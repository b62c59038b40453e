"""Recipes by name."""

from collections.abc import Mapping
from types import MappingProxyType

from curricle.errors import SpecError, near_names
from curricle_papers.recipes import (
    ablations,
    learned_temperature,
    methods,
    sparse_parity,
    text_and_grammars,
    theorems,
    token_budgets,
    warm_start,
)
from curricle_papers.recipes.recipe import Recipe

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for module in (
            sparse_parity,
            theorems,
            text_and_grammars,
            ablations,
            warm_start,
            learned_temperature,
            methods,
            token_budgets,
        )
        for recipe in module.RECIPES
    }
)
"""The recipes by name, in the order of the list."""


def recipe_named(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        SpecError: If there is none of that name.
    """
    if name not in RECIPES:
        raise SpecError(f"{name!r} is not a recipe; {near_names(name, RECIPES)}")
    return RECIPES[name]
