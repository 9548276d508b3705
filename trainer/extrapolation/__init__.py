"""trainer/extrapolation."""
