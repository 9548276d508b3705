"""datasets/readers."""
