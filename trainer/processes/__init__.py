"""trainer/processes."""
