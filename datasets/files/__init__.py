"""datasets/files."""
