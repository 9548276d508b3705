"""datasets/tokenizers."""
