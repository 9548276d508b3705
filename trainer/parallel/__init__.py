"""trainer/parallel."""
