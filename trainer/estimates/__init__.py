"""trainer/estimates."""
