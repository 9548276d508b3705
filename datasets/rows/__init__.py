"""datasets/rows."""
