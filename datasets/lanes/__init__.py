"""datasets/lanes."""
