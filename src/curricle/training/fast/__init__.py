"""Fused optimizer steps for models limited by Python overhead."""
