"""trainer/inference."""
