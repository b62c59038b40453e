"""Models, data and curriculum bound to each other, with every check before training."""
