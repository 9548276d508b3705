"""trainer/optim."""

from .build import build_optimizer, learning_rate, muon_matrices, set_learning_rate
from .step_guard import StepGuard, gradient_norm, reduce_losses

__all__ = [
    "StepGuard",
    "build_optimizer",
    "gradient_norm",
    "learning_rate",
    "muon_matrices",
    "reduce_losses",
    "set_learning_rate",
]
