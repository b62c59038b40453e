"""Probes: measurements of a model without influence on its training."""
