"""The one loop, its optimizers, checkpoints, budget and observers."""
