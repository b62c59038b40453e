"""Make a small network learn from a large one by giving it a curriculum."""
