"""trainer/metrics."""
