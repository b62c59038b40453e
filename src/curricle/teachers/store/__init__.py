"""Targets of a teacher on disk."""
