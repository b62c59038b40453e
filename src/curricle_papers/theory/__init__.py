"""Closed forms of the sparse-parity analysis, and two-layer networks for comparison."""
