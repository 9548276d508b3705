"""trainer/config."""
