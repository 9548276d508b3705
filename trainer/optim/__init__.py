"""How parameters change: optimizers on this rank's shards, the learning rate, and steps that must not be taken.

Read `optimizer` (what all optimizers share), `adamw`, `muon`, `build`, then `step_guard` and `spikes`, which decide on
the device whether a step is taken.
"""

from .build import build_optimizer, learning_rate, optimizer_complaints, set_learning_rate
from .optimizer import Optimizer
from .step_guard import StepGuard, clip_gradients, gradient_norm, reduce_losses

__all__ = [
    "Optimizer",
    "StepGuard",
    "build_optimizer",
    "clip_gradients",
    "gradient_norm",
    "learning_rate",
    "optimizer_complaints",
    "reduce_losses",
    "set_learning_rate",
]
