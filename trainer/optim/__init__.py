"""trainer/optim."""
