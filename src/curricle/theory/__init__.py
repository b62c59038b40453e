"""Closed forms of the sparse-parity analysis, and two-layer networks to hold them against."""
