"""trainer/start."""
