"""Objectives that a stage minimizes, and their losses and projections."""
