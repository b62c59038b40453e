"""Teachers: a finished model or the checkpoints of its training."""
