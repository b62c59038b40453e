"""Bridges to the trainers of other libraries; each package is imported on its own."""
