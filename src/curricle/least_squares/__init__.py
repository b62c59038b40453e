"""Closed-form fit of a student to its teacher: `fitting` is the entry."""
