"""trainer/config."""

from .job import JobConfig
from .load import describe, load_config
from .registries import OPTIMIZERS, SINKS
from .tables import ActivationCheckpoint, Checkpoint, Continuation, Extrapolation, FineTuning, Lora, Passkey

__all__ = [
    "OPTIMIZERS",
    "SINKS",
    "ActivationCheckpoint",
    "Checkpoint",
    "Continuation",
    "Extrapolation",
    "FineTuning",
    "JobConfig",
    "Lora",
    "Passkey",
    "describe",
    "load_config",
]
