"""datasets/shards."""
