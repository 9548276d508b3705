"""trainer/checkpoints."""
