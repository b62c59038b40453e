"""Closed-form fit of a student's blocks to those of its teacher."""
