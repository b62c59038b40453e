"""Recipes of the papers' figures, by name."""
