"""datasets/documents."""
