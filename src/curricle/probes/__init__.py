"""Probes: measurements of a model that never change its training."""
