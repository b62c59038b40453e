"""Synthetic data: sparse parity and grammars."""
