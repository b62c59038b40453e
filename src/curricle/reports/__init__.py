"""Summaries, tables, figures and pages, made from records alone."""
