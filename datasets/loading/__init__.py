"""datasets/loading."""
