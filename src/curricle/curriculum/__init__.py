"""Durations, stages and the strategies that return curricula."""
