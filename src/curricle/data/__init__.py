"""Streams of batches, each a pure function of the step."""
