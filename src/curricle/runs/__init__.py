"""Runs on disk: specs, comparisons, budgets, probes and reports."""
