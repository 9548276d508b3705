"""datasets/prepare."""
