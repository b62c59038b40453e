"""Run specs, the runner, equal-budget comparisons and the demos."""
